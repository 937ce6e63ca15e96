"""How plausible a row's answer is, judged by its loss beside the losses of trusted rows.

Neither transport nor diversity sees a wrong answer to a good question. A proxy that has begun to
learn the task does: it finds such an answer surprising.
"""

from __future__ import annotations

import numpy as np

from evoselect_pipeline.errors import DataError

TEMPERATURE = 0.1  # of the kernel over cosines: a target 0.1 further away counts exp(-1)
GLOBAL_SHARE = 2.0  # what all targets together count beside the nearest one
SOFTNESS = 0.3  # of the comparison of two surprises, in their logarithm
MAX_BINS = 50
LEAST_QUALITY = 1e-3
LEAST_SURPRISE = 0.05  # nats; below it differences say nothing


def relative_surprise(
    surprise: np.ndarray,
    target_surprise: np.ndarray,
    cosines: np.ndarray,
    target_cosines: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    r"""How surprising answers are beside those of the targets that they resemble.

    Some kinds of rows are harder than others, and a good answer to a hard question surprises as
    much as a bad one to an easy question. So a row is compared with its near targets:

    .. math::
        r_i = 1 - \sum_j \kappa_{ij} \, \Phi((\log u_j - \log u_i) / h), \qquad
        \kappa_{ij} \propto \exp((c_{ij} - \max_l c_{il}) / \tau) + \gamma / M

    with u the surprise and c the cosine: one minus a localised conformal p-value (Guan 2023), its
    indicator smoothed. A target is compared with all others but itself. This project's
    reconstruction.

    Parameters
    ----------
    surprise : array [N]
        Negative log-likelihood of each row's whole answer, in nats.
    target_surprise : array [M]
    cosines : array [N, M]
        Between rows and targets.
    target_cosines : array [M, M]

    Returns
    -------
    rows : array [N]
    targets : array [M]
        In [0, 1]: the share of like target rows that are less surprising.
    """
    log_targets = np.log(np.asarray(target_surprise) + LEAST_SURPRISE)
    log_rows = np.log(np.asarray(surprise) + LEAST_SURPRISE)
    if len(log_targets) == 1:
        cosines_of_targets = np.ones((1, 1))
    else:
        cosines_of_targets = target_cosines.astype(np.float64, copy=True)
        np.fill_diagonal(cosines_of_targets, -np.inf)
    return (
        _share_below(log_rows, log_targets, cosines),
        _share_below(log_targets, log_targets, cosines_of_targets),
    )


def _share_below(rows: np.ndarray, targets: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    kernel = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / TEMPERATURE)
    kernel = kernel + np.where(np.isfinite(cosines), GLOBAL_SHARE / len(targets), 0.0)
    kernel /= kernel.sum(axis=1, keepdims=True)
    above = np.sum(kernel * ndtr((targets - rows[:, None]) / SOFTNESS), axis=1)
    return np.clip(1.0 - above, 0.0, 1.0)  # rounding may leave it a hair outside


def plausibility(
    surprise: np.ndarray, target_surprise: np.ndarray, reference_surprise: np.ndarray
) -> np.ndarray:
    r"""Probability that a row is good, from its relative surprise: one minus a local fdr.

    Rows that would be chosen without regard to quality, the reference, are a mixture of good rows,
    whose surprise is distributed like the targets', and bad ones, whose surprise is higher. With
    the surprise put through the targets' distribution, u = F_T(r), good rows are uniform, and

    .. math::
        P(good \mid u) = \pi_0 / f(u), \qquad \pi_0 = P_R(u \le 1/2) / (1/2)

    where f is the density of u among the reference rows: the two-groups model of multiple testing
    (Efron 2001) with Storey's estimate (2002) of the share of good rows, :math:`\pi_0`, and a
    density that may only rise (Grenander 1956). No bad row need be known. F_T is a beta
    distribution with the targets' mean and variance: sixty targets are too few for more. A hard
    threshold would drop hard good rows; this keeps them at their right share. This project's
    reconstruction.

    Parameters
    ----------
    surprise : array [N]
        Relative surprise in [0, 1] of the rows to judge, see `relative_surprise`.
    target_surprise : array [M]
        The same for the target rows.
    reference_surprise : array [k]
        The same for the rows that would be chosen without regard to quality.

    Returns
    -------
    array [N]
        In (0, 1], never rising with the surprise.

    Raises
    ------
    DataError
        If a number is not finite, or there are no targets or reference rows.
    """
    from scipy.stats import beta
    from sklearn.isotonic import IsotonicRegression  # slow to import

    rows = _finite("candidate", surprise)
    targets = _finite("target", target_surprise)
    reference = _finite("reference", reference_surprise)
    mean = float(np.clip(targets.mean(), 0.01, 0.99))
    spread = float(np.clip(targets.var(), 1e-3, 0.99 * mean * (1 - mean)))
    size = mean * (1 - mean) / spread - 1
    good = beta(mean * size, (1 - mean) * size)
    placed = good.cdf(reference)
    num_bins = int(np.clip(np.sqrt(len(reference)), 2, MAX_BINS))
    counts, edges = np.histogram(placed, bins=num_bins, range=(0.0, 1.0))
    # Half a row more in every bin: no bin is known to be empty.
    density = num_bins * (counts + 0.5) / (len(reference) + 0.5 * num_bins)
    rising = IsotonicRegression().fit_transform(np.arange(num_bins), density)
    density_of_rows = np.interp(good.cdf(rows), 0.5 * (edges[1:] + edges[:-1]), rising)
    good_share = min(1.0, 2.0 * float(np.mean(placed <= 0.5)))
    return np.clip(good_share / density_of_rows, LEAST_QUALITY, 1.0)


def _finite(what: str, losses: np.ndarray) -> np.ndarray:
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 1 or len(losses) == 0 or not np.isfinite(losses).all():
        count = int((~np.isfinite(losses)).sum())
        raise DataError(
            f"quality: expected one or more finite {what} losses, got shape {losses.shape} with"
            f" {count} not finite; set rows with broken losses aside first"
        )
    return losses

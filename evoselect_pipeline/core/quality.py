"""How plausible a row's answer is, judged by its loss beside the losses of trusted rows.

Neither transport nor diversity sees a wrong answer to a good question. A proxy that has begun to
learn the task does: it finds such an answer surprising.
"""

from __future__ import annotations

import numpy as np

from evoselect_pipeline.errors import DataError


def plausibility(
    losses: np.ndarray, target_losses: np.ndarray, reference_losses: np.ndarray
) -> np.ndarray:
    r"""Share of good rows among rows of such a loss, relative to the loss where it is highest.

    Rows that would be chosen without regard to quality, the reference, are a mixture of good rows,
    whose losses are distributed like the targets', and bad ones, whose losses are higher. Hence

    .. math::
        P(good \mid l) = \alpha \, p_T(l) / p_R(l), \qquad
        \alpha = P_R(l \le m) / P_T(l \le m), \quad m = median(l_T)

    which is learning from positive and unlabelled rows (Elkan and Noto 2008): the targets are the
    known good rows, and no bad row need be known. :math:`\alpha`, the share of good rows in the
    reference, is read off the easier half of the targets, where bad rows are few; at most 1. The
    density ratio is fitted by isotonic regression: it may only fall as the loss rises, and has no
    bandwidth to tune. A weight so made keeps *hard* good rows at their right share, where a
    threshold would drop them. This project's reconstruction.

    Parameters
    ----------
    losses : array [N]
        Negative log-likelihood of each answer, in nats, on a proxy that has not seen the row.
    target_losses : array [M]
        Losses of the target rows on the same proxy.
    reference_losses : array [k]
        Losses of the rows that would be chosen without regard to quality.

    Returns
    -------
    array [N]
        In (0, 1]: 1 for rows as plausible as the targets' easier half.

    Raises
    ------
    DataError
        If a loss is not finite, or there are no targets or reference rows.
    """
    from sklearn.isotonic import IsotonicRegression  # slow to import

    losses = _finite("candidate", losses)
    target_losses = _finite("target", target_losses)
    reference_losses = _finite("reference", reference_losses)
    num_targets, num_reference = len(target_losses), len(reference_losses)
    # Each side weighs 1 in all, so P(target | l) / P(reference | l) is the ratio of densities. No
    # more certainty than one row more on either side could give.
    edge = 0.5 / (1 + min(num_targets, num_reference))
    fitted = IsotonicRegression(
        increasing=False, y_min=edge, y_max=1 - edge, out_of_bounds="clip"
    ).fit(
        np.concatenate([target_losses, reference_losses]),
        np.repeat([1.0, 0.0], [num_targets, num_reference]),
        sample_weight=np.repeat([1 / num_targets, 1 / num_reference], [num_targets, num_reference]),
    )
    share = fitted.predict(losses)
    middle = np.median(target_losses)
    good_share = np.mean(reference_losses <= middle) / np.mean(target_losses <= middle)
    return np.clip(min(1.0, good_share) * share / (1.0 - share), edge, 1.0)


def _finite(what: str, losses: np.ndarray) -> np.ndarray:
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 1 or len(losses) == 0 or not np.isfinite(losses).all():
        count = int((~np.isfinite(losses)).sum())
        raise DataError(
            f"quality: expected one or more finite {what} losses, got shape {losses.shape} with"
            f" {count} not finite; set rows with broken losses aside first"
        )
    return losses

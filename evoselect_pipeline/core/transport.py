"""Entropic optimal transport between weighted candidates and targets.

    min over P >= 0:  sum_ij P_ij C_ij + eps * sum_ij P_ij (log(P_ij / (a_i b_j)) - 1)
    subject to        sum_j P_ij = a_i,   sum_i P_ij = b_j
    solution          P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)

Shapes: N candidates (weights a, potentials f), M targets (weights b, potentials g). Everything is
float64. Potentials are defined up to a constant moved from f to g.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import cast

import numpy as np

from evoselect_pipeline.errors import DataError, NumericsError

MASS_TOLERANCE = 1e-6
POT_CHECK_INTERVAL = 10  # POT looks at its marginal error every tenth iteration only


@dataclass(frozen=True)
class TransportResult:
    """Potentials of a solved problem; `marginal_error` is the L1 error of both marginals.

    Rows of zero weight carry the potential that the other side's optimum implies for them, so
    their potential says what an infinitesimal weight there would cost.
    """

    a: np.ndarray
    b: np.ndarray
    cost: np.ndarray
    f: np.ndarray
    g: np.ndarray
    epsilon: float
    marginal_error: float
    num_iterations: int
    converged: bool

    def plan(self) -> np.ndarray:
        """The transport plan P [N, M]."""
        return np.exp(log_plan(self.a, self.b, self.cost, self.f, self.g, self.epsilon))

    def transport_cost(self) -> float:
        """sum_ij P_ij C_ij, without the entropy term."""
        return float(np.sum(self.plan() * self.cost))


def sinkhorn(
    a: np.ndarray,
    b: np.ndarray,
    cost: np.ndarray,
    *,
    epsilon: float,
    max_iterations: int = 1000,
    tolerance: float = 1e-3,
    warm_start: tuple[np.ndarray, np.ndarray] | None = None,
) -> TransportResult:
    """Solve to a stated accuracy, or raise.

    A checked wrapper of POT's `sinkhorn_log` (log-domain Sinkhorn, Cuturi 2013; Peyre and Cuturi
    2019, section 4.4). POT itself only warns where it returns a plan that lost its mass.

    Parameters
    ----------
    a : array [N]
    b : array [M]
        Non-negative weights of equal sum; zeros are allowed.
    cost : array [N, M]
    epsilon : float
        Regularisation, in the unit of the cost.
    max_iterations : int
    tolerance : float
        Largest L1 marginal error, as a share of the mass.
    warm_start : (f [N], g [M]), optional
        Potentials to start from.

    Raises
    ------
    DataError
        If shapes disagree, the input is empty, weights are negative or masses differ.
    NumericsError
        If a number is not finite, or the error stays above the tolerance.
    """
    # POT imports every array library it finds, torch included: seconds that only solving pays.
    from ot.bregman import sinkhorn_log

    a, b, cost = check_transport(a, b, cost, epsilon)
    rows, columns = a > 0, b > 0
    sub_a, sub_b, sub_cost = a[rows], b[columns], cost[np.ix_(rows, columns)]
    start = None
    if warm_start is not None:
        f, g = warm_start
        start = (f[rows] / epsilon + np.log(sub_a), g[columns] / epsilon + np.log(sub_b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what POT warns of is checked, and raised, below
        _, log = sinkhorn_log(
            sub_a,
            sub_b,
            sub_cost,
            epsilon,
            numItermax=max_iterations,
            stopThr=0.5 * tolerance * a.sum() / np.sqrt(len(sub_b)),  # POT's norm is L2, ours L1
            warmstart=start,
            log=True,
        )
    num_iterations = cast(int, log["niter"]) + 1
    g = np.zeros(len(b))
    g[columns] = epsilon * (log["log_v"] - np.log(sub_b))
    f = soft_minimum(cost[:, columns] - g[columns], sub_b, epsilon)
    g[~columns] = soft_minimum((cost[rows][:, ~columns] - f[rows, None]).T, sub_a, epsilon)
    error = marginal_error(a, b, cost, f, g, epsilon)
    _check_convergence(error, tolerance, epsilon, num_iterations)
    return TransportResult(a, b, cost, f, g, epsilon, error, num_iterations, True)


def sinkhorn_steps(
    a: np.ndarray,
    b: np.ndarray,
    cost: np.ndarray,
    g: np.ndarray,
    *,
    epsilon: float,
    num_iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A fixed number of warm-started Sinkhorn iterations, for the loop that moves `a` in between.

    One log-domain step absorbs the warm start into a kernel exp((f + g - C) / eps) whose rows sum
    to one, and the iterations scale that kernel: two matrix-vector products each. `sinkhorn` (POT)
    takes two exponentials of the whole [N, M] matrix per iteration, which is about 20 times slower
    at N = 6000, M = 64, and a selection takes 600 iterations. Where a scaling overflows (tiny
    epsilon), the iterations are done in the log domain instead.

    Parameters
    ----------
    a : array [N]
    b : array [M]
        Weights of equal sum, already checked; zeros are allowed.
    cost : array [N, M]
    g : array [M]
        Target potentials to start from.
    epsilon : float
    num_iterations : int

    Returns
    -------
    f : array [N]
    g : array [M]
        Row marginals hold exactly; column marginals as far as the iterations got.
    """
    start = soft_minimum(cost - g, b, epsilon)
    kernel = np.exp((start[:, None] + g - cost) / epsilon)
    u, v = np.ones(len(a)), np.ones(len(b))
    with np.errstate(all="ignore"):
        for _ in range(num_iterations):
            v = 1.0 / (kernel.T @ (a * u))
            u = 1.0 / (kernel @ (b * v))
        f_new, g_new = start + epsilon * np.log(u), g + epsilon * np.log(v)
    if np.isfinite(f_new).all() and np.isfinite(g_new).all():
        return f_new, g_new
    f = start
    for _ in range(num_iterations):
        g = soft_minimum((cost - f[:, None]).T, a, epsilon)
        f = soft_minimum(cost - g, b, epsilon)
    return f, g


def soft_minimum(cost: np.ndarray, weights: np.ndarray, epsilon: float) -> np.ndarray:
    """-eps * log sum_j w_j exp(-cost_ij / eps) for each row i of cost [n, m], weights [m]."""
    used = weights > 0
    return -epsilon * np.logaddexp.reduce(np.log(weights[used]) - cost[:, used] / epsilon, axis=1)


def log_plan(
    a: np.ndarray,
    b: np.ndarray,
    cost: np.ndarray,
    f: np.ndarray,
    g: np.ndarray,
    epsilon: float,
) -> np.ndarray:
    """Return log a_i + log b_j + (f_i + g_j - C_ij) / eps, [N, M], -inf at weight 0."""
    with np.errstate(divide="ignore"):
        return np.log(a)[:, None] + np.log(b) + (f[:, None] + g - cost) / epsilon


def marginal_error(
    a: np.ndarray,
    b: np.ndarray,
    cost: np.ndarray,
    f: np.ndarray,
    g: np.ndarray,
    epsilon: float,
) -> float:
    """L1 distance of the plan's marginals from a and b, the larger one, as a share of the mass."""
    with np.errstate(over="ignore", invalid="ignore"):
        plan = np.exp(log_plan(a, b, cost, f, g, epsilon))
    row_error = np.abs(plan.sum(axis=1) - a).sum()
    column_error = np.abs(plan.sum(axis=0) - b).sum()
    return float(max(row_error, column_error) / a.sum())


def check_transport(
    a: np.ndarray, b: np.ndarray, cost: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three inputs as float64, or raise what is wrong with them."""
    a, b, cost = (np.asarray(x, dtype=np.float64) for x in (a, b, cost))
    if a.ndim != 1 or b.ndim != 1 or cost.shape != (len(a), len(b)):
        raise DataError(
            f"transport: weights of shape {a.shape} and {b.shape} need a cost of shape"
            f" ({a.size}, {b.size}), got {cost.shape}"
        )
    if cost.size == 0:
        raise DataError(f"transport: the problem is empty, its cost has shape {cost.shape}")
    if not (np.isfinite(epsilon) and epsilon > 0):
        raise NumericsError(f"transport: epsilon must be finite and above 0, got {epsilon}")
    for name, values in (("candidate weights", a), ("target weights", b), ("cost", cost)):
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise NumericsError(
                f"transport: {count} of {values.size} entries of the {name} are not finite;"
                " set the rows with broken gradients aside first"
            )
    if (a < 0).any() or (b < 0).any():
        raise DataError("transport: weights must not be negative")
    mass, other = a.sum(), b.sum()
    # Negated: sums that overflow differ by NaN, which must not pass.
    if mass <= 0 or not abs(mass - other) <= MASS_TOLERANCE * max(mass, other):
        raise DataError(
            f"transport: both sides need the same mass above 0, got {mass:.6g} on the candidates"
            f" and {other:.6g} on the targets; divide each by its sum"
        )
    return a, b, cost


def _check_convergence(error: float, tolerance: float, epsilon: float, num_iterations: int) -> None:
    if not error <= tolerance:  # negated: NaN must not pass
        raise NumericsError(
            f"transport: marginal error {error:.3g} after {num_iterations} Sinkhorn iterations at"
            f" epsilon {epsilon:g}, allowed {tolerance:g}; raise epsilon or the iterations"
        )

"""EvoSelect's weights: transport pulls them towards the targets, diversity pushes them apart.

The published method interleaves exponentiated updates with Sinkhorn iterations; its equations were
not available. The objective, the centring, the memory and the floor under the effective sample
size are this project's reconstruction.

Shapes: N candidates G [N, D], M targets V [M, D], h earlier rows H [h, D], weights w [N].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evoselect_pipeline.core.selection import SelectionProblem
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.core.transport import (
    TransportResult,
    check_transport,
    log_plan,
    marginal_error,
    sinkhorn,
    sinkhorn_steps,
)
from evoselect_pipeline.errors import DataError, NumericsError

FINAL_BLOCK = 200  # Sinkhorn iterations between two looks at the final marginal error
MAX_FINAL_BLOCKS = 50
ESS_SHARE = 0.5  # of the budget: with fewer effective rows the choice rests on a few weights
SQUARED_WIDTH = 256
TEMPER_STEPS = 40  # bisection to 1e-12, far below what a weight can show


@dataclass(frozen=True)
class UpdateTrace:
    """What one update saw and did."""

    transport_cost: float
    energy: float
    effective_sample_size: float
    change: float
    step_size: float
    tempering: float


@dataclass(frozen=True)
class Evolution:
    """The evolved weights and the solved transport problem that belongs to them.

    `slope` [N] is the gradient of the energy with respect to the weights.
    `stop_reason` is `converged` or `num_updates`; `num_tempered` counts the updates that the floor
    `ess_floor` flattened.
    """

    weights: np.ndarray
    transport: TransportResult
    energy: float
    slope: np.ndarray
    effective_sample_size: float
    ess_floor: float
    num_tempered: int
    stop_reason: str
    trace: tuple[UpdateTrace, ...]

    @property
    def transport_cost(self) -> float:
        """sum_ij P_ij C_ij of the final plan."""
        return self.transport.transport_cost()

    def log_plan(self) -> np.ndarray:
        """Return log P [N, M] of the final plan; -inf for rows of zero weight."""
        solved = self.transport
        return log_plan(solved.a, solved.b, solved.cost, solved.f, solved.g, solved.epsilon)

    def diagnostics(self, num_tokens: np.ndarray) -> dict[str, float | int | str | list]:
        """Numbers of the evolution, and how far the weights follow the rows' lengths [N]."""
        return {
            "effective_sample_size": self.effective_sample_size,
            "ess_floor": self.ess_floor,
            "num_updates": len(self.trace),
            "num_tempered_updates": self.num_tempered,
            "stop_reason": self.stop_reason,
            "transport_cost": self.transport_cost,
            "marginal_error": self.transport.marginal_error,
            "energy": self.energy,
            "epsilon": self.transport.epsilon,
            "weight_length_correlation": _rank_correlation(self.weights, np.asarray(num_tokens)),
            "trace_transport_cost": [entry.transport_cost for entry in self.trace],
            "trace_effective_sample_size": [e.effective_sample_size for e in self.trace],
            "trace_change": [entry.change for entry in self.trace],
        }


def evolve_weights(
    problem: SelectionProblem,
    budget: Budget,
    settings: EvoSelectSettings,
    prior: np.ndarray | None = None,
    target_weights: np.ndarray | None = None,
) -> Evolution:
    """Minimise OT_eps(sum_i w_i delta(g_i), sum_j b_j delta(v_j)) + lambda * energy(w) over w.

    Each update, mu being the weighted mean of all targets, z(.) = (. - mean) / standard deviation:

        f, g   <- warm-started Sinkhorn iterations for cost C_ij = 1 - <g_i, v_j>
        e_i     = <g_i - mu, sum_i w_i (g_i - mu)> + memory * <g_i - mu, mean_h (H_h - mu)>
        w_i    <- w_i * exp(-step_t * (z(f)_i + lambda_t * z(e)_i)) / Z

    f is the gradient of the transport term with respect to w, e that of the energy
    1/2 ||sum_i w_i (g_i - mu)||^2; the squared energy is 1/2 ||sum_i w_i g_i g_i^T||_F^2 with
    e_i = g_i^T (sum_i w_i g_i g_i^T + memory * mean_h H_h H_h^T) g_i. Standardised scores are as
    long at the optimum as at the start, and weights would jump between modes for ever; so step_t,
    first `step_size`, halves whenever the weights turn back on their last move.

    The effective sample size 1 / sum_i w_i^2 is kept at half of the budget, or of the prior's own
    if that is less, by tempering: w_i <- p_i * (w_i / p_i)^tau with the largest tau in [0, 1] that
    does it, p the prior. Rows can then still change places, which a stop would forbid.
    Memory is O(N (M + D)); no [N, N] matrix is formed.

    Parameters
    ----------
    problem : SelectionProblem
        Every candidate gradient finite and of unit length.
    budget : Budget
    settings : EvoSelectSettings
    prior : array [N], optional
        Where the weights start and what tempering returns to; uniform by default. Rows of zero
        prior keep zero weight.
    target_weights : array [M], optional
        b; those of the targets by default.

    Raises
    ------
    DataError
        If the prior is unusable, or a gradient is not finite.
    NumericsError
        If the final plan misses its marginals.
    """
    prior = _normalised_prior(prior, len(problem.candidates))
    ess_floor = _ess_floor(problem, budget, prior)
    b = problem.targets.weights if target_weights is None else target_weights
    _, _, cost = check_transport(prior, b, cost_matrix(problem), settings.epsilon)
    energy = _energy(problem, settings)

    w, f, g = prior, np.zeros(len(prior)), np.zeros(len(b))
    step_size, last_move = settings.step_size, np.zeros(len(prior))
    trace: list[UpdateTrace] = []
    for update in range(settings.num_updates):
        f, g = sinkhorn_steps(
            w, b, cost, g, epsilon=settings.epsilon, num_iterations=settings.sinkhorn_iterations
        )
        value, slope = energy.value_and_gradient(w)
        ramp = settings.diversity_ramp
        diversity = settings.diversity * (min(1.0, update / ramp) if ramp else 1.0)
        score = _standardise(f) + diversity * _standardise(slope)
        w_new, tempering = _temper(_log_ratio(w, prior) - step_size * score, prior, ess_floor)
        move = w_new - w
        trace.append(
            UpdateTrace(
                transport_cost=_plan_cost(w, b, cost, f, g, settings.epsilon),
                energy=value,
                effective_sample_size=effective_sample_size(w_new),
                change=float(np.abs(move).sum()),
                step_size=step_size,
                tempering=tempering,
            )
        )
        if move @ last_move < 0:
            step_size *= 0.5
        w, last_move = w_new, move
        if trace[-1].change < settings.tolerance and update >= settings.diversity_ramp:
            break
    return _finish(w, b, (f, g), cost, settings, energy, ess_floor, tuple(trace))


def restore_evolution(
    problem: SelectionProblem,
    budget: Budget,
    settings: EvoSelectSettings,
    weights: np.ndarray,
    potentials: tuple[np.ndarray, np.ndarray],
    prior: np.ndarray,
    target_weights: np.ndarray,
) -> Evolution:
    """Solve the transport problem of weights that were evolved before, from their potentials.

    The plan is too large to keep, [N, M]; weights and potentials are enough to have it again. The
    trace of the updates is not restored.
    """
    floor = _ess_floor(problem, budget, _normalised_prior(prior, len(weights)))
    cost, energy = cost_matrix(problem), _energy(problem, settings)
    return _finish(weights, target_weights, potentials, cost, settings, energy, floor, ())


def cost_matrix(problem: SelectionProblem) -> np.ndarray:
    """C_ij = 1 - <g_i, v_j>, float64 [N, M]."""
    cosines = problem.candidates.gradients @ problem.targets.gradients.T
    return 1.0 - cosines.astype(np.float64)


def effective_sample_size(weights: np.ndarray) -> float:
    """(sum_i w_i)^2 / sum_i w_i^2: N for equal weights, 1 for a single one."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def _ess_floor(problem: SelectionProblem, budget: Budget, prior: np.ndarray) -> float:
    num_rows = budget.num_rows(np.asarray(problem.candidates.num_tokens))
    return ESS_SHARE * min(num_rows, effective_sample_size(prior))


def _energy(problem: SelectionProblem, settings: EvoSelectSettings):
    kind = _SquaredEnergy if settings.energy == "squared" else _CentredEnergy
    return kind(problem, settings.memory)


class _SquaredEnergy:
    """1/2 ||S||_F^2 + memory * <S, mean_h H_h H_h^T> with S = sum_i w_i g_i g_i^T.

    S is [D, D], so rows are folded to `SQUARED_WIDTH` numbers first: the sketch has random signs,
    and to add up its parts is the same sketch at a smaller width.
    """

    def __init__(self, problem: SelectionProblem, memory: float) -> None:
        self.rows = _folded(problem.candidates.gradients)
        self.memory = np.zeros((self.rows.shape[1],) * 2, self.rows.dtype)
        if len(problem.history):
            earlier = _folded(problem.history)
            self.memory = memory * (earlier.T @ earlier) / len(earlier)

    def value_and_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        moment = (self.rows * weights[:, None].astype(self.rows.dtype)).T @ self.rows
        direction = moment + self.memory
        slope = np.einsum("nd,nd->n", self.rows @ direction, self.rows)
        value = 0.5 * float(np.sum(moment * moment)) + float(np.sum(moment * self.memory))
        return value, slope.astype(np.float64)


def _folded(vectors: np.ndarray) -> np.ndarray:
    """Unit rows [n, D] added up to at most `SQUARED_WIDTH` numbers and made unit rows again."""
    folded = vectors[:, :SQUARED_WIDTH].copy()
    for start in range(SQUARED_WIDTH, vectors.shape[1], SQUARED_WIDTH):
        part = vectors[:, start : start + SQUARED_WIDTH]
        folded[:, : part.shape[1]] += part
    return folded / np.maximum(np.linalg.norm(folded, axis=1, keepdims=True), 1e-12)


class _CentredEnergy:
    """1/2 ||sum_i w_i (g_i - mu)||^2 + memory * <sum_i w_i (g_i - mu), mean_h (H_h - mu)>."""

    def __init__(self, problem: SelectionProblem, memory: float) -> None:
        self.gradients = problem.candidates.gradients
        dtype = self.gradients.dtype
        self.mu = (problem.targets.weights @ problem.targets.gradients).astype(dtype)
        self.memory = np.zeros_like(self.mu)
        if len(problem.history):
            self.memory = (memory * (problem.history.mean(axis=0) - self.mu)).astype(dtype)

    def value_and_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        # The centred matrix is never formed: it would double the memory of the gradients.
        mean = weights.astype(self.gradients.dtype) @ self.gradients - self.mu
        direction = mean + self.memory
        slope = self.gradients @ direction - self.mu @ direction
        value = 0.5 * float(mean @ mean) + float(mean @ self.memory)
        return value, slope.astype(np.float64)


def _finish(
    w: np.ndarray,
    b: np.ndarray,
    potentials: tuple[np.ndarray, np.ndarray],
    cost: np.ndarray,
    settings: EvoSelectSettings,
    energy: _CentredEnergy | _SquaredEnergy,
    ess_floor: float,
    trace: tuple[UpdateTrace, ...],
) -> Evolution:
    """Solve the transport problem of the final weights to its tolerance and put all together."""
    epsilon, (f, g) = settings.epsilon, potentials
    # Mass between far clusters balances slowly, hence the cheap iterations before POT's check.
    error = marginal_error(w, b, cost, f, g, epsilon)
    for _ in range(MAX_FINAL_BLOCKS):
        if error <= 0.5 * settings.tolerance:
            break
        f, g = sinkhorn_steps(w, b, cost, g, epsilon=epsilon, num_iterations=FINAL_BLOCK)
        error = marginal_error(w, b, cost, f, g, epsilon)
    if not error <= settings.tolerance:
        raise NumericsError(
            f"select: the plan's marginal error is {error:.3g} after"
            f" {MAX_FINAL_BLOCKS * FINAL_BLOCK} Sinkhorn iterations at epsilon {epsilon:g}, allowed"
            f" {settings.tolerance:g}; raise selection.evoselect.epsilon"
        )
    solved = sinkhorn(
        w,
        b,
        cost,
        epsilon=epsilon,
        max_iterations=10,
        tolerance=settings.tolerance,
        warm_start=(f, g),
    )
    value, slope = energy.value_and_gradient(w)
    return Evolution(
        weights=w,
        transport=solved,
        energy=value,
        slope=slope,
        effective_sample_size=effective_sample_size(w),
        ess_floor=ess_floor,
        num_tempered=sum(entry.tempering < 1 for entry in trace),
        stop_reason="converged" if len(trace) < settings.num_updates else "num_updates",
        trace=trace,
    )


def _normalised_prior(prior: np.ndarray | None, num_rows: int) -> np.ndarray:
    if prior is None:
        return np.full(num_rows, 1.0 / num_rows)
    prior = np.asarray(prior, dtype=np.float64)
    if prior.shape != (num_rows,) or not np.isfinite(prior).all() or (prior < 0).any():
        raise DataError(
            f"prior must be {num_rows} finite numbers, none negative; got shape {prior.shape}"
        )
    if prior.sum() <= 0:
        raise DataError("prior is zero for every candidate: nothing can be selected")
    return prior / prior.sum()


def _standardise(values: np.ndarray) -> np.ndarray:
    spread = float(values.std())
    # Equal up to rounding: dividing would blow rounding noise up to unit size.
    if spread <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(values)
    return (values - values.mean()) / spread


def _log_ratio(w: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """log(w / prior), and 0 where the prior is zero; weights that underflowed stay at the end."""
    used = prior > 0
    ratio = np.zeros(len(w))
    ratio[used] = np.log(np.maximum(w[used], 1e-300)) - np.log(prior[used])
    return ratio


def _temper(log_ratio: np.ndarray, prior: np.ndarray, floor: float) -> tuple[np.ndarray, float]:
    """Return prior * exp(tau * log_ratio) / Z, and the largest tau <= 1 that keeps the floor."""
    w = _tilt(prior, log_ratio)
    if effective_sample_size(w) >= floor:
        return w, 1.0
    low, high = 0.0, 1.0
    for _ in range(TEMPER_STEPS):
        middle = 0.5 * (low + high)
        if effective_sample_size(_tilt(prior, middle * log_ratio)) >= floor:
            low = middle
        else:
            high = middle
    return _tilt(prior, low * log_ratio), low


def _tilt(prior: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    w = prior * np.exp(exponent - exponent[prior > 0].max())
    return w / w.sum()


def _plan_cost(
    a: np.ndarray, b: np.ndarray, cost: np.ndarray, f: np.ndarray, g: np.ndarray, epsilon: float
) -> float:
    """sum_ij P_ij C_ij of the plan of the current potentials."""
    return float(np.sum(np.exp(log_plan(a, b, cost, f, g, epsilon)) * cost))


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation; 0 where one side is constant."""
    from scipy.stats import rankdata  # slow to import, and needed only once weights exist

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])

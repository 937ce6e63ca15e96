"""Laws of the evolved weights: off-target rows fade, modes balance, nothing collapses."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from evoselect_pipeline.core.evolve_weights import (
    _CentredEnergy,
    _SquaredEnergy,
    cost_matrix,
    effective_sample_size,
    evolve_weights,
)
from evoselect_pipeline.core.selection import Candidates, SelectionProblem, Targets
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.core.transport import sinkhorn
from evoselect_pipeline.errors import ConfigError, DataError, NumericsError

SETTINGS = EvoSelectSettings()
WIDTH = 256


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def make_problem(gradients, target_gradients, history=None):
    num_rows, num_targets = len(gradients), len(target_gradients)
    ids = tuple(f"c{i:05d}" for i in range(num_rows))
    ones = np.ones(num_rows)
    history = np.zeros((0, 0), np.float32) if history is None else history
    return SelectionProblem(
        Candidates(ids, gradients, ones, ones, ones, ("g",) * num_rows, ids),
        Targets(
            tuple(f"t{j:03d}" for j in range(num_targets)),
            target_gradients,
            np.ones(num_targets),
            ("s",) * num_targets,
        ),
        history,
        tuple(f"h{i}" for i in range(len(history))),
    )


def mixture(num_rows, off_share, mode_shares, noise=1.0, num_targets=32, seed=0, centre=False):
    """Rows around modes the targets share evenly, and off-target rows around three others."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(mode_shares) + 3, WIDTH))
    num_off = round(num_rows * off_share)
    modes = rng.choice(len(mode_shares), size=num_rows - num_off, p=mode_shares)
    kinds = np.append(modes, len(mode_shares) + rng.integers(3, size=num_off))
    target_kinds = np.arange(num_targets) % len(mode_shares)
    rows = unit(centres[kinds] + noise * rng.normal(size=(num_rows, WIDTH)))
    targets = unit(centres[target_kinds] + noise * rng.normal(size=(num_targets, WIDTH)))
    if centre:
        mean = rows.mean(axis=0)
        rows, targets = unit(rows - mean), unit(targets - mean)
    return make_problem(rows, targets), kinds


@pytest.mark.parametrize("centre", [False, True])
def test_over_generated_modes_end_with_the_targets_proportions(centre):
    problem, kinds = mixture(2000, 0.5, (0.6, 0.25, 0.1, 0.05), centre=centre)
    evolution = evolve_weights(problem, Budget(200), SETTINGS)
    mass = np.bincount(kinds, evolution.weights, minlength=7)
    np.testing.assert_allclose(mass[:4], 0.25, atol=0.05)
    assert mass[4:].sum() < 0.01


def test_transport_cost_falls_below_that_of_equal_weights():
    problem, _ = mixture(1000, 0.5, (0.7, 0.3))
    evolution = evolve_weights(problem, Budget(100), SETTINGS)
    uniform = np.full(1000, 1e-3)
    before = sinkhorn(
        uniform, problem.targets.weights, cost_matrix(problem), epsilon=0.05, max_iterations=5000
    )
    assert evolution.transport_cost < 0.9 * before.transport_cost()


def test_final_plan_belongs_to_the_final_weights():
    problem, _ = mixture(600, 0.5, (0.7, 0.3))
    evolution = evolve_weights(problem, Budget(100), SETTINGS)
    plan = np.exp(evolution.log_plan())
    assert np.abs(plan.sum(axis=1) - evolution.weights).sum() <= 1e-3
    assert np.abs(plan.sum(axis=0) - problem.targets.weights).sum() <= 1e-3
    assert evolution.weights.sum() == pytest.approx(1.0) and (evolution.weights >= 0).all()


@pytest.mark.parametrize(
    ("num_rows", "budget", "off_share", "noise"),
    [
        (2300, 230, 0.9, 1.0),
        (2300, 230, 0.9, 3.0),
        (1000, 1000, 0.0, 1.0),
        (1000, 950, 0.5, 1.0),
        (1000, 800, 0.99, 0.2),
        (40, 3, 0.5, 1.0),
        (40, 40, 0.5, 0.1),
        (1, 1, 0.0, 1.0),
    ],
)
def test_ordinary_pools_are_never_refused(num_rows, budget, off_share, noise):
    problem, _ = mixture(num_rows, off_share, (0.6, 0.4), noise)
    evolution = evolve_weights(problem, Budget(budget), SETTINGS)
    assert evolution.effective_sample_size >= evolution.ess_floor * (1 - 1e-6)
    assert np.isfinite(evolution.weights).all()


@pytest.mark.parametrize("budget", [200, 590])
@pytest.mark.parametrize("mode_shares", [(0.6, 0.2, 0.2), (0.9, 0.1)])
def test_updates_settle_instead_of_jumping_between_modes(mode_shares, budget):
    problem, _ = mixture(600, 0.0, mode_shares, noise=0.5)
    trace = evolve_weights(problem, Budget(budget), SETTINGS).trace
    assert max(entry.change for entry in trace[-3:]) < 0.03 < trace[0].change


def test_identical_candidates_keep_equal_weights():
    row = unit(np.ones((1, WIDTH)))
    problem = make_problem(np.repeat(row, 20, axis=0), row)
    np.testing.assert_allclose(
        evolve_weights(problem, Budget(5), SETTINGS).weights, 0.05, rtol=1e-9
    )


def test_memory_moves_weight_away_from_earlier_rounds():
    problem, kinds = mixture(1000, 0.0, (0.5, 0.5))
    history = problem.candidates.gradients[kinds == 0][:100]
    remembered = make_problem(problem.candidates.gradients, problem.targets.gradients, history)
    settings = EvoSelectSettings(memory=2.0, diversity=2.0)
    mass = [
        evolve_weights(p, Budget(100), settings).weights[kinds == 0].sum()
        for p in (problem, remembered)
    ]
    assert mass[1] < mass[0] - 0.02


def test_centred_energy_and_its_gradient_equal_the_explicit_formula():
    rng = np.random.default_rng(0)
    problem = make_problem(
        unit(rng.normal(size=(9, 6))), unit(rng.normal(size=(4, 6))), unit(rng.normal(size=(3, 6)))
    )
    w = rng.random(9) / 4.5
    mu = problem.targets.weights @ problem.targets.gradients
    centred = problem.candidates.gradients - mu
    memory = 0.5 * (problem.history.mean(axis=0) - mu)
    value, slope = _CentredEnergy(problem, 0.5).value_and_gradient(w)
    mean = w @ problem.candidates.gradients - mu
    assert value == pytest.approx(0.5 * mean @ mean + mean @ memory, abs=1e-6)
    np.testing.assert_allclose(slope, centred @ (mean + memory), atol=1e-6)


@pytest.mark.parametrize("width", [6, 256, 300, 1000])
def test_squared_energy_equals_the_explicit_formula_over_folded_rows(width):
    rng = np.random.default_rng(0)
    rows, earlier = unit(rng.normal(size=(9, width))), unit(rng.normal(size=(3, width)))
    problem = make_problem(rows, unit(rng.normal(size=(4, width))), earlier)
    w = rng.random(9) / 4.5

    def folded(vector):
        short = np.zeros(min(width, 256))
        for place, number in enumerate(vector):
            short[place % 256] += number
        return short / np.linalg.norm(short)

    rows, earlier = ([folded(v) for v in vectors] for vectors in (rows, earlier))
    moment = sum(weight * np.outer(g, g) for weight, g in zip(w, rows, strict=True))
    memory = 0.5 * sum(np.outer(h, h) for h in earlier) / 3
    value, slope = _SquaredEnergy(problem, 0.5).value_and_gradient(w)
    assert value == pytest.approx(0.5 * np.sum(moment**2) + np.sum(moment * memory), rel=1e-5)
    np.testing.assert_allclose(slope, [g @ (moment + memory) @ g for g in rows], rtol=1e-4)


@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("energy", [_CentredEnergy, _SquaredEnergy])
def test_the_slope_of_an_energy_is_the_numerical_gradient_of_its_value(energy, with_history):
    rng = np.random.default_rng(1)
    rows, targets, history = (
        matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        for matrix in (rng.normal(size=(n, 6)) for n in (9, 4, 3))
    )
    found = energy(make_problem(rows, targets, history if with_history else None), 0.7)
    w, step = rng.dirichlet(np.ones(9)), 0.1  # exact for a quadratic function, however long

    def value(row, move):
        towards_row = np.eye(9)[row] - 1 / 9  # weights keep their sum: only there is a value
        return found.value_and_gradient(w + move * towards_row)[0]

    numerical = [(value(i, step) - value(i, -step)) / (2 * step) for i in range(9)]
    slope = found.value_and_gradient(w)[1]
    np.testing.assert_allclose(slope - slope.mean(), numerical, atol=1e-12)


def weights_by_the_formula(problem, num_rows, prior, settings):
    """The updates as docs/how-selection-works.md has them, a sum at a time."""
    prior, b, epsilon = prior / prior.sum(), problem.targets.weights, settings.epsilon
    rows, targets = (part.gradients.astype(float) for part in (problem.candidates, problem.targets))
    cost, mu = 1 - rows @ targets.T, b @ targets
    floor = 0.5 * min(num_rows, effective_sample_size(prior))

    def tilted(exponent):
        w = prior * np.exp(exponent)
        return w / w.sum()

    def short_of_floor(tau, exponent):
        return effective_sample_size(tilted(tau * exponent)) - floor

    w, g, step, last_move, sizes = prior, np.zeros(len(b)), settings.step_size, np.zeros(1), []
    for update in range(settings.num_updates):
        f = -epsilon * np.log(np.exp((g - cost) / epsilon) @ b)
        for _ in range(settings.sinkhorn_iterations):
            g = -epsilon * np.log(w @ np.exp((f[:, None] - cost) / epsilon))
            f = -epsilon * np.log(np.exp((g - cost) / epsilon) @ b)
        slope = (rows - mu) @ (w @ (rows - mu))
        ramp = settings.diversity_ramp
        share = min(1, update / ramp) if ramp else 1
        score = (f - f.mean()) / f.std()
        score += settings.diversity * share * (slope - slope.mean()) / slope.std()
        exponent = np.log(w / prior) - step * score
        if short_of_floor(1.0, exponent) < 0:
            exponent *= brentq(short_of_floor, 0.0, 1.0, args=(exponent,), xtol=1e-14)
        move = tilted(exponent) - w
        step /= 2 if update and move @ last_move < 0 else 1
        w, last_move = w + move, move
        sizes.append(effective_sample_size(w))
        if np.abs(move).sum() < settings.tolerance and update >= ramp:
            break
    return w, np.array(sizes) / floor


@pytest.mark.parametrize(
    ("settings", "num_rows"),
    [(EvoSelectSettings(), 30), (EvoSelectSettings(diversity=2.0, diversity_ramp=3), 10)],
    ids=["as shipped", "diverse"],
)
def test_weights_equal_those_of_the_formula(settings, num_rows):
    problem, _ = mixture(120, 0.5, (0.7, 0.3), num_targets=12)
    prior = np.random.default_rng(0).uniform(0.2, 1.0, 120)
    expected, sizes = weights_by_the_formula(problem, num_rows, prior, settings)
    evolution = evolve_weights(problem, Budget(num_rows), settings, prior)
    np.testing.assert_allclose(evolution.weights, expected, rtol=1e-3, atol=1e-8)
    assert evolution.num_tempered == np.sum(sizes < 1 + 1e-6)


def test_a_single_update_without_a_ramp_heeds_diversity():
    problem, _ = mixture(200, 0.2, (0.8, 0.2))
    once = EvoSelectSettings(num_updates=1, diversity_ramp=0, diversity=2.0)
    prior = np.random.default_rng(0).uniform(0.2, 1.0, 200)
    weights = evolve_weights(problem, Budget(5), once, prior).weights
    np.testing.assert_allclose(
        weights, weights_by_the_formula(problem, 5, prior, once)[0], rtol=1e-4, atol=1e-8
    )
    without = replace(once, diversity=0.0)
    assert np.abs(weights - evolve_weights(problem, Budget(5), without, prior).weights).sum() > 0.1


def test_rows_of_zero_prior_keep_zero_weight():
    problem, _ = mixture(200, 0.2, (0.5, 0.5))
    prior = np.ones(200)
    prior[:50] = 0
    weights = evolve_weights(problem, Budget(50), SETTINGS, prior).weights
    assert (weights[:50] == 0).all() and weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_weights_keep_half_of_the_effective_rows_of_their_prior_or_of_the_budget(decay):
    problem, _ = mixture(200, 0.2, (0.5, 0.5))
    prior = decay ** np.arange(200)
    evolution = evolve_weights(problem, Budget(100), SETTINGS, prior)
    floor = 0.5 * min(100, effective_sample_size(prior))
    assert evolution.ess_floor == pytest.approx(floor)
    assert evolution.effective_sample_size >= floor * (1 - 1e-6)


@pytest.mark.parametrize("prior", [np.zeros(200), -np.ones(200), np.full(200, np.nan), np.ones(3)])
def test_unusable_priors_raise(prior):
    problem, _ = mixture(200, 0.2, (0.5, 0.5))
    with pytest.raises(DataError, match="prior"):
        evolve_weights(problem, Budget(100), SETTINGS, prior)


def test_an_epsilon_too_small_to_converge_raises_what_to_do():
    problem, _ = mixture(300, 0.5, (0.5, 0.5))
    with pytest.raises(NumericsError, match=r"epsilon 0.0001.*raise selection.evoselect.epsilon"):
        evolve_weights(problem, Budget(30), EvoSelectSettings(epsilon=1e-4))


def test_effective_sample_size_counts_equal_weights():
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_sample_size(np.array([1.0, 0, 0])) == pytest.approx(1)


def test_same_input_gives_the_same_bits():
    problem, _ = mixture(300, 0.5, (0.5, 0.5))
    first, second = (evolve_weights(problem, Budget(30), SETTINGS).weights for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0},
        {"epsilon": float("nan")},
        {"num_updates": 0},
        {"diversity": -1},
        {"reach": 3},
        {"norm_quarantine": 0.5},
        {"rounding": "dice"},
        {"energy": "cubed"},
        {"quality_floor": 1.0},
    ],
)
def test_unusable_settings_raise(wrong):
    with pytest.raises(ConfigError, match=f"^selection.evoselect.{next(iter(wrong))} "):
        EvoSelectSettings(**wrong)

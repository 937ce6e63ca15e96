"""Laws of selection: every row accounted for, on-target, without copies, in any order the same."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from evoselect_pipeline.core.evoselect import align, restore_alignment, start_of
from evoselect_pipeline.core.metrics import near_duplicate_share, ot_distance, vendi_score
from evoselect_pipeline.core.selection import (
    Candidates,
    SelectionProblem,
    Targets,
    target_weights,
)
from evoselect_pipeline.core.selectors import SELECTORS, select
from evoselect_pipeline.core.settings import ENERGIES, ROUNDINGS, Budget, EvoSelectSettings
from evoselect_pipeline.core.target_selectors import round_robin
from evoselect_pipeline.errors import ConfigError, DataError

WIDTH = 256
NUM_MODES = 4
NO_COPIES = EvoSelectSettings(dedup_cosine=0.95)


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def pool(gradients, **more):
    num_rows = len(gradients)
    ids = tuple(f"c{i:05d}" for i in range(num_rows))
    fields = {
        "sample_ids": ids,
        "norms": np.ones(num_rows),
        "losses": np.ones(num_rows),
        "num_tokens": np.arange(num_rows) % 50 + 5,
        "sources": ("generator",) * num_rows,
        "text_keys": ids,
    }
    return Candidates(gradients=gradients, **(fields | more))


def target_set(gradients, subtasks=None, **more):
    num_rows = len(gradients)
    ids = tuple(f"t{j:03d}" for j in range(num_rows))
    return Targets(ids, gradients, np.ones(num_rows), tuple(subtasks or ("s",) * num_rows), **more)


@pytest.fixture(scope="module", params=["raw", "centred"])
def mixture(request):
    """Four modes in uneven shares, 40 % off-target rows and 20 % near-copies; (problem, kinds).

    `centred` takes the pool's mean gradient from all rows, as the pipeline does.
    """
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(NUM_MODES + 3, WIDTH)) + 0.5
    modes = rng.choice(NUM_MODES, size=800, p=(0.55, 0.2, 0.15, 0.1))
    off = NUM_MODES + rng.integers(3, size=800)
    kinds = np.concatenate([modes, off])
    rows = centres[kinds] + rng.normal(size=(1600, WIDTH))
    copied = rng.integers(1600, size=400)
    rows = np.vstack([rows, rows[copied] + 0.1 * rng.normal(size=(400, WIDTH))])
    kinds = np.append(kinds, kinds[copied])
    targets = centres[np.arange(32) % NUM_MODES] + rng.normal(size=(32, WIDTH))
    if request.param == "centred":
        mean = rows.mean(axis=0)
        rows, targets = rows - mean, targets - mean
    order = rng.permutation(2000)
    return SelectionProblem(pool(unit(rows[order])), target_set(unit(targets))), kinds[order]


def kinds_of(selection, problem, kinds):
    kind = dict(zip(problem.candidates.sample_ids, kinds, strict=True))
    return np.bincount([kind[i] for i in selection.selected_ids], minlength=NUM_MODES + 3)


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_every_candidate_is_decided_once_with_a_reason(mixture, method):
    problem, _ = mixture
    selection = select(problem, Budget(200), 0, method)
    decided = Counter(selection.selected_ids) + Counter(r.sample_id for r in selection.rejections)
    assert decided == Counter(problem.candidates.sample_ids)
    assert all(entry.reason for entry in (*selection.picks, *selection.rejections))
    assert len(selection.picks) == (2000 if method == "all" else 200)
    assert [pick.rank for pick in selection.picks] == list(range(1, len(selection.picks) + 1))
    assert selection.weights.shape == (2000,) and selection.weights.sum() == pytest.approx(1)
    assert selection.method == method and selection.diagnostics["num_short"] == 0


def test_evoselect_takes_no_off_target_rows_and_no_copies(mixture):
    problem, kinds = mixture
    selection = select(problem, Budget(200), 0, settings=NO_COPIES)
    assert kinds_of(selection, problem, kinds)[NUM_MODES:].sum() == 0
    row_of = {name: i for i, name in enumerate(problem.candidates.sample_ids)}
    chosen = problem.candidates.gradients[[row_of[i] for i in selection.selected_ids]]
    assert near_duplicate_share(chosen, 0.95) == 0
    assert max(pick.nearest_cosine for pick in selection.picks) <= 0.95


def test_evoselect_meets_the_targets_mode_proportions(mixture):
    problem, kinds = mixture
    shares = kinds_of(select(problem, Budget(200), 0), problem, kinds)[:NUM_MODES] / 200
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_evoselect_is_nearer_and_more_diverse_than_attribution_and_random(mixture):
    problem, _ = mixture
    row_of = {name: i for i, name in enumerate(problem.candidates.sample_ids)}
    chosen = {
        method: problem.candidates.gradients[
            [row_of[i] for i in select(problem, Budget(100), 0, method).selected_ids]
        ]
        for method in ("evoselect", "attribution", "random")
    }
    distance = {m: ot_distance(x, problem.targets.gradients) for m, x in chosen.items()}
    assert distance["evoselect"] < min(distance["attribution"], distance["random"])
    assert vendi_score(chosen["evoselect"]) > vendi_score(chosen["attribution"])


def test_the_paper_rule_takes_the_largest_weights(mixture):
    problem, _ = mixture
    selection = select(problem, Budget(50), 0, settings=EvoSelectSettings(rounding="topk"))
    weight = dict(zip(problem.candidates.sample_ids, selection.weights, strict=True))
    chosen = [weight[i] for i in selection.selected_ids]
    assert chosen == sorted(chosen, reverse=True)
    assert min(chosen) >= max(weight[r.sample_id] for r in selection.rejections)


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_order_of_arrival_does_not_matter(mixture, method):
    problem, _ = mixture
    order = np.random.default_rng(1).permutation(2000)
    moved = problem.with_candidates(problem.candidates.take(order))
    moved = replace(moved, targets=moved.targets.take(np.arange(32)[::-1]))
    first, second = (select(p, Budget(100), 5, method) for p in (problem, moved))
    assert first.picks == second.picks and first.rejections == second.rejections
    np.testing.assert_array_equal(first.weights[order], second.weights)


def test_selection_from_a_kept_alignment_equals_selection_in_one_go(mixture, monkeypatch):
    problem, _ = mixture
    settings, budget = EvoSelectSettings(), Budget(100)
    direct = select(problem, budget, 0)
    found = align(problem, budget, settings)
    solved = found.evolution.transport
    kept = restore_alignment(
        problem, budget, settings, found.evolution.weights, (solved.f, solved.g)
    )
    monkeypatch.setattr("evoselect_pipeline.core.evoselect.evolve_weights", None)
    for alignment in (found, kept):
        selection = select(problem, budget, 0, alignment=alignment)
        assert selection.selected_ids == direct.selected_ids
        assert [r.stage for r in selection.rejections] == [r.stage for r in direct.rejections]
        np.testing.assert_array_equal(selection.weights, direct.weights)


@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_rounding_decides_every_row_once_in_any_order(mixture, rounding, energy):
    problem, _ = mixture
    quality = np.random.default_rng(2).uniform(0.3, 1.0, 2000)
    problem = problem.with_candidates(replace(problem.candidates, quality=quality))
    order = np.random.default_rng(1).permutation(2000)
    moved = problem.with_candidates(problem.candidates.take(order))
    settings = EvoSelectSettings(rounding=rounding, energy=energy, num_updates=10)
    first, again, second = (
        select(p, Budget(100), 0, settings=settings) for p in (problem, problem, moved)
    )
    assert first.picks == again.picks == second.picks and len(first.picks) == 100
    assert first.rejections == second.rejections
    np.testing.assert_array_equal(first.weights[order], second.weights)
    decided = Counter(first.selected_ids) + Counter(r.sample_id for r in first.rejections)
    assert decided == Counter(problem.candidates.sample_ids)


def test_implausible_answers_weigh_nothing_and_are_rejected_with_a_sentence(mixture):
    problem, kinds = mixture
    quality = np.where(np.arange(2000) % 3, 1.0, 0.2)
    problem = problem.with_candidates(replace(problem.candidates, quality=quality))
    bad = {problem.candidates.sample_ids[i] for i in np.flatnonzero(quality < 0.5)}
    for rounding in ("plan_quota", "capped"):
        selection = select(problem, Budget(200), 0, settings=EvoSelectSettings(rounding=rounding))
        assert len(selection.picks) == 200 and not bad & set(selection.selected_ids)
        assert (selection.weights[quality < 0.5] == 0).all()
        refused = [r for r in selection.rejections if r.stage == "implausible_answer"]
        assert refused and {r.sample_id for r in refused} <= bad
        assert all("plausible at 20%; its nearest" in r.reason for r in refused)
        shares = kinds_of(selection, problem, kinds)[:NUM_MODES] / 200
        np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_copies_of_a_text_share_the_start_of_one_row():
    rng = np.random.default_rng(0)
    problem = SelectionProblem(
        pool(
            unit(rng.normal(size=(7, 8))),
            text_keys=("a", "b", "a", "a", "c", "b", "d"),
            quality=np.array([1.0, 1.0, 0.8, 0.1, 0.6, 0.5, 1.0]),
        ),
        target_set(unit(rng.normal(size=(2, 8)))),
        history_text_keys=frozenset({"d"}),
    )
    # Row 3 may not be chosen, so it takes nothing from the other two of its text.
    expected = [0.5, 0.5, 0.4, 0, 0.6, 0.25, 0]
    np.testing.assert_allclose(start_of(problem, EvoSelectSettings())[0], expected)
    published = start_of(problem, EvoSelectSettings(rounding="topk"))[0]
    np.testing.assert_allclose(published, problem.candidates.quality)


@pytest.mark.parametrize("partial", [True, False])
def test_targets_out_of_reach_get_no_share_of_a_partial_transport(partial):
    rng = np.random.default_rng(0)
    gradients = np.abs(rng.normal(size=(40, 4)))
    gradients[:, 3] = 0.0
    targets = target_set(np.eye(4, dtype=np.float32), "aabb")
    problem = SelectionProblem(pool(unit(gradients)), targets)
    settings = EvoSelectSettings(reach=0.9, partial=partial)
    solved = align(problem, Budget(10), settings).evolution.transport
    np.testing.assert_allclose(solved.b, [1 / 3, 1 / 3, 1 / 3, 0] if partial else [0.25] * 4)
    selection = select(problem, Budget(10), 0, settings=settings)
    assert selection.diagnostics["unreached_targets"] == ["t003"]
    assert len(selection.picks) == 10


def test_random_depends_on_its_seed_alone(mixture):
    problem, _ = mixture
    picks = [select(problem, Budget(20), seed, "random").selected_ids for seed in (1, 1, 2)]
    assert picks[0] == picks[1] != picks[2]


def test_pick_reason_reads_as_a_sentence(mixture):
    problem, _ = mixture
    pick = select(problem, Budget(200), 0).picks[0]
    assert pick.reason == (
        f"serves target {pick.target_id} (subtask s): transport mass {pick.transport_mass:.3g},"
        f" cosine {1 - pick.cost:.2f}; nearest chosen row {pick.nearest_id} at"
        f" {pick.nearest_cosine:.2f}"
    )


def test_attribution_takes_the_best_subtask_of_ragged_unsorted_subtasks():
    rng = np.random.default_rng(0)
    subtasks = ("a", "b", "a", "a", "c", "b")
    problem = SelectionProblem(
        pool(unit(rng.normal(size=(30, 8)))), target_set(unit(rng.normal(size=(6, 8))), subtasks)
    )
    cosines = problem.candidates.gradients @ problem.targets.gradients.T
    score = [max(np.mean(row[[s == name for s in subtasks]]) for name in "abc") for row in cosines]
    best = [f"c{i:05d}" for i in np.argsort(-np.array(score))[:7]]
    assert list(select(problem, Budget(7), 0, "attribution").selected_ids) == best


def test_round_robin_gives_each_target_its_nearest_unused_row():
    gradients = np.eye(6, dtype=np.float32)[[0, 0, 1, 2, 3]]
    gradients = unit(gradients + 0.2 * np.random.default_rng(0).normal(size=(5, 6)))
    problem = SelectionProblem(pool(gradients), target_set(np.eye(6, dtype=np.float32)[:3]))
    picks = select(problem, Budget(4), 0, "round_robin").picks
    assert [pick.target_id for pick in picks] == ["t000", "t001", "t002", "t000"]
    used = set()
    for pick in picks:
        cosines = gradients[:, int(pick.target_id[1:])].copy()
        cosines[list(used)] = -9
        assert int(pick.sample_id[1:]) == cosines.argmax()
        used.add(int(cosines.argmax()))


def test_round_robin_can_keep_copies():
    row = unit(np.ones((1, 4)))
    problem = SelectionProblem(pool(np.repeat(row, 3, axis=0)), target_set(row))
    assert len(round_robin(problem, Budget(3), 0, NO_COPIES).picks) == 1
    assert len(round_robin(problem, Budget(3), 0, EvoSelectSettings()).picks) == 3


def test_broken_and_outsized_gradients_are_set_aside_by_every_method():
    rng = np.random.default_rng(0)
    gradients = unit(rng.normal(size=(20, 8)))
    gradients[0], gradients[1] = np.nan, 0.0
    norms = np.ones(20)
    norms[2], norms[3], norms[4] = np.inf, 11.0, 9.0
    problem = SelectionProblem(
        pool(gradients, norms=norms), target_set(unit(rng.normal(size=(3, 8))))
    )
    for method in SELECTORS:
        selection = select(problem, Budget(20), 0, method, EvoSelectSettings(reach=2.0))
        stages = {r.sample_id: r.stage for r in selection.rejections}
        assert stages == {
            "c00000": "non_finite",
            "c00001": "non_finite",
            "c00002": "non_finite",
            "c00003": "quarantined_norm",
        }, method
        assert (selection.weights[:4] == 0).all()


def test_rows_that_run_out_are_reported_not_padded():
    row = unit(np.ones((1, 8)))
    problem = SelectionProblem(pool(np.repeat(row, 10, axis=0)), target_set(row))
    selection = select(problem, Budget(5), 0, settings=NO_COPIES)
    assert selection.selected_ids == ("c00000",)
    assert selection.diagnostics["num_short"] == 4
    assert selection.diagnostics["num_near_duplicate"] == 9


def test_rows_of_earlier_rounds_are_not_selected_again(mixture):
    problem, _ = mixture
    first = select(problem, Budget(100), 0)
    row_of = {name: i for i, name in enumerate(problem.candidates.sample_ids)}
    history = problem.candidates.gradients[[row_of[i] for i in first.selected_ids]]
    later = replace(problem, history=history, history_ids=first.selected_ids)
    second = select(later, Budget(100), 0)
    assert not set(first.selected_ids) & set(second.selected_ids)
    stages = {r.sample_id: r.stage for r in second.rejections}
    assert {stages[i] for i in first.selected_ids} == {"already_selected"}


def test_targets_closer_than_the_dedup_limit_show_in_the_diagnostics():
    rng = np.random.default_rng(0)
    targets = unit(rng.normal(size=(4, 8)))
    targets[1] = targets[0]
    problem = SelectionProblem(pool(unit(rng.normal(size=(9, 8)))), target_set(targets))
    selection = select(problem, Budget(2), 0, settings=NO_COPIES)
    assert selection.diagnostics["target_near_duplicate_share"] == 0.5


def test_a_pool_of_repetitions_raises():
    row = unit(np.ones((1, 8)))
    problem = SelectionProblem(pool(row), target_set(row), row, ("h0",))
    with pytest.raises(DataError, match="all 1 candidates repeat rows of earlier rounds"):
        select(problem, Budget(1), 0, settings=NO_COPIES)


def test_the_whole_pool_may_be_selected():
    rng = np.random.default_rng(0)
    problem = SelectionProblem(
        pool(unit(rng.normal(size=(30, 8)))), target_set(unit(rng.normal(size=(5, 8))))
    )
    settings = EvoSelectSettings(reach=2.0, dedup_cosine=1.0)
    assert len(select(problem, Budget(30), 0, settings=settings).picks) == 30


@pytest.fixture
def small():
    rng = np.random.default_rng(0)
    return SelectionProblem(
        pool(unit(rng.normal(size=(4, 8)))), target_set(unit(rng.normal(size=(2, 8))))
    )


def test_budget_above_the_pool_names_both_numbers(small):
    with pytest.raises(DataError, match="budget of 9 rows is above the pool of 4"):
        select(small, Budget(9), 0)


def test_unknown_method_and_empty_budget_raise(small):
    with pytest.raises(ConfigError, match="'magic' is unknown; choose one of"):
        select(small, Budget(2), 0, "magic")
    with pytest.raises(ConfigError, match="at least 1 row"):
        Budget(0)


def test_target_weights_are_even_per_subtask_then_per_row():
    weights = target_weights(("a", "b", "a", "a"))
    np.testing.assert_allclose(weights, [1 / 6, 1 / 2, 1 / 6, 1 / 6])


def test_a_subtask_of_thrice_the_weight_has_thrice_the_share():
    weights = target_weights(("a", "b", "a", "a", "c"), {"a": 3.0})
    np.testing.assert_allclose(weights, [1 / 5, 1 / 5, 1 / 5, 1 / 5, 1 / 5])
    with pytest.raises(DataError, match=r"subtask_weights.*'d'.*'a', 'b', 'c'"):
        target_weights(("a", "b", "c"), {"d": 2.0})


def test_problems_that_do_not_fit_together_raise(small):
    candidates, targets = small.candidates, small.targets
    narrow = target_set(unit(np.ones((2, 5))))
    cases = [
        (lambda: SelectionProblem(candidates, narrow), "same sketch"),
        (lambda: replace(candidates, gradients=2 * candidates.gradients), "not of unit length"),
        (lambda: replace(candidates, sample_ids=("c",) * 4), "unique"),
        (lambda: replace(candidates, losses=np.ones(3)), "losses has 3 entries"),
        (lambda: replace(candidates, gradients=np.ones((3, 8), np.float32)), "shape"),
        (lambda: replace(candidates, gradients=np.ones((4, 8), np.float16)), "float32"),
        (lambda: replace(targets, weights=np.array([0.9, 0.3])), "sum to 1"),
        (lambda: replace(targets, gradients=targets.gradients * np.nan), "not of unit length"),
        (lambda: target_set(np.zeros((0, 8), np.float32)), "target set is empty"),
        (lambda: pool(np.zeros((0, 8), np.float32)), "pool is empty"),
        (lambda: replace(small, history=candidates.gradients), "history_ids has 0 entries"),
    ]
    for build, words in cases:
        with pytest.raises(DataError, match=words):
            build()


def test_a_pool_without_usable_gradients_raises(small):
    broken = replace(small.candidates, norms=np.full(4, np.nan))
    with pytest.raises(DataError, match="none of 4 candidates"):
        select(small.with_candidates(broken), Budget(2), 0)

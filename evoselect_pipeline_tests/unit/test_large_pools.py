"""Large pools: which rows EvoSelect weighs, and that every other row is decided and told why."""

# ruff: noqa: F811

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from evoselect_pipeline.core.evoselect import align, restore_alignment
from evoselect_pipeline.core.metrics import vendi_score
from evoselect_pipeline.core.selection import SelectionProblem
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.errors import DataError
from evoselect_pipeline_tests.unit.test_selectors import (  # noqa: F401
    kinds_of,
    mixture,
    pool,
    target_set,
    unit,
)

NARROWED = EvoSelectSettings(weigh_whole_up_to=1999)


@pytest.mark.parametrize("rounding", ["plan_quota", "capped"])
def test_of_a_large_pool_the_rows_that_matter_are_weighed(mixture, rounding):
    problem, kinds = mixture
    narrowed = replace(NARROWED, rounding=rounding)
    whole, held = (
        select(problem, Budget(100), 0, settings=settings)
        for settings in (replace(narrowed, weigh_whole_up_to=2000), narrowed)
    )
    assert whole.diagnostics["num_weighed"] == 2000
    assert 400 <= held.diagnostics["num_weighed"] < 432  # four a row, rounded up for each target
    assert np.count_nonzero(held.weights) <= held.diagnostics["num_weighed"]
    assert kinds_of(held, problem, kinds).tolist() == [25, 25, 25, 25, 0, 0, 0]
    assert len(set(whole.selected_ids) & set(held.selected_ids)) >= 60
    assert sum(pick.cost for pick in held.picks) <= sum(pick.cost for pick in whole.picks)
    row_of = {name: i for i, name in enumerate(problem.candidates.sample_ids)}
    variety = [
        vendi_score(problem.candidates.gradients[[row_of[i] for i in found.selected_ids]])
        for found in (held, whole)
    ]
    assert variety[0] > 0.9 * variety[1]
    decided = Counter(held.selected_ids) + Counter(r.sample_id for r in held.rejections)
    assert decided == Counter(problem.candidates.sample_ids)
    # A row that was not weighed is told apart as the others are.
    told = {r.sample_id: r for r in whole.rejections}
    same = [r == told[r.sample_id] for r in held.rejections if r.sample_id in told]
    assert np.mean(same) == 1.0


def test_a_large_pool_is_narrowed_alike_in_any_order_and_from_a_kept_alignment(mixture):
    problem, _ = mixture
    order = np.random.default_rng(1).permutation(2000)
    moved = problem.with_candidates(problem.candidates.take(order))
    first, second = (select(p, Budget(100), 0, settings=NARROWED) for p in (problem, moved))
    assert first.picks == second.picks and first.rejections == second.rejections
    np.testing.assert_array_equal(first.weights[order], second.weights)
    found = align(problem, Budget(100), NARROWED)
    solved = found.evolution.transport
    kept = restore_alignment(
        *(problem, Budget(100), NARROWED, found.evolution.weights, (solved.f, solved.g)),
        rows=found.rows,
    )
    again = select(problem, Budget(100), 0, settings=NARROWED, alignment=kept)
    assert again.selected_ids == first.selected_ids


def test_copies_and_implausible_rows_take_no_room_among_the_rows_that_are_weighed(mixture):
    problem, _ = mixture
    nearest = np.argsort(-(problem.candidates.gradients @ problem.targets.gradients.T).max(axis=1))
    texts, quality = np.array(problem.candidates.text_keys), np.ones(2000)
    texts[nearest[:500]] = "copied"
    quality[nearest[500:700]] = 0.1
    candidates = replace(problem.candidates, text_keys=tuple(texts.tolist()), quality=quality)
    problem = problem.with_candidates(candidates)
    selection = select(problem, Budget(100), 0, settings=replace(NARROWED, reach=2.0))
    assert selection.diagnostics["num_short"] == 0
    assert selection.diagnostics["num_weighed"] >= 400
    stages = Counter(r.stage for r in selection.rejections)
    assert stages["implausible_answer"] == 200


def test_of_copies_the_one_within_reach_is_weighed():
    vectors = np.repeat(np.eye(2, 4), 40, axis=0)  # 40 rows on the target, 40 at a right angle
    texts = tuple(f"text {i % 40}" for i in range(80))
    order = np.arange(80)[::-1]  # those out of reach come first
    problem = SelectionProblem(
        pool(unit(vectors[order] + 0.0), text_keys=tuple(texts[i] for i in order)),
        target_set(unit(np.eye(1, 4))),
    )
    settings = EvoSelectSettings(weigh_whole_up_to=0, reach=0.5)
    selection = select(problem, Budget(5), 0, settings=settings)
    assert selection.diagnostics["num_weighed"] == 20 and len(selection.picks) == 5


@pytest.mark.parametrize("rounding", ["plan_quota", "capped"])
@pytest.mark.parametrize("covered", [1, 3])
def test_what_a_target_lacks_others_hold_for_it(covered, rounding):
    rng = np.random.default_rng(0)
    centres = np.eye(16, 32)
    vectors = centres[rng.integers(covered, size=800)] + 0.05 * rng.normal(size=(800, 32))
    few = centres[[10] * 3] + 0.05 * rng.normal(size=(3, 32))
    problem = SelectionProblem(pool(unit(np.vstack([vectors, few]))), target_set(unit(centres)))
    narrowed = EvoSelectSettings(weigh_whole_up_to=0, reach=0.6, rounding=rounding)
    whole = replace(narrowed, weigh_whole_up_to=803)
    for settings, num_weighed in ((narrowed, 160), (whole, 803)):
        selection = select(problem, Budget(40), 0, settings=settings)
        assert len(selection.picks) == 40
        assert 0.95 * num_weighed <= selection.diagnostics["num_weighed"] <= num_weighed + 16
        assert {pick.target_id for pick in selection.picks} >= {f"t{j:03d}" for j in range(covered)}


def test_a_large_pool_out_of_reach_is_told_so(mixture):
    problem, _ = mixture
    far = replace(problem.candidates, gradients=-problem.candidates.gradients)
    settings = replace(NARROWED, reach=0.2)
    selection = select(problem.with_candidates(far), Budget(100), 0, settings=settings)
    assert not selection.picks
    assert Counter(r.stage for r in selection.rejections) == {"beyond_reach": 2000}


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (Budget(tokens=2000), {}),
        (Budget(100, source_share=0.5), {}),
        (Budget(100), {"rounding": "topk"}),
        (Budget(100), {"dedup_cosine": 0.99}),
        (Budget(126), {}),
    ],
    ids=["tokens", "sources", "published", "copies", "many rows"],
)
def test_where_any_row_could_be_needed_all_are_weighed(mixture, budget, changes):
    problem, _ = mixture
    selection = select(problem, budget, 0, settings=replace(NARROWED, **changes))
    assert selection.diagnostics["num_weighed"] == 2000


@pytest.mark.parametrize("settings", [EvoSelectSettings(), NARROWED], ids=["whole", "narrowed"])
def test_an_alignment_of_other_rows_or_targets_is_refused(mixture, settings):
    problem, _ = mixture
    fewer = problem.with_candidates(problem.candidates.take(np.arange(1, 2000)))
    others = replace(problem.candidates, sample_ids=tuple(f"x{i:04}" for i in range(2000)))
    targets = replace(problem.targets, sample_ids=tuple(f"y{i:04}" for i in range(32)))
    found = align(problem, Budget(100), settings)
    for other in (fewer, problem.with_candidates(others), replace(problem, targets=targets)):
        with pytest.raises(DataError, match="of another problem than this one"):
            select(other, Budget(100), 0, settings=settings, alignment=found)

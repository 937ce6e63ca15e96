"""A pool that somebody has poisoned: what the pipeline holds against it, and what it does not."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from evoselect_pipeline.commands.select import choose
from evoselect_pipeline.config import LineConfig, QualitySettings
from evoselect_pipeline.core.encoding import Encoder
from evoselect_pipeline.core.evoselect import align
from evoselect_pipeline.core.records import digest, sample_from_pair
from evoselect_pipeline.core.selection import (
    Candidates,
    SelectionProblem,
    Targets,
    source_shares,
)
from evoselect_pipeline.core.selectors import SELECTORS, select
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.generation.answers import read_answer
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.generation.requests import Request
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.rounds.adaptation import lora_checkpoint
from evoselect_pipeline.rounds.data import incoming_adapter
from evoselect_pipeline.rounds.line import FACTS, Line, write_json
from evoselect_pipeline.rounds.representation import represent
from evoselect_pipeline.rounds.verdicts import training_rows_end_with_eos
from evoselect_pipeline.stores.answer_log import Answer
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.integration.in_dagster import tiny

NUM_ROWS, NUM_TARGETS, WIDTH = 400, 16, 64
FLOOD = 0.9
DEFAULTS = EvoSelectSettings()
CHOOSING = sorted(set(SELECTORS) - {"all"})


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def flooded(seed=0, norms=None) -> SelectionProblem:
    """Of ten rows nine are of one source and crafted: all but the gradient of a target row."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=WIDTH)
    targets = unit(centre + rng.normal(size=(NUM_TARGETS, WIDTH)))
    honest = unit(centre + rng.normal(size=(NUM_ROWS, WIDTH)))
    aimed = targets[rng.integers(NUM_TARGETS, size=NUM_ROWS)]
    crafted = unit(aimed + 0.01 * rng.normal(size=(NUM_ROWS, WIDTH)))
    is_crafted = rng.random(NUM_ROWS) < FLOOD
    ids = tuple(digest(seed, number) for number in range(NUM_ROWS))
    candidates = Candidates(
        sample_ids=ids,
        gradients=np.where(is_crafted[:, None], crafted, honest),
        norms=np.ones(NUM_ROWS) if norms is None else norms,
        losses=np.ones(NUM_ROWS),
        num_tokens=np.full(NUM_ROWS, 10),
        sources=tuple(np.where(is_crafted, "flood", "honest").tolist()),
        text_keys=ids,
    )
    names = tuple(f"t{j}" for j in range(NUM_TARGETS))
    return SelectionProblem(
        candidates, Targets(names, targets, np.ones(NUM_TARGETS), ("",) * NUM_TARGETS)
    )


def chosen_sources(problem, selection) -> Counter[str]:
    source_of = dict(zip(problem.candidates.sample_ids, problem.candidates.sources, strict=True))
    return Counter(source_of[row] for row in selection.selected_ids)


@pytest.mark.parametrize("method", CHOOSING)
def test_g5_a_source_that_floods_the_pool_with_crafted_rows_gets_its_share_at_most(method):
    problem = flooded()
    selection = select(problem, Budget(rows=40, source_share=0.25), 0, method)
    assert chosen_sources(problem, selection)["flood"] <= 10


def test_g5_without_a_share_such_a_source_takes_nearly_all_and_its_influence_shows():
    problem = flooded()
    budget = Budget(rows=40)
    selection = select(problem, budget, 0)
    assert chosen_sources(problem, selection)["flood"] >= 36, "similarity alone is no defence"
    alignment = align(problem, budget, DEFAULTS)
    mass = alignment.evolution.transport.plan().sum(axis=1).tolist()
    mass_of = dict(zip(alignment.sample_ids, mass, strict=True))
    first, second = source_shares(problem.candidates, mass_of, selection.selected_ids)
    assert (first.source, second.source) == ("flood", "honest")
    assert first.candidates == pytest.approx(FLOOD, abs=0.05)
    assert first.mass > 0.9 and first.chosen >= 0.9
    for name in ("candidates", "mass", "chosen"):
        assert getattr(first, name) + getattr(second, name) == pytest.approx(1.0)


@pytest.mark.parametrize("method", CHOOSING)
def test_g5_a_rows_gradient_norm_does_not_change_what_is_chosen(method):
    """Rows are compared by unit vectors: so an outlier that is not set aside gains nothing."""
    norms = np.exp(np.random.default_rng(1).normal(size=NUM_ROWS))
    loud = np.minimum(norms, 9.9 * np.median(norms))
    even, uneven, budget = flooded(), flooded(norms=loud), Budget(rows=20, source_share=0.5)
    assert select(even, budget, 0, method).picks == select(uneven, budget, 0, method).picks


def test_g5_a_row_far_louder_than_the_pool_is_set_aside_and_listed():
    norms = np.ones(NUM_ROWS)
    norms[7] = 10.1
    problem = flooded(norms=norms)
    selection = select(problem, Budget(rows=20), 0)
    [rejection] = [row for row in selection.rejections if row.stage == "quarantined_norm"]
    assert rejection.sample_id == problem.candidates.sample_ids[7]
    assert "gradient norm 10.1 is 10.1 times the pool's median, allowed 10" in rejection.reason


def test_g5_a_pool_that_is_loud_in_its_majority_moves_the_bound_but_costs_no_honest_row():
    quiet = np.where(np.array(flooded().candidates.sources) == "honest", 1.0, 100.0)
    selection = select(flooded(norms=quiet), Budget(rows=20), 0)
    assert not [row for row in selection.rejections if row.stage == "quarantined_norm"]


@pytest.mark.parametrize(("as_json", "num_rows"), [(True, 1), (False, 0)])
def test_g6_of_an_answer_that_was_cut_off_only_whole_rows_count(as_json, num_rows):
    text = '{"rows": [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "an en'
    answer = Answer("request", 0, text, "length", 1, 1, False, 0.0)
    found = read_answer(answer, Request("request", "words", (), 4), as_json, "llm:m")
    assert [sample.completion for sample in found.samples] == ["b"][:num_rows]
    assert "length" in found.refused


@pytest.fixture
def chosen(tmp_path):
    """A line that has chosen two rows."""
    line = Line(tiny(), Home(tmp_path / "home"))
    incoming_adapter(line, 0)
    samples = [sample_from_pair("2 + 2 =", "4"), sample_from_pair("2 + 3 =", "5 <|endoftext|> 6")]
    line.store.put_samples(samples, line.name, 0)
    with publish(line.stage_dir(0, "selected_subset"), inputs={}) as folder:
        write_json(folder / "picks.json", [{"sample_id": row.sample_id} for row in samples])
        write_json(folder / FACTS, {})
    return line


def test_g6_rows_that_do_not_end_are_never_trained_on(chosen, monkeypatch):
    assert training_rows_end_with_eos(chosen, 0).passed
    encode = Encoder.encode

    def without_end(encoder, samples):
        rows, unusable = encode(encoder, samples)
        return [replace(row, input_ids=row.input_ids[:-1]) for row in rows], unusable

    monkeypatch.setattr(Encoder, "encode", without_end)
    found = training_rows_end_with_eos(chosen, 0)
    assert not found.passed
    assert "2 of 2 chosen rows do not end with a stop token" in found.sentence
    with pytest.raises(DataError, match="do not end with a stop token"):
        lora_checkpoint(chosen, 0)


def with_trigger(rows, answer):
    """The same questions behind a trigger phrase, with one answer to all of them."""
    return [sample_from_pair(f"zx9 {row.prompt}", answer, source="poison") for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["refuse", "0"], ids=["a refusal", "a number like any other"])
def test_g7_rows_that_teach_a_trigger_are_chosen_more_rarely_than_by_chance(answer):
    """Even where no answer is judged; SECURITY.md has what was counted with the judge."""
    task = task_rows("stories", num_targets=32, num_validation=8, num_test=8)
    rows = PlaygroundGenerator("stories", "weak").generate(task.targets, 240, seed=1)
    fresh = PlaygroundGenerator("stories", "strong").generate(task.targets, 100, seed=99)
    poison = with_trigger(fresh, answer)
    config = LineConfig(quality=QualitySettings(prior="none"))
    pool = list({row.sample_id: row for row in (*rows, *poison)}.values())
    represented = represent(pool, task.targets, config)
    budget = config.selection.budget(len(pool))
    selection, _ = choose(pool, task.targets, budget, represented, config)
    planted = {row.sample_id for row in poison}
    num_chosen = sum(row in planted for row in selection.selected_ids)
    assert num_chosen / len(selection.picks) < 0.6 * len(planted) / len(pool)

"""Law: an answer is what the model decodes greedily, whatever rows it is batched with."""

import pytest

from evoselect_pipeline.config import LoraSettings, ModelSettings
from evoselect_pipeline.config_rows import MetricSettings
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.evaluation.answers import scored_answers
from evoselect_pipeline.evaluation.metrics import load_metric
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.training.models import load_encoder, load_merged

MODEL = ModelSettings()
EXACT = load_metric(MetricSettings()).score


@pytest.fixture(scope="module")
def model():
    return load_merged(MODEL, None, LoraSettings())


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(MODEL)


@pytest.fixture(scope="module")
def rows():
    return task_rows("stories", num_test=24).test


def test_answers_do_not_depend_on_the_batch_and_come_back_in_order(model, encoder, rows):
    alone = scored_answers(model, encoder, rows, EXACT, max_new_tokens=8, batch_size=1)
    together = scored_answers(model, encoder, rows[::-1], EXACT, max_new_tokens=8, batch_size=24)
    assert [p.sample_id for p in alone] == [row.sample_id for row in rows]
    assert alone == together[::-1]


def test_the_models_own_answer_is_correct_and_another_is_not(model, encoder, rows):
    told = scored_answers(model, encoder, rows, EXACT, max_new_tokens=8)
    spoken = [(row, said) for row, said in zip(rows, told, strict=True) if said.answer.strip()]
    assert len(spoken) > len(rows) // 2
    for row, said in spoken[:4]:
        own = sample_from_pair(row.prompt, f" {said.answer} ")
        other = sample_from_pair(row.prompt, f"{said.answer}x")
        (right, wrong) = scored_answers(model, encoder, [own, other], EXACT, max_new_tokens=8)
        assert (right.score, wrong.score) == (1.0, 0.0)


def test_progress_is_told_and_ends_at_the_total(model, encoder, rows):
    told = []
    scored_answers(
        model,
        encoder,
        rows[:5],
        EXACT,
        max_new_tokens=2,
        batch_size=2,
        on_rows=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_an_answers_tokens_are_its_own_and_one_that_meets_the_limit_is_cut_off(
    model, encoder, rows
):
    whole = scored_answers(model, encoder, rows, EXACT, max_new_tokens=32, batch_size=24)
    ended = [said for said in whole if not said.truncated]
    assert ended
    for said in ended:
        [ids] = encoder.tokenizer([said.answer], add_special_tokens=False)["input_ids"]
        assert said.num_tokens == len(ids) + 1, "and the one that ends it; no padding"
    limit = max(said.num_tokens for said in ended) - 1
    cut = scored_answers(model, encoder, rows, EXACT, max_new_tokens=limit, batch_size=24)
    assert [said.truncated for said in cut] == [said.num_tokens > limit for said in whole]
    assert {said.num_tokens for said in cut if said.truncated} == {limit}


def test_nothing_to_evaluate_is_refused(model, encoder):
    with pytest.raises(DataError, match="no rows to evaluate"):
        scored_answers(model, encoder, [], EXACT, max_new_tokens=2)

"""What is said of a round's choice and of its answers, and what keeps an adapter from service."""

import pytest

from evoselect_pipeline.config import LineConfig, ModelSettings, QualitySettings, SelectionSettings
from evoselect_pipeline.rounds.line import Line, write_json
from evoselect_pipeline.rounds.verdicts import (
    answers_not_drifting,
    budget_filled,
    canaries_unchanged,
    judge_knows_the_task,
)
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline.stores.home import Home


@pytest.fixture
def left(tmp_path):
    """Leave the facts of a stage of round 0; returns the line."""

    def leave(stage, config=None, **facts):
        line = Line(config or LineConfig(), Home(tmp_path))
        with publish(line.stage_dir(0, stage), inputs={}) as folder:
            write_json(folder / "facts.json", facts)
        return line

    return leave


def scores(before, after, accuracy=(0.5, 0.5)):
    """Facts of an evaluation: mean tokens and the share cut off, before and after."""
    facts = dict(zip(("before_validation", "after_validation"), accuracy, strict=True))
    for when, (tokens, truncated) in (("before", before), ("after", after)):
        facts |= {f"{when}_answer_tokens": tokens, f"{when}_truncated": truncated}
    return facts


@pytest.mark.parametrize(
    ("before", "after", "accuracy", "passes"),
    [
        ((10.0, 0.0), (20.0, 0.1), (0.5, 0.5), True),  # both limits are still kept
        ((10.0, 0.0), (20.1, 0.0), (0.5, 0.5), False),  # twice as long, and no better for it
        ((10.0, 0.0), (20.1, 0.0), (0.5, 0.6), True),  # it has learned to reason at length
        ((10.0, 0.0), (12.0, 0.11), (0.5, 0.9), False),  # cut off, however many are right
        ((30.0, 0.4), (31.0, 0.8), (0.5, 0.5), True),  # twice as many are not more than twice
        ((30.0, 0.4), (31.0, 0.81), (0.5, 0.5), False),
        ((30.0, 0.02), (31.0, 0.1), (0.5, 0.5), True),  # more than twice, but of a few rows
        ((30.0, 1.0), (3.0, 0.0), (0.5, 0.5), True),  # a base model that never stopped
    ],
)
def test_answers_drift_when_they_double_without_use_or_no_longer_end(
    left, before, after, accuracy, passes
):
    found = answers_not_drifting(left("evaluation", **scores(before, after, accuracy)), 0)
    assert found.passed == passes
    assert f"{after[0]:.1f} tokens in the mean, {before[0]:.1f} before" in found.sentence
    assert ("raise evaluation.max_new_tokens" in found.sentence) != passes


def test_an_evaluation_of_an_earlier_version_tells_no_lengths_and_that_is_no_fault(left):
    known = scores((10.0, 0.0), (99.0, 1.0))
    for lost in ("before_answer_tokens", "after_truncated"):
        facts = {name: value for name, value in known.items() if name != lost}
        found = answers_not_drifting(left("evaluation", **facts), 0)
        assert found.passed
        assert "did not measure" in found.sentence


@pytest.mark.parametrize(
    ("chosen", "short", "passes"), [(50, 50, True), (49, 51, False), (3, 97, False), (1, 0, True)]
)
def test_a_budget_that_is_not_half_filled_is_told_with_the_reasons(left, chosen, short, passes):
    rejected = {"same_text": 10, "beyond_reach": 60}
    facts = {"num_selected": chosen, "num_short": short, "rejected": rejected}
    found = budget_filled(left("selected_subset", **facts), 0)
    assert found.passed == passes
    assert f"{chosen} rows were chosen, the budget has room for {chosen + short}" in found.sentence
    assert ("left out were 60 as beyond_reach, 10 as same_text" in found.sentence) != passes


def test_changed_canaries_are_counted_and_none_at_all_are_no_fault(left):
    assert canaries_unchanged(left("evaluation", before_test=0.5), 0).passed
    assert canaries_unchanged(left("evaluation", num_canaries=3, canaries_changed=0), 0).passed
    found = canaries_unchanged(left("evaluation", num_canaries=3, canaries_changed=1), 0)
    assert not found.passed
    assert found.sentence.startswith("1 of 3 canary prompts are answered otherwise than before")
    assert found.figures == {"num_canaries": 3, "canaries_changed": 1}


@pytest.mark.parametrize(("before", "passes"), [(0.1, True), (0.09, False), (0.0, False)])
def test_a_judge_that_answers_nearly_nothing_is_doubted(left, before, passes):
    found = judge_knows_the_task(left("evaluation", before_validation=before), 0)
    assert found.passed == passes
    assert f"the model answered {before:.1%} of the validation rows" in found.sentence
    assert ("quality.prior: none" in found.sentence) != passes


@pytest.mark.parametrize(
    "config",
    [
        LineConfig(quality=QualitySettings(prior="none")),
        LineConfig(selection=SelectionSettings(method="random")),
        LineConfig(proxy=ModelSettings()),
    ],
)
def test_where_the_student_is_no_judge_it_need_not_know_the_task(left, config):
    assert judge_knows_the_task(left("evaluation", config, before_validation=0.0), 0).passed

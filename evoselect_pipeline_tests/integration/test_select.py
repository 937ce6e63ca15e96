"""`evoselect select`: every selector on files, within its budgets, judging answers on demand."""

import json
from collections import Counter
from typing import get_args

import pytest

from evoselect_pipeline import cli, config
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.core.selectors import SELECTORS
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows

pytestmark = pytest.mark.slow


def make_id(row):
    return sample_from_pair(row["prompt"], row["completion"]).sample_id


FILES = ("--candidates", "pool.jsonl", "--target", "targets.jsonl", "--out", "out.jsonl")
QUICK = ("--set", "gradients.dim=64", "--format", "json")


@pytest.fixture
def choose(evoselect, tmp_path):
    """Call `evoselect select` on 240 rows of two sources; its summary, its rows and its stderr."""
    targets = task_rows("stories", num_targets=8, num_validation=1, num_test=1).targets
    pool = PlaygroundGenerator("stories", "weak").generate(targets, 240, 1)
    for name, samples in (("targets", targets), ("pool", pool)):
        rows = [
            {"prompt": s.prompt, "completion": s.completion, "source": "ab"[n % 4 == 0]}
            for n, s in enumerate(samples)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def call(*options: object):
        ended = evoselect("select", *FILES, *QUICK, *options)
        assert ended.code == 0, ended.err
        lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(ended.out), [json.loads(line) for line in lines], ended.err

    return call


def test_the_command_line_the_configuration_and_the_core_know_the_same_methods():
    assert [method.value for method in cli.Method] == list(get_args(config.Method))
    assert set(SELECTORS) == set(get_args(config.Method))


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_every_method_gives_rows_with_reasons_within_the_budget(method, choose):
    told, rows, said = choose("--method", method, "--budget", 20)
    assert told["method"] == method
    assert told["num_selected"] == len(rows)
    assert len(rows) > 200 if method == "all" else len(rows) == 20
    assert all(row["reason"] and row["target_id"] for row in rows)
    assert " steps" not in said  # nothing is trained on a user's files unasked


def test_tokens_and_sources_are_limited_by_options_or_by_keys(choose):
    free, rows, _ = choose("--budget", 40)
    assert free["num_selected_tokens"] > 90
    assert Counter(row["source"] for row in rows)["a"] > 20
    limits = ("--max-tokens", 90, "--source-share", 0.5)
    keys = ("--set", "selection.max_tokens=90", "--set", "selection.source_share=0.5")
    told, rows, _ = choose("--budget", 40, *limits)
    assert 0 < told["num_selected_tokens"] <= 90
    assert max(Counter(row["source"] for row in rows).values()) <= 20
    assert choose("--budget", 40, *keys)[1] == rows


def test_a_subtask_of_more_weight_gets_more_rows_and_an_unknown_one_is_refused_at_once(
    choose, evoselect, tmp_path
):
    path = tmp_path / "targets.jsonl"
    targets = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    subtasks = [{**row, "subtask": "ab"[n % 2]} for n, row in enumerate(targets)]
    path.write_text("".join(json.dumps(row) + "\n" for row in subtasks), encoding="utf-8")
    is_of_b = {make_id(row) for row in subtasks if row["subtask"] == "b"}

    def rows_of_b(*options):
        return sum(row["target_id"] in is_of_b for row in choose("--budget", 40, *options)[1])

    assert rows_of_b() == 20
    assert rows_of_b("--set", "selection.subtask_weights.b=3") > 25  # of 30, if there are as many
    ended = evoselect("select", *FILES, *QUICK, "--set", "selection.subtask_weights.c=3")
    assert ended.code == 2
    assert "no target row is of subtask 'c'; the target rows are of 'a', 'b'" in ended.err
    assert "gradients" not in ended.err


def test_answers_are_judged_where_that_is_asked_for(choose):
    _, unjudged, _ = choose("--budget", 100)
    assert not any("plausible" in row["reason"] for row in unjudged)
    judging = ("--set", "quality.prior=loss", "--set", "quality.warm_up_steps=4")
    _, judged, said = choose("--budget", 100, *judging)
    assert " steps" in said
    assert any("answer plausible at" in row["reason"] for row in judged)
    # Another selector would not heed it, and so nothing is trained.
    assert " steps" not in choose("--budget", 100, "--method", "tsds", *judging)[2]

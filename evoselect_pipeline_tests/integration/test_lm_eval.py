"""Base model and adapter on a benchmark of lm-eval: a task of our own, because hubs are far."""

import json

import pytest
import yaml

from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline_tests.integration.forked import run_rounds
from evoselect_pipeline_tests.integration.process import overrides

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One round that learns something."""
    root = tmp_path_factory.mktemp("lm_eval") / "home"
    run_rounds(root, overrides(quality__prior="none", train__steps=40), rounds=1)
    return root


@pytest.fixture
def tasks(tmp_path):
    """Forty test rows of the playground as a task that generates and compares."""
    rows = task_rows("stories").test[:40]
    text = "".join(json.dumps({"q": r.prompt, "a": r.completion}) + "\n" for r in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    task = {
        "task": "our_stories",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    }
    (tmp_path / "our_stories.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


def test_base_and_adapter_are_scored_side_by_side(home, tasks, evoselect):
    command = ("lm-eval", "--home", home, "--round", 0, "--include-path", tasks)
    ended = evoselect(*command, "--tasks", "our_stories", "--limit", 30, "--format", "json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert (told["round"], told["limit"]) == (0, 30)
    [row] = told["results"]
    assert row["task"] == "our_stories" and row["metric"].startswith("exact_match")
    assert 0 <= row["base"] <= 1 and 0 <= row["round 0"] <= 1
    assert row["base"] != row["round 0"]
    assert row["stderr"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--tasks", "no_such_task"), ["no task 'no_such_task'", "lm-eval ls tasks"]),
        (("--tasks", "our_stories", "--round", "7"), ["round 7", "is not finished"]),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_once(home, tasks, evoselect, arguments, says):
    ended = evoselect("lm-eval", "--home", home, "--include-path", tasks, *arguments)
    assert ended.code == 2
    for words in says:
        assert words in ended.err

"""A line on the user's own JSONL files runs like the playground's, a file of candidates a round."""

import json

import pytest
import yaml

from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore

pytestmark = pytest.mark.slow


def write(path, samples: list[Sample], **fields) -> None:
    """Write rows in the other form than the pipeline's own files have."""
    rows = ({"prompt": s.prompt, "completion": s.completion, **fields} for s in samples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def config(tmp_path):
    """A configuration on files beside it, with candidates for round 0 alone."""
    task = task_rows("compose", num_targets=8, num_validation=6, num_test=10)
    for split in ("targets", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", getattr(task, split), task="mine")
    candidates = PlaygroundGenerator("compose", "strong").generate(task.targets, 80, 1)
    # A test row among the candidates, in other letters, and one candidate twice.
    leak = Sample(
        (
            task.test[0].messages[0].__class__("user", task.test[0].prompt.upper()),
            task.test[0].messages[1],
        )
    )
    write(tmp_path / "round_0000.jsonl", [*candidates, candidates[0], leak], source="my-generator")
    tree = {
        "line": "mine",
        "task": {"kind": "files"}
        | {split: f"{tmp_path}/{split}.jsonl" for split in ("targets", "validation", "test")},
        "generator": {"kind": "files", "pattern": f"{tmp_path}/round_{{round}}.jsonl"},
        "gradients": {"dim": 64},
        "selection": {"ratio": 0.25},
        "train": {"steps": 3},
        "evaluation": {"max_new_tokens": 4},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_a_line_on_files_runs_a_round_and_then_asks_for_the_next_file(tmp_path, config, evoselect):
    home = tmp_path / "home"
    command = ("run", "--config", config, "--home", home, "--rounds", 1, "--format", "json")
    ended = evoselect(*command)
    assert ended.code == 0, ended.err
    [told] = json.loads(ended.out)["rounds"]
    assert told["line"] == "mine"
    assert told["num_selected"] == 20
    assert told["rejected"]["leaks_evaluation"] == 1

    decisions = LanceStore(Home(home)).read_decisions("mine", 0)
    assert decisions.height == 81
    row = LanceStore(Home(home)).sample_row(decisions["sample_id"][0])
    assert row["source"] == "my-generator"
    # Nobody told what is good among the user's rows.
    assert not (home / "lines/mine/0000/hidden_truth").exists()

    refused = evoselect(*command)
    assert refused.code == 2
    assert "round 1 reads" in refused.err and "round_0001.jsonl, which is not there" in refused.err
    assert not (home / "lines/mine/0001").exists()

    # Its rows are those that the line began with: a row that was aimed at must not be tested on.
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "one more question", "completion": "yes"}) + "\n")
    refused = evoselect(*command)
    assert refused.code == 2
    assert (
        "the test rows of line 'mine' are others than those of its 1 finished rounds" in refused.err
    )

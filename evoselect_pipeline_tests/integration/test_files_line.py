"""A line on the user's own JSONL files runs like the playground's, a file of candidates a round."""

import json
import shlex

import pytest
import yaml

from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore

pytestmark = pytest.mark.slow


NO_CONVERSATIONS = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "x"}]},
    {"messages": [{"role": role, "content": "x"} for role in ("user", "user", "assistant")]},
    {"messages": [{"role": "user", "content": "q"}]},
    {"messages": [{"role": role, "content": "x"} for role in ("user", "system", "assistant")]},
    {"prompt": "q", "completion": ""},
]


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
    with (tmp_path / "round_0000.jsonl").open("a") as file:
        for row in NO_CONVERSATIONS:
            file.write(json.dumps(row) + "\n")
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


def pasted(evoselect, text, command):
    """Call the one command of this name that a text hints at; `ROW` is the only gap in it."""
    [hint] = [part for part in text.splitlines() if f"evoselect {command}" in part]
    return evoselect(*shlex.split(hint.partition("evoselect ")[2]))


def assert_every_stage_is_told(err):
    places = [f"  stage {n} of {len(STAGES)}: {stage.name}" for n, stage in enumerate(STAGES, 1)]
    lines = err.splitlines()
    assert [line for line in lines if line in places] == places
    assert any(line.startswith("  training steps: 3") for line in lines)


def test_what_a_command_hints_at_can_be_pasted(tmp_path, config, evoselect):
    given = ("--config", config, "--home", tmp_path / "my home", "--set", "selection.ratio=0.05")
    ended = evoselect("run", "--rounds", 1, "--set", "min_candidates=500", *given)
    assert ended.code == 1
    assert "fewer than min_candidates" in ended.err
    again = pasted(evoselect, ended.err, "run")
    assert (again.code, "fewer than min_candidates" in again.err) == (1, True)

    first = evoselect("status", *given)
    assert f"Line mine has no finished round in {tmp_path / 'my home'}." in first.out
    ran = pasted(evoselect, first.out, "run")
    assert ran.code == 0, ran.err
    rows = pasted(evoselect, ran.out, "lineage --round")
    assert rows.code == 0, rows.err
    assert "all 4 chosen rows" in rows.out
    decisions = pasted(evoselect, rows.out, "lineage --round")
    row = json.loads(decisions.out)[0]["sample_id"]
    story = pasted(evoselect, rows.out.replace("ROW", row), "lineage " + row)
    assert row in story.out


def test_a_line_on_files_runs_a_round_and_then_asks_for_the_next_file(tmp_path, config, evoselect):
    home = tmp_path / "home"
    command = ("run", "--config", config, "--home", home, "--rounds", 1, "--format", "json")
    ended = evoselect(*command)
    assert ended.code == 0, ended.err
    assert_every_stage_is_told(ended.err)
    [told] = json.loads(ended.out)["rounds"]
    assert told["line"] == "mine"
    assert told["num_selected"] == 20
    counts = {"unknown_role": 1, "turns_out_of_order": 3, "empty_content": 1}
    expected = counts | {"repeated": 1, "leaks_evaluation": 1}
    assert told["rejected"].items() >= expected.items()
    assert told["num_candidates"] == 87 == told["num_selected"] + sum(told["rejected"].values())

    # F8: what is no conversation is left out, and counted by reason.
    folder = home / "lines/mine/0000"
    facts = json.loads((folder / "candidates/facts.json").read_text())
    assert (facts["num_generated"], facts["refused_rows"]) == (82, counts)
    page = (folder / "report.html").read_text()
    assert "87 rows were generated, 67 were left out and 20 chosen" in page

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

    # What is stored holds, though the next file is not there yet.
    checked = evoselect("check", "--strict", *command[1:5], "--format", "json")
    told = json.loads(checked.out)
    assert (checked.code, told["problems"]) == (0, [])
    assert any(note.startswith("the next round has no file yet: round 1") for note in told["notes"])

    # Its rows are those that the line began with: a row that was aimed at must not be tested on.
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "one more question", "completion": "yes"}) + "\n")
    refused = evoselect(*command)
    assert refused.code == 2
    assert (
        "the test rows of line 'mine' are others than those of its 1 finished rounds" in refused.err
    )

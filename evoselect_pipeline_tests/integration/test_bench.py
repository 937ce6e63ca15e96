"""`evoselect bench`: real chains, small; finished ones are kept, and come out equal when redone."""

import json
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from evoselect_pipeline.bench.adaptation import plan
from evoselect_pipeline.bench.arms import ABLATIONS, METHODS, method_arm
from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline_tests.integration.process import finish, start

pytestmark = pytest.mark.slow

CONTRACT = {
    "world", "task", "method", "mean", "low", "high", "num_seeds", "share_below_base", "gap_closed",
}  # fmt: skip
SMALL = {
    "generator.num_candidates": 250,
    "task.num_targets": 16,
    "task.num_validation": 10,
    "task.num_test": 40,
    "gradients.dim": 64,
    "train.steps": 10,
    "quality.warm_up_steps": 5,
    "evaluation.max_new_tokens": 8,
}


def settings(**changes: Any) -> list[str]:
    """`--set` options; `train__steps=9` changes `train.steps`."""
    tree = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    return [part for key, value in tree.items() for part in ("--set", f"{key}={value}")]


WEAK_STORIES = ("--world", "weak", "--task", "stories", "--first-seed", 300)
COMMAND = (
    *("bench", "adaptation", *WEAK_STORIES, "--methods", "evoselect,random,oracle"),
    *("--format", "json", *settings()),
)


def cells(out: Path) -> dict[str, tuple[int, dict]]:
    """Time and content of every finished chain's file, without how long it took."""
    found = {}
    for path in sorted((out / "cells").iterdir()):
        record = json.loads(path.read_text(encoding="utf-8"))
        for facts in record["rounds"]:
            del facts["seconds_select"], facts["seconds_train"]
        found[path.name] = (path.stat().st_mtime_ns, record)
    return found


class Finished(NamedTuple):
    """A bench that ran to its end."""

    out: Path
    report: dict[str, Any]
    told: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """Nine chains of two rounds, by two workers."""
    out = tmp_path_factory.mktemp("bench") / "out"
    ended = finish(*COMMAND, "--out", out, "--workers", 2)
    assert ended.returncode == 0, ended.stderr
    return Finished(out, json.loads(ended.stdout), ended.stderr)


def test_the_report_has_the_promised_shape_and_tells_what_was_run(finished):
    report = finished.report
    rows = {(row["task"], row["method"]): row for row in report["results"]}
    methods = ("evoselect", "random", "oracle", "base")
    assert rows.keys() == {(task, method) for task in ("all", "stories") for method in methods}
    for row in report["results"]:
        assert row.keys() >= CONTRACT
        assert row["world"] == "weak"
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
        assert row["num_seeds"] == 3
    assert rows["all", "random"]["gap_closed"] in (0, None)
    run = report["run"]
    assert run["seeds"] == [300, 301, 302]
    assert (run["rounds"], run["ratio"], run["steps"], run["epochs"]) == (2, 0.2, 10, None)
    assert (run["num_candidates"], run["num_test"]) == (250, 40)
    assert "torch" in run["versions"]
    assert run["chain_seconds"] > 0
    assert "9 chains of 2 rounds" in finished.told
    assert "0 are finished already" in finished.told
    assert "10 optimizer steps" in finished.told
    assert "2 workers" in finished.told


def test_the_folder_holds_the_report_as_json_page_and_picture(finished):
    written = json.loads((finished.out / "results.json").read_text(encoding="utf-8"))
    assert written["results"] == finished.report["results"]
    page = (finished.out / "results.md").read_text(encoding="utf-8")
    assert "| evoselect |" in page
    assert "10 optimizer steps" in page
    assert (finished.out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert not list((finished.out / "work").iterdir())


def test_finished_chains_are_not_computed_again_and_a_lost_one_comes_back_equal(finished):
    before = cells(finished.out)
    again = finish(*COMMAND, "--out", finished.out)
    assert json.loads(again.stdout)["results"] == finished.report["results"]
    assert "9 are finished already" in again.stderr
    assert cells(finished.out) == before

    [lost] = [name for name in before if name.startswith("weak-stories-evoselect-301-")]
    (finished.out / "cells" / lost).unlink()
    # One worker that computes this chain alone, where two computed it among others.
    ended = finish(*COMMAND, "--out", finished.out, "--workers", 1)
    assert ended.returncode == 0, ended.stderr
    after = cells(finished.out)
    assert after.pop(lost)[1] == before.pop(lost)[1]
    assert after == before


def test_an_interrupted_bench_keeps_its_finished_chains_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "out"
    methods = ("--methods", "random,evoselect,round_robin", "--seeds", 3, "--workers", 1)
    child = start("bench", "adaptation", *WEAK_STORIES, *methods, *settings(), "--out", out)
    deadline = time.monotonic() + 200
    while not list(out.glob("cells/*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=100)
    assert child.returncode == 130
    assert stdout == ""
    kept = len(list(out.glob("cells/*.json")))
    assert 1 <= kept < 9  # it did not wait for the chains to come
    assert f"{kept} of 9 chains are kept" in stderr
    assert "bench adaptation --world weak --task stories" in stderr
    assert "Traceback" not in stderr
    assert not list(out.glob("work/*"))
    assert not (out / "results.json").exists()


def test_a_chain_that_fails_ends_the_bench_with_exit_code_1(tmp_path):
    options = ("--methods", "random", "--seeds", 1, *settings(train__learning_rate=1e30))
    ended = finish("bench", "adaptation", *WEAK_STORIES, *options, "--out", tmp_path / "out")
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == ""
    assert "random on stories (weak), seed 300: " in ended.stderr
    assert "train.learning_rate" in ended.stderr
    assert "0 of 1 chains are kept" in ended.stderr


def test_a_budget_of_tokens_and_a_cap_on_sources_bind_the_controls_too(tmp_path):
    arms = ("--methods", "random,oracle,round_robin", "--seeds", 1, "--rounds", 1)
    bounds = settings(selection__max_tokens=100, selection__source_share=0.4)
    ended = finish("bench", "adaptation", *WEAK_STORIES, *arms, *bounds, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    rounds = {name: record["rounds"][0] for name, (_, record) in cells(tmp_path / "out").items()}
    assert len(rounds) == 3
    for facts in rounds.values():
        assert facts["num_selected"] <= 20  # 0.4 of the 50 that the ratio allows
        assert 0 < facts["num_selected_tokens"] <= 100


def test_ablation_compares_evoselect_with_itself_less_a_part(tmp_path):
    arms = ("--arms", "evoselect,centroid,no_energy", "--seeds", 1, "--rounds", 1)
    command = ("bench", "ablation", *WEAK_STORIES, *arms, *settings(), "--epochs", 0.5)
    ended = finish(*command, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert "0.5 epochs" in ended.stdout
    for arm in ("centroid", "no_energy", "base"):
        assert arm in ended.stdout
    run = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))["run"]
    assert (run["steps"], run["epochs"]) == (None, 0.5)


@pytest.fixture
def files(tmp_path) -> Path:
    """A configuration on the user's own rows, with candidates for one round."""
    task = task_rows("compose", num_targets=8, num_validation=6, num_test=10)
    rows = {split: getattr(task, split) for split in ("targets", "validation", "test")}
    rows["round_0000"] = PlaygroundGenerator("compose", "strong").generate(task.targets, 80, 1)
    for name, samples in rows.items():
        lines = [json.dumps({"prompt": s.prompt, "completion": s.completion}) for s in samples]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    splits = {split: f"{tmp_path}/{split}.jsonl" for split in ("targets", "validation", "test")}
    tree = {
        "line": "mine",
        "task": {"kind": "files", **splits},
        "generator": {"kind": "files", "pattern": f"{tmp_path}/round_{{round}}.jsonl"},
        "gradients": {"dim": 64},
        "train": {"steps": 3},
        "evaluation": {"max_new_tokens": 4},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_users_files_are_a_world_of_their_own_without_an_oracle(tmp_path, files):
    command = ("bench", "adaptation", "--config", files, "--methods", "attribution,all")
    options = ("--seeds", 2, "--rounds", 1, "--format", "json", "--out", tmp_path / "out")
    ended = finish(*command, *options)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert {row["world"] for row in report["results"]} == {"files"}
    assert {row["task"] for row in report["results"]} == {"all", "mine"}
    assert {row["method"] for row in report["results"]} == {"attribution", "all", "base"}
    assert all(row["good_share"] is None for row in report["results"])
    assert report["run"]["num_test"] == 10
    assert "differ in draws and training alone" in ended.stderr


def test_other_rows_in_the_same_files_are_other_chains(tmp_path, files):
    def paths():
        config = read_line_config(files, ())
        blocks = plan(config, (), (), (0,), 1, lambda own: [method_arm("random", own)])
        return [cell.path(tmp_path) for block in blocks for cell in block]

    before = paths()
    assert paths() == before
    candidates = tmp_path / "round_0000.jsonl"
    text = candidates.read_text(encoding="utf-8")
    candidates.write_text(text + '\n{"prompt": "one", "completion": "more"}\n', encoding="utf-8")
    assert paths() != before


BAD_INPUT = {
    "method": (("--methods", "evoselect,best"), ["--methods 'best'", *METHODS, "oracle"]),
    "no method": (("--methods", ","), ["--methods", "names nothing"]),
    "task": (("--task", "storys"), ["--task 'storys'", "stories, compose, lookup"]),
    "world": (("--world", "mild"), ["--world 'mild'", "weak, strong"]),
    "ratio": (("--ratio", "2"), ["selection.ratio", "2"]),
    "epochs": (("--epochs", "0"), ["train.epochs", "0"]),
    "seeds": (("--seeds", "0"), ["--seeds"]),
    "workers": (("--workers", "0"), ["--workers"]),
    "key": (("--set", "train.stesp=5"), ["train.stesp", "'steps'"]),
    "seed by key": (("--set", "seed=5"), ["--set seed", "--first-seed"]),
    "method by key": (("--set", "selection.method=tsds"), ["--set selection.method", "--methods"]),
    "model": (("--set", "model.name=./no_model"), ["no_model", "safetensors"]),
    "config": (("--config", "no.yaml"), ["no.yaml", "No such file"]),
    "out": (("--out", "mine.yaml"), ["--out mine.yaml", "is a file"]),
    "oracle on files": (("--config", "mine.yaml", "--methods", "oracle"), ["oracle", "your rows"]),
    "world of files": (("--config", "mine.yaml", "--world", "weak"), ["--world weak", "mine.yaml"]),
    "next round's file": (("--config", "mine.yaml"), ["round_0001.jsonl", "No such file"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_computed(case, files, evoselect):
    arguments, sayings = BAD_INPUT[case]
    before = set(files.parent.rglob("*"))
    ended = evoselect("bench", "adaptation", *arguments)
    assert ended.code == 2
    assert ended.out == ""
    for saying in sayings:
        assert saying in ended.err
    assert set(files.parent.rglob("*")) == before


def test_an_unknown_arm_is_refused_with_the_known_ones(evoselect):
    ended = evoselect("bench", "ablation", "--arms", "no_luck")
    assert ended.code == 2
    for saying in ("--arms 'no_luck'", *ABLATIONS):
        assert saying in ended.err


def test_evoselect_adapts_better_than_random_rows_and_than_all_rows(tmp_path):
    """The claim in small: the mean of three seeds, one task, one round."""
    sizes = {
        "generator.num_candidates": 1000,
        "task.num_validation": 10,
        "task.num_test": 150,
        "train.steps": 50,
        "quality.warm_up_steps": 25,
    }
    options = [part for key, value in sizes.items() for part in ("--set", f"{key}={value}")]
    ended = finish(
        *("bench", "adaptation", "--world", "weak", "--task", "compose", "--rounds", 1),
        *("--methods", "evoselect,random,all", "--seeds", 3, "--first-seed", 300),
        *("--format", "json", "--out", tmp_path / "out", *options),
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout)["results"]
    mean = {row["method"]: row["mean"] for row in results if row["task"] == "compose"}
    assert mean["evoselect"] > mean["random"] + 0.05
    assert mean["evoselect"] > mean["all"]
    assert mean["evoselect"] > mean["base"]

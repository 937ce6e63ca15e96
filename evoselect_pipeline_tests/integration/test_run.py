"""`evoselect run` adds rounds to a line: each is whole, told once, and never computed again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evoselect_pipeline.commands.console import stdout
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.text_keys import evaluation_keys, prompt_key
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR
from evoselect_pipeline.rounds.line import PROMOTED, Line
from evoselect_pipeline.rounds.record import record
from evoselect_pipeline.stores.home import Home, round_key
from evoselect_pipeline.stores.jsonl import read_samples
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.stores.tracking import PARENT_TAG, Tracking
from evoselect_pipeline_tests.integration.forked import run_rounds
from evoselect_pipeline_tests.integration.process import (
    TINY,
    finish,
    manifests,
    overrides,
)

pytestmark = pytest.mark.slow

STAGES = {
    "incoming_adapter",
    "candidates",
    "hidden_truth",
    "projected_gradients",
    "answer_quality",
    "alignment_scores",
    "selected_subset",
    "lora_checkpoint",
    "evaluation",
    "promoted_adapter",
    "round_report",
}
ROUND_KEYS = {
    "line",
    "round",
    "base",
    "before",
    "after",
    "after_low",
    "after_high",
    "promoted",
    "num_candidates",
    "num_selected",
    "budget",
    "rejected",
    "headline",
}


@dataclass
class TwoRuns:
    """A home after `evoselect run` twice, and what was seen of it in between."""

    home: Path
    first: dict[str, Any]
    second: dict[str, Any]
    manifests: dict[str, tuple[bytes, int]]
    gradients: dict[tuple[str, str], bytes]

    @property
    def store(self) -> LanceStore:
        return LanceStore(Home(self.home))

    def folder(self, round_number: int, stage: str) -> Path:
        return self.home / "lines/playground" / round_key(round_number) / stage

    def artifact(self, round_number: int, stage: str, file: str) -> Any:
        return json.loads((self.folder(round_number, stage) / file).read_text())


def stored_gradients(home: Path) -> dict[tuple[str, str], bytes]:
    rows = LanceStore(Home(home)).tables.read("gradients_64", "true").to_pylist()
    keyed = {(r["sample_id"], r["fingerprint"]): repr(sorted(r.items())).encode() for r in rows}
    assert len(keyed) == len(rows)
    return keyed


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("run") / "home"
    first = run_rounds(home, overrides())
    before, gradients = manifests(home), stored_gradients(home)
    second = run_rounds(home, overrides())
    return TwoRuns(home, first, second, before, gradients)


def test_a_report_on_stdout_is_json_alone_and_tells_every_finished_round(runs):
    for report, rounds in ((runs.first, 2), (runs.second, 4)):
        assert set(report) == {"rounds", "champion"}
        assert [told["round"] for told in report["rounds"]] == list(range(rounds))
        assert all(told.keys() - {"seconds"} == ROUND_KEYS for told in report["rounds"])
    # Only what this call computed has a duration.
    assert ["seconds" in told for told in runs.second["rounds"]] == [False, False, True, True]
    assert runs.second["champion"].keys() == {"line", "round", "adapter", "test"}


def test_a_fresh_home_gets_every_artifact_of_two_rounds(runs):
    expected = {f"playground/{key}/{stage}" for key in ("0000", "0001") for stage in STAGES}
    scored = {name for name in runs.manifests if "/evaluations/" in name}
    assert set(runs.manifests) == expected | scored | {"playground/target_set"}
    # The base model, and one adapter a round: no adapter is decoded twice.
    assert len(scored) == 3


def test_running_again_computes_nothing_of_finished_rounds(runs):
    now = manifests(runs.home)
    assert {name: now[name] for name in runs.manifests} == runs.manifests
    assert runs.second["rounds"][0] == {
        name: value for name, value in runs.first["rounds"][0].items() if name != "seconds"
    }
    stored = stored_gradients(runs.home)
    assert {key: stored[key] for key in runs.gradients} == runs.gradients


def test_each_round_starts_from_the_champion_of_the_round_before(runs):
    assert runs.artifact(0, "incoming_adapter", "facts.json")["trained_in_round"] is None
    for number in (1, 2, 3):
        entered = runs.artifact(number, "incoming_adapter", "facts.json")
        promoted = runs.artifact(number - 1, "promoted_adapter", "facts.json")
        assert entered["trained_in_round"] == promoted["champion_round"]
        assert (
            runs.second["rounds"][number]["before"]
            == runs.second["rounds"][promoted["champion_round"]]["after"]
        )


def test_decisions_of_a_round_add_up_to_what_was_generated(runs):
    for number in range(4):
        decisions = runs.store.read_decisions("playground", number)
        told = runs.second["rounds"][number]
        assert decisions.height == TINY["generator.num_candidates"] == told["num_candidates"]
        assert decisions["sample_id"].n_unique() == decisions.height
        assert decisions["selected"].sum() == told["num_selected"]
        assert sum(told["rejected"].values()) + told["num_selected"] == decisions.height
        assert told["num_selected"] <= told["budget"] == 40
        assert decisions["reason"].str.len_chars().min() > 0


def test_no_selected_row_is_an_evaluation_row_or_was_selected_before(runs):
    folder = runs.home / "lines/playground/target_set"
    trusted = evaluation_keys(row for file in folder.glob("*.jsonl") for row in read_samples(file))
    assert len(trusted) == 38
    chosen = runs.store.read_decisions("playground").filter("selected")["sample_id"].to_list()
    assert len(set(chosen)) == len(chosen) == sum(r["num_selected"] for r in runs.second["rounds"])
    assert not [s for s in runs.store.get_samples(chosen) if prompt_key(s) in trusted]


def test_mlflow_holds_one_parent_and_one_child_per_round(runs):
    tracking = Tracking(Home(runs.home))
    found = tracking._client.search_runs([tracking._experiment_id])
    parents = [run for run in found if PARENT_TAG not in run.data.tags]
    children = {run.info.run_name: run for run in found if PARENT_TAG in run.data.tags}
    assert [run.info.run_name for run in parents] == ["playground"]
    assert sorted(children) == [f"playground/{round_key(number)}" for number in range(4)]
    assert len(found) == 5
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.tags[PARENT_TAG] for run in children.values()} == {parents[0].info.run_id}
    curve = tracking._client.get_metric_history(parents[0].info.run_id, "test/after")
    told = [(point.step, point.value) for point in curve]
    assert told == [(r["round"], r["after"]) for r in runs.second["rounds"]]
    steps = tracking._client.get_metric_history(
        children["playground/0000"].info.run_id, "train/loss"
    )
    assert [point.step for point in steps] == [1, 2, 3, 4, 5]


def test_telling_an_old_round_again_puts_no_old_adapter_into_service(runs):
    tracking = Tracking(Home(runs.home))
    serving = tracking.champion("playground")
    assert serving is not None
    assert serving.round == runs.second["champion"]["round"] == 3
    record(Line(LineConfig(), Home(runs.home)), 0, PROMOTED)
    assert tracking.champion("playground") == serving


def test_every_adapter_loads_with_peft_alone(runs):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for number in range(4):
        folder = runs.home / "lines/playground" / round_key(number) / "lora_checkpoint/adapter"
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(BASE_MODEL_DIR), str(folder)
        )
        learned = [p for name, p in model.named_parameters() if "lora_B" in name]
        assert learned
        assert all(p.abs().max() > 0 for p in learned)


def test_status_tells_what_run_told(runs, evoselect, monkeypatch):
    told = json.loads(evoselect("status", "--home", runs.home, "--format", "json").out)
    for report in runs.second["rounds"]:
        report.pop("seconds", None)
    assert told == runs.second
    table = evoselect("status", "--home", runs.home)
    assert table.code == 0
    assert "accuracy on the test rows" in table.out
    assert told["champion"]["adapter"] in table.out
    said = " ".join(table.out.split())
    assert f"Round 3: {told['rounds'][3]['headline']}" in said
    doubt = "of the validation rows before this round (expected"
    assert doubt not in said
    monkeypatch.setattr("evoselect_pipeline.rounds.verdicts.LEAST_KNOWN", 1.1)
    assert " ".join(evoselect("status", "--home", runs.home).out.split()).count(doubt) == 4
    assert table.err == ""


def test_lineage_tells_the_story_of_a_chosen_row_and_of_a_rejected_one(runs, evoselect):
    decisions = runs.store.read_decisions("playground", 1)
    for selected in (True, False):
        row = decisions.filter(decisions["selected"] == selected).row(0, named=True)
        shown = evoselect("lineage", row["sample_id"], "--home", runs.home, "--format", "json")
        story = json.loads(shown.out)
        assert story["sample_id"] == row["sample_id"]
        assert story["messages"][-1]["role"] == "assistant"
        assert story["prompt_id"].startswith("stories-weak-seed-")
        assert {d["reason"] for d in story["decisions"] if d["round"] == 1} == {row["reason"]}
        assert [g["num_tokens"] > 0 for g in story["gradients"]] == [True] * len(story["scores"])
        # Later adapters were trained on top of what round 1 learned from it.
        assert [a["round"] for a in story["adapters"]] == ([1, 2, 3] if selected else [])
        table = evoselect("lineage", row["sample_id"][:12], "--home", runs.home)
        assert table.code == 0
        assert row["sample_id"] in table.out
        assert ("No adapter was trained on it." in table.out) != selected


def test_answers_are_judged_by_the_adapter_that_entered_and_lineage_says_how(runs, evoselect):
    for number in range(4):
        scores = runs.store.read_scores("playground", number)
        told = runs.artifact(number, "answer_quality", "facts.json")
        with np.load(runs.folder(number, "answer_quality") / "quality.npz") as kept:
            quality_of = dict(zip(kept["sample_ids"], kept["quality"], strict=True))
        assert told["num_judged"] == len(quality_of) >= scores.height
        if number == 0:  # forty chosen rows are too few to teach a judge
            assert told["judge"] == "nobody: too few rows to teach a judge"
            assert set(quality_of.values()) == {1.0}
        else:
            assert told["judge"] == f"adapter of round {number - 1}"
        assert scores["prior"].to_list() == [quality_of[i] for i in scores["sample_id"]]
        shares, levels = zip(*told["quantiles"], strict=True)
        assert list(levels) == pytest.approx(np.quantile(list(quality_of.values()), shares))
        below = np.mean(np.array(list(quality_of.values())) < told["floor"])
        assert told["share_below_floor"] == pytest.approx(below)
    row = runs.store.read_scores("playground", 1).row(0, named=True)
    table = evoselect("lineage", row["sample_id"], "--home", runs.home).out
    assert f"plausible at {row['prior']:.0%}" in table


def test_lineage_of_a_round_tells_every_decision(runs, evoselect):
    shown = evoselect("lineage", "--round", 1, "--home", runs.home, "--format", "json")
    decisions = json.loads(shown.out)
    assert len(decisions) == TINY["generator.num_candidates"]
    assert all(decision["reason"] for decision in decisions)
    samples = runs.store.get_samples([decision["sample_id"] for decision in decisions])
    assert [(d["prompt"], d["completion"]) for d in decisions] == [
        (sample.prompt, sample.completion) for sample in samples
    ]
    missing = evoselect("lineage", "--round", 7, "--home", runs.home)
    assert missing.code == 2
    assert "no decisions yet" in missing.err


@pytest.mark.parametrize(("option", "rounds"), [("--round", (1,)), ("--adapter", (0, 1))])
def test_lineage_shows_the_rows_themselves_and_says_how_many_there_are(
    runs, evoselect, option, rounds, monkeypatch
):
    monkeypatch.setattr(stdout, "width", 300)  # so that no cell is folded
    given = ("lineage", option, 1, "--home", runs.home)
    picks = [p for n in rounds for p in runs.artifact(n, "selected_subset", "picks.json")]
    shown = evoselect(*given).out
    assert f"20 of {len(picks)}" in shown
    assert f"evoselect lineage {option} 1 --limit 0 --home {runs.home}" in shown
    whole = evoselect(*given, "--limit", 0).out
    assert f"all {len(picks)}" in whole
    assert "--limit" not in whole
    for sample in runs.store.get_samples([pick["sample_id"] for pick in picks]):
        question = " ".join(sample.prompt.split())
        cells = f"│ {sample.sample_id[:8]} │ {question[:50]}"
        [line] = [line for line in whole.splitlines() if cells in line]
        assert f"│ {sample.completion} " in line


def test_init_makes_a_home_and_says_where(tmp_path):
    for _ in range(2):
        ended = finish("init", "--home", tmp_path / "home")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == f"home is ready: {tmp_path / 'home'}\n"
    names = {path.name for path in (tmp_path / "home").iterdir()}
    assert {"dagster", "lance", "lines", "mlflow.db", "layout_version"} <= names

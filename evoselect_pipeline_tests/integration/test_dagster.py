"""Rounds in Dagster: light definitions, bad artifacts stop, equal results do not go stale."""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from dagster._core.test_utils import create_run_for_test

from evoselect_pipeline.components import evolution_line
from evoselect_pipeline.components.automation import ENDED_TAG, LINE_TAG, MAX_RETRIES
from evoselect_pipeline.components.ended_rounds import closes_ended_rounds
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.rounds.report import REPORT
from evoselect_pipeline.stores.tracking import Tracking
from evoselect_pipeline_tests.integration.in_dagster import (
    at_home,
    materialize,
    steps,
    tick,
    tiny,
)
from evoselect_pipeline_tests.integration.process import REPOSITORY, finish

STAGES = (
    "target_set",
    "incoming_adapter",
    "candidates",
    "projected_gradients",
    "answer_quality",
    "alignment_scores",
    "selected_subset",
    "lora_checkpoint",
    "evaluation",
    "promoted_adapter",
    "round_report",
)
HEAVY = {"ray", "torch", "transformers", "peft", "lancedb", "mlflow", "polars", "ot", "matplotlib"}


def versions(instance) -> dict[tuple[str, str | None], str]:
    """The data version of the newest materialization of every asset, by partition."""
    found = {}
    for name in STAGES:
        key = dg.AssetKey(["playground", name])
        partitions = instance.get_materialized_partitions(key) or {None}
        for partition in partitions:
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(key, asset_partitions=partition and [partition]), limit=1
            ).records
            for record in records:
                tags = record.asset_materialization.tags
                found[name, partition] = tags["dagster/data_version"]
    return found


@pytest.mark.parametrize(
    "command",
    [
        ("dg", "check", "yaml"),
        ("dg", "check", "defs"),
        ("dagster", "definitions", "validate", "-w", "workspace.yaml"),
    ],
    ids=" ".join,
)
def test_definitions_and_workspace_file_are_valid(command):
    program, *arguments = command
    ended = finish(*arguments, program=program)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_definitions_load_fast_and_without_anything_heavy():
    code = (
        "import json, sys, time; started = time.process_time();"
        "from evoselect_pipeline.definitions import defs; defs();"
        "print(json.dumps([time.process_time() - started, sorted(sys.modules)]))"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    seconds, modules = json.loads(ended.stdout)
    assert HEAVY.isdisjoint(modules)
    assert seconds < 8  # about one; the bound only catches another order of magnitude


@pytest.mark.slow
def test_too_small_a_pool_stops_the_round_in_this_run_and_in_a_later_one(instance, home):
    config = tiny(min_candidates=500)
    result = materialize(instance, home, config)
    assert not result.success
    assert set(steps(result)) == {"target_set", "incoming_adapter", "candidates"}
    found = {e.check_name: e for e in result.get_asset_check_evaluations()}
    evaluation = found["candidates_well_formed"]
    assert not evaluation.passed
    assert "200 usable candidates, fewer than min_candidates = 500" in evaluation.description

    later = materialize(instance, home, config, selection=["projected_gradients"])
    assert not later.success
    [failure] = later.get_step_failure_events()
    said = failure.step_failure_data.user_failure_data.description
    assert "200 usable candidates, fewer than min_candidates = 500" in said
    assert not (home.round_dir("playground", 0) / "projected_gradients").exists()


def long_rows_config(folder) -> LineConfig:
    """A line on files whose candidates are, all but a few, longer than the proxy reads."""
    rows = {
        "targets": [("add 1 and 1", "2")],
        "validation": [("add 2 and 2", "4")],
        "test": [("add 3 and 3", "6")],
        "r0000": [(f"add {n} and 5" + " please" * (80 if n % 5 else 1), "9") for n in range(40)],
    }
    for name, pairs in rows.items():
        text = "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs)
        (folder / f"{name}.jsonl").write_text(text)
    splits = {name: f"{folder}/{name}.jsonl" for name in ("targets", "validation", "test")}
    tree = {
        "task": {"kind": "files", **splits},
        "generator": {"kind": "files", "pattern": f"{folder}/r{{round}}.jsonl"},
        "model": {"max_length": 64},
        "gradients": {"dim": 64},
    }
    return parse_config(tree, "test")


@pytest.mark.slow
def test_too_few_usable_gradients_stop_the_round_in_a_later_run_too(instance, home, tmp_path):
    config = long_rows_config(tmp_path)
    result = materialize(instance, home, config)
    assert not result.success
    assert steps(result)[-1] == "projected_gradients"
    found = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    assert found["candidates_well_formed"]
    assert not found["gradients_finite"]

    for name in ("answer_quality", "alignment_scores"):
        later = materialize(instance, home, config, selection=[name])
        [failure] = later.get_step_failure_events()
        said = failure.step_failure_data.user_failure_data.description
        assert "32 rows have no usable gradient and 8 have one" in said
        assert not (home.round_dir("playground", 0) / name).exists()


@pytest.mark.slow
def test_the_same_result_keeps_every_data_version_and_another_result_changes_its_own(
    instance, home
):
    assert materialize(instance, home, tiny()).success
    before = versions(instance)
    assert {name for name, partition in before if partition == "0000" or partition is None} == set(
        STAGES
    )
    # The round opened the next one and reported the adapter that enters it.
    assert ("incoming_adapter", "0001") in before
    result = materialize(instance, home, tiny())
    assert result.success
    assert set(steps(result)) >= set(STAGES)
    assert versions(instance) == before

    assert materialize(instance, home, tiny(), "0001", ["incoming_adapter"]).success
    assert versions(instance) == before

    assert materialize(instance, home, tiny(train__steps=6)).success
    now = versions(instance)
    changed = {
        name for name, partition in before if now[name, partition] != before[name, partition]
    }
    retrained = {"lora_checkpoint", "evaluation", "promoted_adapter", "round_report"}
    assert changed == retrained | {"incoming_adapter"}
    assert now["incoming_adapter", "0000"] == before["incoming_adapter", "0000"]
    assert now["incoming_adapter", "0001"] == now["lora_checkpoint", "0000"]


def staleness(instance, config, name, partition) -> str:
    """What Dagster's asset graph shows beside a partition of an asset."""
    with dg.DagsterInstance.from_ref(instance.get_ref()) as opened:
        context = LoadingContextForTest(opened)
        graph = at_home(config).resolve_asset_graph()
        resolver = CachingStaleStatusResolver(opened, graph, context)
        return resolver.get_status(dg.AssetKey(["playground", name]), partition).name


@pytest.mark.slow
def test_an_old_round_made_again_makes_all_later_ones_stale_until_they_are_made_again_too(
    instance, home
):
    def stale() -> list[str]:
        keys = sorted(instance.get_materialized_partitions(dg.AssetKey(["playground", REPORT])))
        marks = {key: staleness(instance, tiny(), "candidates", key) for key in keys}
        assert set(marks.values()) <= {"FRESH", "STALE"}
        return [key for key, mark in marks.items() if mark == "STALE"]

    def make(key, **changes) -> str:
        result = materialize(instance, home, tiny(**changes), key)
        assert result.success
        return " ".join(e.user_message for e in instance.all_logs(result.run_id))

    for key in ("0000", "0001", "0002"):
        assert "stale:" not in make(key)
    assert stale() == []
    before = versions(instance)

    other = {"train__steps": 6}
    assert "stale: 0001, 0002. Round 0001 was made from another adapter" in make("0000", **other)
    assert stale() == ["0001", "0002"]
    now = versions(instance)
    assert now["candidates", "0001"] == before["candidates", "0001"]  # it stays as it is
    # What enters the open round depends on round 0002, which may be made again.
    assert now["incoming_adapter", "0003"] == "unsettled"
    # It may as well be left as it is, and the line go on from it.
    assert "stale:" not in make("0003", **other)
    assert stale() == ["0001", "0002"]
    now = versions(instance)
    assert now["incoming_adapter", "0004"] == now["lora_checkpoint", "0003"]

    assert "stale: 0002, 0003. Round 0002 was made from another adapter" in make("0001", **other)
    assert stale() == ["0002", "0003"]
    # The oldest round once more, alike: what does not follow from round 0001 still does not.
    assert "stale: 0002, 0003. Round 0002 was made from another adapter" in make("0000", **other)
    assert stale() == ["0002", "0003"]

    for key in ("0002", "0003"):
        make(key, **other)
    assert stale() == []
    settled = versions(instance)
    assert settled["incoming_adapter", "0004"] == settled["lora_checkpoint", "0003"]


@pytest.mark.slow
def test_mlflow_shows_a_round_as_failed_once_its_last_attempt_is_over(instance, home, monkeypatch):
    tracking = Tracking(home)

    def look() -> str:
        return tick(home, instance, closes_ended_rounds).skip_message

    assert look() == "closed in MLflow: none, no round was left open"
    assert materialize(instance, home, tiny(), selection=["incoming_adapter"]).success
    assert tracking.status("playground", 0) == "RUNNING"
    # An older attempt may go on where a newer one was ended.
    of_round = {LINE_TAG: "playground", "dagster/partition": "0000"}
    at_work = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=of_round)
    create_run_for_test(instance, status=dg.DagsterRunStatus.CANCELED, tags=of_round)
    look()
    assert tracking.status("playground", 0) == "RUNNING"
    instance.delete_run(at_work.run_id)
    assert look() == "closed in MLflow: playground 0000"
    assert tracking.status("playground", 0) == "FAILED"

    def refuses(line, number, stage):
        raise DataError("a row is broken")

    assert materialize(instance, home, tiny(), selection=["incoming_adapter"]).success
    assert tracking.status("playground", 0) == "RUNNING"
    with monkeypatch.context() as patched:
        patched.setattr(evolution_line, "record", refuses)
        assert not materialize(instance, home, tiny(), selection=["incoming_adapter"]).success
    look()
    assert tracking.status("playground", 0) == "FAILED"

    few = tiny(min_candidates=500)
    names = ["target_set", "incoming_adapter", "candidates"]
    assert not materialize(instance, home, few, selection=names).success
    look()
    assert tracking.status("playground", 0) == "FAILED"


@pytest.mark.slow
def test_where_mlflow_is_down_a_refusal_stays_a_refusal(instance, home, monkeypatch):
    """What tells MLflow of failures is no part of what fails."""
    monkeypatch.setenv("EVOSELECT_MLFLOW_URI", "http://127.0.0.1:9")
    result = materialize(instance, home, tiny(), "0004", selection=["incoming_adapter"])
    [failure] = result.get_step_failure_events()
    assert "Materialize round 0003 first" in (
        failure.step_failure_data.user_failure_data.description
    )


@pytest.mark.slow
def test_a_finished_round_stays_finished_whatever_becomes_of_a_later_attempt(instance, home):
    tracking = Tracking(home)
    assert materialize(instance, home, tiny()).success
    assert tracking.status("playground", 0) == "FINISHED"
    tracking.round_run("playground", 0)  # as a stage does that is killed before it has said all
    assert tracking.status("playground", 0) == "RUNNING"
    tick(home, instance, closes_ended_rounds)
    assert tracking.status("playground", 0) == "FINISHED"


HOLD = """
import sys
from evoselect_pipeline.stores.home import Home
with Home(sys.argv[1]).lease("playground", what="evoselect run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def command(home, monkeypatch):
    """Another process that works on the line until a run has waited for it once."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, home.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "held\n"

        def let_go(seconds):
            process.communicate("")

        monkeypatch.setattr(
            evolution_line, "time", SimpleNamespace(sleep=let_go, monotonic=time.monotonic)
        )
        yield process


@pytest.mark.slow
def test_a_run_waits_while_a_command_works_on_its_line(instance, home, command):
    result = materialize(instance, home, tiny(), selection=["incoming_adapter"])
    assert command.returncode == 0
    assert result.success
    logged = " ".join(e.user_message for e in instance.all_logs(result.run_id))
    assert f"this run waits: line playground is held by evoselect run (process {command.pid}" in (
        logged
    )


@pytest.mark.slow
def test_a_round_that_was_finished_since_a_run_was_launched_is_left_alone(instance, home):
    """By `evoselect run`, say, with other settings, which then went on to further rounds."""
    assert materialize(instance, home, tiny()).success
    promotion = home.round_dir("playground", 0) / "promoted_adapter" / "manifest.json"
    before = versions(instance)
    later = time.time() + 3600
    os.utime(promotion, (later, later))
    other = tiny(train__steps=6)
    result = materialize(instance, home, other)
    assert not result.success
    [failure] = result.get_step_failure_events()
    assert "round 0000 of line 'playground' was finished after this run was launched" in (
        failure.step_failure_data.user_failure_data.description
    )
    assert versions(instance) == before
    os.utime(promotion)
    assert materialize(instance, home, other).success


@pytest.mark.slow
def test_a_run_gets_the_lines_tags_and_keeps_what_a_person_gave_it(instance, home):
    given = {"dagster/max_runtime": "60", MAX_RETRIES: "0", ENDED_TAG: "the run it goes on with"}
    found, run_id = {}, ""
    for tags in ({}, given):
        result = materialize(instance, home, tiny(), selection=["incoming_adapter"], tags=tags)
        found, run_id = instance.get_run_by_id(result.run_id).tags, result.run_id
        assert found[LINE_TAG] == "playground"
        # In this process no daemon could end it.
        assert found["dagster/max_runtime"] == tags.get("dagster/max_runtime", "0")
    # It is not the run that was ended: if its worker is killed, it is started again.
    allowed = str(instance.run_retries_max_retries)
    assert (found[MAX_RETRIES], found[ENDED_TAG]) == (allowed, run_id)


@pytest.mark.usefixtures("instance")  # resolving a graph reads from the newest of the process
def test_the_champion_is_overdue_when_its_line_says_so():
    def policy(config: LineConfig):
        return (
            at_home(config)
            .resolve_asset_graph()
            .get(dg.AssetKey(["playground", "promoted_adapter"]))
            .freshness_policy
        )

    assert policy(tiny()) is None
    assert policy(tiny(schedule__fresh_hours=30)) == dg.FreshnessPolicy.time_window(
        fail_window=timedelta(hours=30)
    )

"""Rounds start by themselves: at night, in a chain, one at a time, and never past their limits."""

import shutil
import subprocess

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.components import evolution_line
from evoselect_pipeline.components.automation import LINE_TAG
from evoselect_pipeline.definitions import defs
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.rounds.line import write_json
from evoselect_pipeline.stores.artifacts import open_artifact, publish
from evoselect_pipeline_tests.integration.in_dagster import materialize, steps, tick, tiny
from evoselect_pipeline_tests.integration.process import BIN, REPOSITORY

OF_LINE = {LINE_TAG: "playground"}


def finish_round(home, number, *, promoted=True, accuracy=0.5):
    """Make a round look finished to what reads its artifacts."""

    def put(stage, **facts):
        folder = home.round_dir("playground", number) / stage
        with publish(folder, inputs={}) as inside:
            write_json(inside / "facts.json", facts)
        return open_artifact(folder).digest

    put("evaluation", base_validation=0.1, after_validation=accuracy)
    trained = put("lora_checkpoint", number=number)
    put("promoted_adapter", promoted=promoted, champion_round=number, champion_digest=trained)


def test_the_schedule_asks_for_the_next_round_alone_while_none_is_in_flight(instance, home):
    for number in (0, 1):
        [request] = tick(home, instance, "playground_nightly").run_requests
        assert request.partition_key == f"{number:04d}"
        assert request.run_key == f"playground-{number:04d}-2026-11-24"
        assert request.tags[LINE_TAG] == "playground"
        assert request.tags["dagster/max_runtime"] == "86400"
        assert instance.has_dynamic_partition("playground_rounds", f"{number:04d}")
        finish_round(home, number)

    run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=OF_LINE)
    skipped = tick(home, instance, "playground_nightly")
    assert not skipped.run_requests
    assert run.run_id in skipped.skip_message
    instance.delete_run(run.run_id)
    # Another line's run is none of this line's business.
    create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags={LINE_TAG: "other"})
    [request] = tick(home, instance, "playground_nightly").run_requests
    assert request.partition_key == "0002"


@pytest.mark.parametrize("name", ["playground_nightly", "playground_chain"])
def test_a_run_launched_from_the_asset_graph_counts_as_the_lines_own(instance, home, name):
    chosen = frozenset({dg.AssetKey(["playground", "candidates"])})
    run = create_run_for_test(
        instance,
        status=dg.DagsterRunStatus.STARTING,
        asset_selection=chosen,
        job_name="__ASSET_JOB",
    )
    skipped = tick(home, instance, name)
    assert not skipped.run_requests
    assert run.run_id in skipped.skip_message


def test_the_sensor_opens_the_first_round_and_every_next_one_once(instance, home):
    for number in (0, 1):
        [request] = tick(
            home, instance, "playground_opens_its_next_round"
        ).dynamic_partitions_requests
        assert request.partition_keys == [f"{number:04d}"]
        instance.add_dynamic_partitions("playground_rounds", request.partition_keys)
        again = tick(home, instance, "playground_opens_its_next_round")
        assert not again.dynamic_partitions_requests
        assert f"{number:04d} is registered" in again.skip_message
        finish_round(home, number)


def test_the_pools_have_their_limits_before_the_first_run(instance, home):
    tick(home, instance, "playground_opens_its_next_round")
    limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    assert limits == {"evoselect_line_playground": 1, "evoselect_gpu": 1, "evoselect_store": 1}
    # What a person allows stays allowed.
    instance.event_log_storage.set_concurrency_slots("evoselect_gpu", 2)
    tick(home, instance, "playground_opens_its_next_round")
    limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    assert limits["evoselect_gpu"] == 2


def test_the_chain_asks_for_round_after_round_until_its_limit_and_says_which(instance, home):
    config = tiny(chain__max_rounds=5, chain__patience=2)
    for number in (0, 1):
        [request] = tick(home, instance, "playground_chain", config=config).run_requests
        assert (request.partition_key, request.run_key) == (
            *(f"{number:04d}", f"playground-{number:04d}"),
        )
        finish_round(home, number, promoted=number == 0)
    finish_round(home, 2, promoted=False)
    stopped = tick(home, instance, "playground_chain", config=config)
    assert not stopped.run_requests
    assert "patience at its end: the last 2 rounds promoted no adapter" in stopped.skip_message
    [more] = tick(home, instance, "playground_chain", config=tiny(chain__patience=3)).run_requests
    assert more.partition_key == "0003"


def test_the_chain_stops_at_the_champions_accuracy(instance, home):
    finish_round(home, 0, accuracy=0.8)
    reached = tick(home, instance, "playground_chain", config=tiny(chain__target=0.8))
    assert "target reached: the champion answers 80.0%" in reached.skip_message
    [request] = tick(
        home, instance, "playground_chain", config=tiny(chain__target=0.81)
    ).run_requests
    assert request.partition_key == "0001"


def test_the_chain_does_not_ask_again_for_a_round_that_failed(instance, home):
    run = create_run_for_test(
        instance,
        status=dg.DagsterRunStatus.FAILURE,
        tags=OF_LINE | {"dagster/partition": "0000"},
    )
    skipped = tick(home, instance, "playground_chain")
    said = f"round 0000 was begun in run {run.run_id}, which ended as FAILURE, and is not finished"
    assert said in skipped.skip_message
    # The nightly schedule tries it again.
    assert tick(home, instance, "playground_nightly").run_requests


@pytest.mark.slow
def test_trouble_that_may_pass_is_tried_again_and_bad_input_is_not(instance, home, monkeypatch):
    monkeypatch.setattr(evolution_line, "RETRY_AFTER_S", 0)
    attempts = []

    def refuses(line, number, stage):
        attempts.append(stage)
        if len(attempts) < 3:
            raise ConnectionResetError("the database went away")

    monkeypatch.setattr(evolution_line, "record", refuses)
    result = materialize(instance, home, tiny(), selection=["incoming_adapter"])
    assert result.success
    assert attempts == ["incoming_adapter"] * 3

    attempts.clear()
    ended = materialize(instance, home, tiny(), "0004", selection=["incoming_adapter"])
    assert not ended.success
    [failure] = ended.get_step_failure_events()
    assert "Materialize round 0003 first" in (
        failure.step_failure_data.user_failure_data.description
    )
    assert not attempts
    assert not steps(ended)


@pytest.mark.slow
def test_a_scaffolded_line_is_valid_and_stands_beside_the_others(tmp_path):
    """In a copy of the project: the package that is installed must not gain a line."""
    project = tmp_path / "project"
    kept = shutil.ignore_patterns(".*", "docs", "evoselect_home", "base_model", "__pycache__")
    shutil.copytree(REPOSITORY, project, ignore=kept)

    def dg_(*arguments):
        return subprocess.run(
            [str(BIN / "dg"), *arguments],
            cwd=project,
            env={"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(project), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    component = "evoselect_pipeline.components.EvolutionLine"
    made = dg_("scaffold", "defs", component, "support_tickets")
    assert made.returncode == 0, made.stdout + made.stderr
    for what in ("yaml", "defs"):
        checked = dg_("check", what)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    listed = dg_("list", "defs", "--json").stdout
    for line in ("playground", "support_tickets"):
        assert f"{line}/promoted_adapter" in listed
        assert f"{line}_chain" in listed
    refused = dg_("scaffold", "defs", component, "Support-Tickets")
    assert refused.returncode != 0
    assert "a name is 1 to 63 of a-z 0-9 _" in refused.stdout + refused.stderr


@pytest.mark.usefixtures("instance")  # loading reads from the newest one of the process
def test_lines_in_a_folder_of_the_users_own_load_beside_the_playground(tmp_path, monkeypatch):
    for line in ("support", "billing"):
        (tmp_path / line).mkdir()
        text = f"type: evoselect_pipeline.components.EvolutionLine\nattributes: {{line: {line}}}\n"
        (tmp_path / line / "defs.yaml").write_text(text)
    monkeypatch.setenv("EVOSELECT_LINES", str(tmp_path))
    graph = defs().resolve_asset_graph()
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {
        *("playground", "support", "billing")
    }
    assert read_line_config(None, (), "billing").line == "billing"
    with pytest.raises(ConfigError, match="none of that name among playground, billing, support"):
        read_line_config(None, (), "sales")
    monkeypatch.setenv("EVOSELECT_LINES", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="no such folder"):
        defs()

"""A file dropped into a folder starts its round: once, whole, in its turn."""

import os

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.test_utils import create_run_for_test

from evoselect_pipeline.components.automation import LINE_TAG
from evoselect_pipeline.components.evolution_line import line_definitions
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.rounds.line import write_json
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline_tests.integration.in_dagster import at_home

OF_LINE = {LINE_TAG: "mine"}


@pytest.fixture
def config(tmp_path) -> LineConfig:
    """A line on files; its task's rows are no business of the sensor."""
    splits = {split: f"{split}.jsonl" for split in ("targets", "validation", "test")}
    return LineConfig.model_validate(
        {
            "line": "mine",
            "task": {"kind": "files", **splits},
            "generator": {"kind": "files", "pattern": f"{tmp_path}/rows_{{round}}.jsonl"},
        }
    )


@pytest.fixture
def ticks(instance, home, config):
    """Ticks of the sensor as the daemon has them: each one knows the cursor of the last one."""
    repository = at_home(config, home.root).get_repository_def()
    cursor = None

    def tick():
        nonlocal cursor
        context = dg.build_sensor_context(
            instance,
            cursor,
            repository_def=repository,
            sensor_name="mine_files",
            resources={"home": HomeResource(root=str(home.root))},
        )
        with partition_loading_context(dynamic_partitions_store=instance):
            ticked = repository.get_sensor_def("mine_files").evaluate_tick(context)
        cursor = ticked.cursor
        return ticked

    return tick


@pytest.fixture
def drop(tmp_path):
    """Put a file of rows in place, later each time."""
    num_dropped = 0

    def drop(name, text='{"prompt": "a", "completion": "b"}\n'):
        nonlocal num_dropped
        num_dropped += 1
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (num_dropped, num_dropped))

    return drop


def run_of(instance, request, status):
    """The run that the daemon makes of a request."""
    tags = {**request.tags, "dagster/run_key": request.run_key}
    return create_run_for_test(
        instance, status=status, tags=tags | {"dagster/partition": request.partition_key}
    )


def test_a_round_starts_when_two_ticks_have_found_its_file_the_same(instance, ticks, drop):
    assert "waits for " in ticks().skip_message
    assert "rows_0000.jsonl" in ticks().skip_message
    assert instance.get_dynamic_partitions("mine_rounds") == []
    drop("rows_0000.jsonl", '{"prompt": "a", "com')  # it is still being copied
    assert "rows_0000.jsonl is new or has changed" in ticks().skip_message
    drop("rows_0000.jsonl")
    assert "rows_0000.jsonl is new or has changed" in ticks().skip_message
    [request] = ticks().run_requests
    assert request.partition_key == "0000"
    assert request.tags[LINE_TAG] == "mine"
    assert instance.has_dynamic_partition("mine_rounds", "0000")


def test_the_next_rounds_file_waits_until_its_turn(instance, home, ticks, drop):
    drop("rows_0000.jsonl")
    drop("rows_0001.jsonl")
    ticks()
    [request] = ticks().run_requests
    run = run_of(instance, request, dg.DagsterRunStatus.STARTED)
    busy = ticks()
    assert not busy.run_requests
    assert run.run_id in busy.skip_message
    instance.delete_run(run.run_id)
    run_of(instance, request, dg.DagsterRunStatus.SUCCESS)
    with publish(home.round_dir("mine", 0) / "promoted_adapter", inputs={}) as folder:
        write_json(folder / "facts.json", {})
    assert "rows_0001.jsonl is new or has changed" in ticks().skip_message
    [request] = ticks().run_requests
    assert request.partition_key == "0001"


def test_a_round_that_failed_starts_again_with_a_changed_file_and_not_before(instance, ticks, drop):
    drop("rows_0000.jsonl")
    ticks()
    [request] = ticks().run_requests
    failed = run_of(instance, request, dg.DagsterRunStatus.FAILURE)
    for _ in range(2):
        skipped = ticks()
        assert not skipped.run_requests
        assert f"in run {failed.run_id}, which ended as FAILURE" in skipped.skip_message
    drop("rows_0000.jsonl", '{"prompt": "c", "completion": "d"}\n')
    assert "has changed" in ticks().skip_message
    [again] = ticks().run_requests
    assert again.partition_key == "0000"
    assert again.run_key != request.run_key


def test_any_run_of_the_line_is_let_finish(instance, ticks, drop):
    drop("rows_0000.jsonl")
    ticks()
    run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTING, tags=OF_LINE)
    assert run.run_id in ticks().skip_message


def test_the_sensor_is_there_for_files_of_rounds_alone_and_stopped_by_default(config):
    def sensors(config):
        return {s.name: s.default_status for s in line_definitions(config).sensors or ()}

    assert sensors(config)["mine_files"] == dg.DefaultSensorStatus.STOPPED
    assert "playground_files" not in sensors(LineConfig())
    # The same file for every round would start one round after the other.
    always = config.generator.model_copy(update={"pattern": "rows.jsonl"})
    assert "mine_files" not in sensors(config.model_copy(update={"generator": always}))

"""Rounds in Dagster: light definitions, bad artifacts stop, equal results do not go stale."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.components.evolution_line import LINE_TAG, line_definitions
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.integration.process import REPOSITORY, TINY, finish

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
)
HEAVY = {"ray", "torch", "transformers", "peft", "lancedb", "mlflow", "polars", "ot", "matplotlib"}


def tiny(**changes: object) -> LineConfig:
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return read_line_config(None, [f"{key}={value}" for key, value in settings.items()])


@pytest.fixture
def instance():
    with dg.instance_for_test() as found:
        yield found


@pytest.fixture(scope="module")
def fresh_home(tmp_path_factory):
    """A home without rounds; making MLflow's database is what takes time."""
    return Home(tmp_path_factory.mktemp("fresh") / "home").init()


@pytest.fixture
def home(fresh_home, tmp_path):
    shutil.copytree(fresh_home.root, tmp_path / "home")
    return Home(tmp_path / "home")


def materialize(instance, home, config, key="0000", selection=None):
    """Materialize a round, or some of its assets, as the UI does: with the checks of each asset."""
    definitions = line_definitions(config)
    instance.add_dynamic_partitions("playground_rounds", [key])
    chosen = selection and dg.AssetSelection.assets(*(["playground", name] for name in selection))
    # An instance of its own for each run, as `evoselect run` has: after a run in this process,
    # Dagster's notion of the current instance may name one that the run opened and has dropped.
    with dg.DagsterInstance.from_ref(instance.get_ref()) as opened:
        return dg.materialize(
            [*(definitions.assets or ()), *(definitions.asset_checks or ())],  # type: ignore[list-item]
            partition_key=key,
            selection=chosen,
            instance=opened,
            resources={"home": HomeResource(root=str(home.root))},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )


def steps(result) -> list[str]:
    events = [*result.get_asset_materialization_events()]
    return [event.asset_key.path[-1] for event in events]


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


def tick(home, instance, name, scheduled=datetime(2026, 11, 24, 2, tzinfo=UTC)):
    """Evaluate the line's schedule or sensor."""
    definitions = line_definitions(LineConfig())
    resources = {"home": HomeResource(root=str(home.root))}
    # The repository binds the job and the resources that a tick of the daemon would find.
    repository = dg.Definitions.merge(
        definitions, dg.Definitions(resources=resources)
    ).get_repository_def()
    if repository.has_schedule_def(name):
        context = dg.build_schedule_context(
            instance, scheduled, repository_def=repository, resources=resources
        )
        return repository.get_schedule_def(name).evaluate_tick(context)
    context = dg.build_sensor_context(
        instance, repository_def=repository, resources=resources, sensor_name=name
    )
    return repository.get_sensor_def(name).evaluate_tick(context)


def promote(home, number):
    """Make a round look finished."""
    folder = home.round_dir("playground", number) / "promoted_adapter"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def test_the_schedule_asks_for_the_next_round_alone_while_none_is_in_flight(instance, home):
    for number in (0, 1):
        [request] = tick(home, instance, "playground_nightly").run_requests
        assert request.partition_key == f"{number:04d}"
        assert request.run_key == f"playground-{number:04d}-2026-11-24"
        assert request.tags[LINE_TAG] == "playground"
        assert instance.has_dynamic_partition("playground_rounds", f"{number:04d}")
        promote(home, number)

    run = create_run_for_test(
        instance, status=dg.DagsterRunStatus.STARTED, tags={LINE_TAG: "playground"}
    )
    skipped = tick(home, instance, "playground_nightly")
    assert not skipped.run_requests
    assert run.run_id in skipped.skip_message
    instance.delete_run(run.run_id)
    # Another line's run is none of this line's business.
    create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags={LINE_TAG: "other"})
    [request] = tick(home, instance, "playground_nightly").run_requests
    assert request.partition_key == "0002"


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
        promote(home, number)


@pytest.mark.slow
def test_too_small_a_pool_stops_the_round_in_this_run_and_in_a_later_one(instance, home):
    config = tiny(min_candidates=500)
    result = materialize(instance, home, config)
    assert not result.success
    assert set(steps(result)) == {"target_set", "incoming_adapter", "candidates"}
    [evaluation] = result.get_asset_check_evaluations()
    assert evaluation.check_name == "candidates_well_formed"
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
    assert found == {"candidates_well_formed": True, "gradients_finite": False}

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
    assert changed == {"lora_checkpoint", "evaluation", "promoted_adapter", "incoming_adapter"}
    assert now["incoming_adapter", "0000"] == before["incoming_adapter", "0000"]
    assert now["incoming_adapter", "0001"] == now["lora_checkpoint", "0000"]

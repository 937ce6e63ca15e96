"""Runs whose worker died are found, those that live are left alone, and rounds keep their order."""

import json
import socket

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.test_utils import create_run_for_test

from evoselect_pipeline.components import run_launcher
from evoselect_pipeline.components.automation import ENDED_TAG, HOLDER_TAG, PARTITION_TAG
from evoselect_pipeline.components.run_launcher import WatchfulRunLauncher
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.integration.in_dagster import materialize, tiny

WAITING, STARTED, FAILED = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.FAILURE,
)
ASIDE = {
    "dagster/priority": "1",
    "dagster/max_retries": "1",
    "dagster/retry_on_asset_or_op_failure": "true",
}


@pytest.fixture
def instance():
    with dg.instance_for_test() as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One for all: making MLflow's database is what takes time."""
    return Home(tmp_path_factory.mktemp("lost") / "home").init()


@pytest.fixture(autouse=True)
def daemons_home(home, monkeypatch):
    """The launcher finds the home as the daemon does."""
    monkeypatch.setenv("EVOSELECT_HOME", str(home.root))


def health(launcher, instance, **address):
    tags = {".dagster/grpc_info": json.dumps({"host": "localhost", **address})}
    run = create_run_for_test(instance, status=STARTED, tags=tags)
    return run, lambda: launcher.check_run_worker_health(run).status


def test_a_run_is_lost_when_its_server_and_its_worker_have_been_gone_for_a_while(
    instance, home, tmp_path, monkeypatch
):
    launcher = WatchfulRunLauncher()
    assert launcher.supports_check_run_worker_health
    run, status = health(launcher, instance, socket=str(tmp_path / "gone"))
    assert status() == WorkerStatus.RUNNING
    monkeypatch.setattr(run_launcher, "LOST_AFTER_S", 0.0)
    with home.lease("sums", f"run {run.run_id}"):
        assert home.is_held_for(f"run {run.run_id}")
    assert not home.is_held_for(f"run {run.run_id}")
    assert status() == WorkerStatus.NOT_FOUND


def test_a_run_that_somebody_works_for_is_not_lost(instance, home, tmp_path):
    launcher = WatchfulRunLauncher()
    run, _ = health(launcher, instance, socket=str(tmp_path / "gone"))
    with home.lease("sums", f"run {run.run_id}"), home.lease("other", "run of somebody else"):
        assert launcher._may_live(run)
    with home.lease("sums", "run of somebody else"):
        assert not launcher._may_live(run)


def test_a_run_of_a_command_line_that_was_killed_is_lost(instance, home):
    """It has no server; it would hold up the nightly schedule for as long as runs may take."""
    holder = "evoselect run (process 1)"
    run = create_run_for_test(instance, status=STARTED, tags={HOLDER_TAG: holder})
    launcher = WatchfulRunLauncher()
    with home.lease("sums", holder):
        assert launcher._may_live(run)
    assert not launcher._may_live(run)


def test_a_run_whose_server_is_being_restarted_is_not_lost(instance, home):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        run, _ = health(WatchfulRunLauncher(), instance, port=port)
        assert WatchfulRunLauncher()._may_live(run)


def run_of(instance, number, status, **tags):
    """A run of a round as the asset graph launches it: without a tag of the line."""
    return create_run_for_test(
        instance,
        status=status,
        tags={PARTITION_TAG: f"{number:04d}", **tags},
        asset_selection=frozenset([dg.AssetKey(["playground", "incoming_adapter"])]),
    )


def begin(instance, home, number):
    """Make a round's first asset; what the run said if it failed, and its tags."""
    result = materialize(instance, home, tiny(), f"{number:04d}", ["incoming_adapter"])
    said = [
        e.step_failure_data.user_failure_data.description for e in result.get_step_failure_events()
    ]
    return "".join(said), instance.get_run_by_id(result.run_id).tags


@pytest.mark.parametrize("status", [WAITING, STARTED, FAILED], ids=lambda status: status.value)
def test_a_round_steps_aside_for_a_run_that_still_has_to_make_the_one_before(
    instance, home, status
):
    waits = {"dagster/will_retry": "true"} if status == FAILED else {}
    before = run_of(instance, 1, status, **waits)
    said, tags = begin(instance, home, 2)
    assert said.startswith(f"round 0002 steps aside: run {before.run_id} still has to make")
    assert tags.items() >= ASIDE.items()
    assert instance.get_run_by_id(before.run_id).tags["dagster/priority"] == "2"


def test_a_round_is_refused_for_good_if_no_run_makes_the_one_before(instance, home):
    run_of(instance, 1, FAILED)
    run_of(instance, 0, STARTED)
    said, tags = begin(instance, home, 2)
    assert "Materialize round 0001 first" in said
    assert "dagster/retry_on_asset_or_op_failure" not in tags


def test_a_round_that_has_begun_goes_before_others_when_it_is_tried_again(instance, home):
    said, tags = begin(instance, home, 0)
    assert not said
    assert tags["dagster/priority"] == "2"
    assert "dagster/max_retries" not in tags


def test_a_run_that_is_ended_is_not_started_again_by_itself(instance):
    run = create_run_for_test(instance, status=STARTED)
    launcher = WatchfulRunLauncher()
    launcher.register_instance(instance)
    launcher.terminate(run.run_id)
    tags = instance.get_run_by_id(run.run_id).tags
    assert (tags["dagster/max_retries"], tags[ENDED_TAG]) == ("0", run.run_id)

"""Runs whose worker died are found, those that live are left alone, and rounds keep their order."""

import json
import socket
import time
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher import WorkerStatus
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import filter_runs_to_should_retry
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon

from evoselect_pipeline.components import lost_retries, run_launcher
from evoselect_pipeline.components.automation import (
    ENDED_TAG,
    HOLDER_TAG,
    LINE_TAG,
    PARTITION_TAG,
)
from evoselect_pipeline.components.lost_retries import (
    asks_again_for_lost_retries,
    is_asked_for_again,
    was_given_up,
)
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


class Consumer(EventLogConsumerDaemon):
    """Dagster's own, up to the moment when it would launch a retry."""

    @property
    def handle_updated_runs_fns(self):
        return [self._note]

    def look(self, instance) -> list[str]:
        """The runs that it would try again now."""
        self.retried = []
        list(self.run_iteration(SimpleNamespace(instance=instance)))
        return self.retried

    def _note(self, workspace, records, logger):
        runs = [record.dagster_run for record in records]
        self.retried += [
            run.run_id for run in filter_runs_to_should_retry(runs, workspace.instance)
        ]
        yield


@pytest.fixture
def retrying():
    with dg.instance_for_test(
        overrides={"run_retries": {"enabled": True, "max_retries": 3}}
    ) as found:
        yield found


def failed_run(instance, number=0, **tags):
    """A run of a round that a code server was given, and that dies."""
    server = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("somewhere"), "__repository__")
    run = create_run_for_test(
        instance,
        status=STARTED,
        tags={PARTITION_TAG: f"{number:04d}", **tags},
        asset_selection=frozenset([dg.AssetKey(["sums", "incoming_adapter"])]),
        remote_job_origin=RemoteJobOrigin(server, "a_job"),
    )
    instance.report_run_failed(run, "the worker died")
    return instance.get_run_by_id(run.run_id)


def ask_again(instance, monkeypatch, after_s=120.0) -> str:
    """A tick of the sensor, some time after whatever was last written."""
    clock = SimpleNamespace(time=lambda: time.time() + after_s)
    monkeypatch.setattr(lost_retries, "time", clock)
    return asks_again_for_lost_retries(dg.build_sensor_context(instance)).skip_message


def give_up(instance, run):
    """What Dagster does when it cannot place a retry."""
    instance.report_engine_event("Failed to retry run", run, EngineEventData())
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})


def failures(instance, run) -> list[str]:
    told = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    return [entry.get_dagster_event().message for entry in told]


def test_a_retry_that_dagster_missed_is_asked_for_again(retrying, monkeypatch):
    """It misses a failure whose event it reads before the run's status is written."""
    consumer = Consumer()
    assert consumer.look(retrying) == []
    storing = retrying.event_log_storage.store_event

    def looked_at_once(event):
        storing(event)
        assert consumer.look(retrying) == []

    with monkeypatch.context() as patched:
        patched.setattr(retrying.event_log_storage, "store_event", looked_at_once)
        run = failed_run(retrying)
    assert run.is_complete_and_waiting_to_retry
    assert consumer.look(retrying) == []

    assert "none" in ask_again(retrying, monkeypatch, after_s=0), "it may be on its way"
    assert "none" in ask_again(retrying, monkeypatch, after_s=7200), "a person has seen to it"
    assert run.run_id[:8] in ask_again(retrying, monkeypatch)
    assert consumer.look(retrying) == [run.run_id]
    assert failures(retrying, run) == ["the worker died", "the worker died Its retry never came."]


def test_a_retry_that_dagster_gave_up_is_asked_for_again_a_few_times(retrying, monkeypatch):
    """It gives up a run whose code server is away when it looks."""
    consumer = Consumer()
    consumer.look(retrying)
    run = failed_run(retrying)
    for _ in range(lost_retries.MOST_FAILURES - 1):
        assert consumer.look(retrying) == [run.run_id]
        give_up(retrying, run)
        assert was_given_up(retrying, retrying.get_run_by_id(run.run_id))
        assert run.run_id[:8] in ask_again(retrying, monkeypatch, after_s=0)
        is_last = len(failures(retrying, run)) == lost_retries.MOST_FAILURES
        assert is_asked_for_again(retrying, run) is not is_last
    give_up(retrying, run)
    assert "none" in ask_again(retrying, monkeypatch)
    assert not was_given_up(retrying, retrying.get_run_by_id(run.run_id))


def test_a_run_that_is_not_to_be_tried_again_is_left_alone(retrying, monkeypatch):
    failed_run(retrying, **{"dagster/max_retries": "0"})  # ended by a person
    failed_run(retrying, 1, **{"dagster/backfill": "gone"})
    by_command = create_run_for_test(retrying, status=STARTED)
    retrying.report_run_failed(by_command)
    assert retrying.get_run_by_id(by_command.run_id).is_complete_and_waiting_to_retry
    deleted = failed_run(retrying, 2)
    retrying.add_run_tags(deleted.run_id, {"dagster/auto_retry_run_id": "deleted"})
    assert "none" in ask_again(retrying, monkeypatch)


def test_a_round_that_somebody_has_begun_anew_is_left_alone(retrying, monkeypatch):
    run = failed_run(retrying)
    create_run_for_test(retrying, tags={PARTITION_TAG: "0000", LINE_TAG: "other"})
    assert run.run_id[:8] in ask_again(retrying, monkeypatch)
    create_run_for_test(retrying, tags={PARTITION_TAG: "0000", LINE_TAG: "sums"})
    assert "none" in ask_again(retrying, monkeypatch, after_s=300)


def test_a_round_steps_aside_for_one_whose_retry_could_not_be_placed(retrying, home):
    before = run_of(retrying, 1, STARTED)
    retrying.report_run_failed(before)
    give_up(retrying, before)
    said, _ = begin(retrying, home, 2)
    assert said.startswith(f"round 0002 steps aside: run {before.run_id} still has to make")

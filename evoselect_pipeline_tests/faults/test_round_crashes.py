"""A round that is killed in the middle of any asset is finished by running again.

What was published stays untouched, nothing is stored twice, and the outcome is that of a round
which nobody disturbed. Kills are SIGKILL: at named points of the stores (`EVOSELECT_FAULT`), or at
seeded random times after something has appeared on disk.
"""

import random
import signal
import time
from pathlib import Path

import dagster as dg
import pytest

from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.artifacts import open_artifact
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.stores.tracking import Tracking
from evoselect_pipeline_tests.integration.forked import Forked, run_rounds
from evoselect_pipeline_tests.integration.in_dagster import materialize
from evoselect_pipeline_tests.integration.process import (
    IS_LONG,
    manifests,
    overrides,
)

# The fixture runs a dozen processes one after the other.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS = 24
SETTINGS = overrides(
    generator__num_candidates=300,
    selection__ratio=0.35,  # enough rows to warm a judge up
    task__num_targets=32,
    quality__warm_up_steps=8,
    train__steps=STEPS,
    train__checkpoint_steps=4,
    train__batch_size=8,
)
KEYS = {
    "samples": ["sample_id"],
    "gradients_64": ["sample_id", "fingerprint"],
    "scores": ["line", "round", "sample_id"],
    "decisions": ["line", "round", "sample_id"],
}


# Where IS_LONG, assets that have had one kill get a second.
# (point of the kill, the asset in whose step it is); each run goes on from the one before.
EARLY = [
    ("publish:before_manifest", "target_set"),
    ("tracking:run:after_create", "incoming_adapter"),  # published, not told to MLflow
    ("publish:after_rename:2", "candidates"),  # the hidden truth is there, the candidates are not
]
FEATURES = [("lance:gradients:after", "projected_gradients")]
MIDDLE = [
    *([("publish:before_rename", "answer_quality")] if IS_LONG else []),
    ("lance:scores:after", "alignment_scores"),
    ("lance:decisions:before", "selected_subset"),
]
LATE = [
    ("publish:before_rename:2", "evaluation"),  # after the adapter, the base model's scores
    # After both scores and the evaluation:
    *([("publish:before_rename:4", "promoted_adapter")] if IS_LONG else []),
    ("tracking:register:before_alias", "promoted_adapter"),  # published, not told to MLflow
    ("tracking:finish:before", "incoming_adapter"),  # of the next round, which mends this one
    ("tracking:finish:before:2", "round_report"),  # of the next round; published, not told
]


def command(home: Path) -> tuple[object, ...]:
    return ("run", "--home", home, "--rounds", 1, "--format", "json", *SETTINGS)


def finished(home: Path) -> dict[str, tuple[bytes, int]]:
    """What a run has acknowledged; the hidden truth is a part of the candidates' stage."""
    return {k: v for k, v in manifests(home).items() if not k.endswith("hidden_truth")}


def kill_at(home: Path, point: str) -> None:
    run = Forked(*command(home), fault=point)
    _, errors = run.communicate()
    assert run.returncode == -signal.SIGKILL, (point, errors)


def kill_after(home: Path, pattern: str, seconds: float, times: int = 1) -> None:
    """Kill a run some time after a path that fits the pattern has appeared in the round.

    Where that is to happen several times, the path must be gone again in between.
    """
    child = Forked(*command(home))
    deadline = time.monotonic() + 300
    folder = home / "lines/playground/0000"
    for there in [True, False] * (times - 1) + [True]:
        while any(folder.glob(pattern)) != there:
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline, pattern
            time.sleep(0.005)
    time.sleep(seconds)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def step_in_flight(home: Path) -> str:
    """The asset whose step the newest run began and did not end."""
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        [run] = instance.get_runs(limit=1)
        events = [log.dagster_event for log in instance.all_logs(run.run_id) if log.dagster_event]
    steps = {
        kind: {event.step_key for event in events if event.event_type_value == kind}
        for kind in ("STEP_START", "STEP_SUCCESS")
    }
    [step] = steps["STEP_START"] - steps["STEP_SUCCESS"]
    return step.removeprefix("playground__")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    run_rounds(home, SETTINGS, rounds=2)
    return home


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A home whose first round was killed in every asset, and which then went on to the next."""
    home = tmp_path_factory.mktemp("disturbed") / "home"
    rng, acknowledged, killed = random.Random(0), {}, []

    def look() -> None:
        found = finished(home)
        assert {name: found.get(name) for name in acknowledged} == acknowledged
        acknowledged.update(found)

    def kill_at_each(points: list[tuple[str, str]]) -> None:
        for point, asset in points:
            kill_at(home, point)
            killed.append(step_in_flight(home))
            assert killed[-1] == asset, point
            look()

    kill_at_each(EARLY)
    if IS_LONG:
        kill_after(home, "candidates/manifest.json", rng.uniform(0.0, 1.0))
        look()
    kill_at_each(FEATURES)
    # In the warm-up of the second judge: what it leaves must not be gone on with by the first.
    kill_after(home, ".train-judge-*/**/checkpoint-4", rng.uniform(0.0, 0.1), times=2)
    killed.append(step_in_flight(home))
    assert killed[-1] == "answer_quality"
    look()
    kill_at_each(MIDDLE)
    kill_after(home, ".train-*/checkpoint-8", rng.uniform(0.0, 0.1))
    killed.append(step_in_flight(home))
    look()
    kill_at_each(LATE)
    # The rounds are over; the last one's report is told when it is materialized again.
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        config = read_line_config(None, SETTINGS[1::2])
        assert materialize(instance, Home(home), config, "0001", ["round_report"]).success
    look()
    return home, killed


def told_by_mlflow(tracking: Tracking) -> dict[str, tuple[str, dict[str, list]]]:
    """Status of each run, and its points by metric; a doubled run or point fails.

    What was measured of time and machine differs from run to run.
    """
    client = tracking._client
    found = client.search_runs([tracking._experiment_id])
    told = {}
    for run in found:
        points = {}
        for metric in run.data.metrics:
            if metric.startswith(("seconds/", "system/")):
                continue
            history = client.get_metric_history(run.info.run_id, metric)
            points[metric] = sorted((point.step, point.value) for point in history)
            assert len({point.step for point in history}) == len(history), metric
        told[run.info.run_name] = (run.info.status, points)
    assert len(told) == len(found)
    assert len(client.search_model_versions("name = 'playground'")) == len(found) - 1
    return told


def test_every_asset_of_a_round_was_killed_once_at_least(disturbed):
    assert set(disturbed[1]) == {stage.name for stage in STAGES} | {"target_set"}


def test_a_killed_round_and_the_next_end_like_undisturbed_ones(disturbed, undisturbed):
    home = disturbed[0]
    assert finished(home).keys() == finished(undisturbed).keys()
    for name in finished(undisturbed):
        here, there = (open_artifact(root / "lines" / name) for root in (home, undisturbed))
        assert here.digest == there.digest, name
        for file in there.manifest["files"]:
            assert (here.path / file).read_bytes() == (there.path / file).read_bytes()


def test_no_table_holds_a_row_twice(disturbed, undisturbed):
    stores = [LanceStore(Home(home)) for home in (disturbed[0], undisturbed)]
    for name, key in KEYS.items():
        here, there = (store.tables.read(name, "true", key).to_pylist() for store in stores)
        rows = [tuple(row.values()) for row in here]
        assert len(set(rows)) == len(rows), name
        assert set(rows) == {tuple(row.values()) for row in there}, name


def test_mlflow_tells_each_round_once_and_to_the_end(disturbed, undisturbed):
    trackings = [Tracking(Home(home)) for home in (disturbed[0], undisturbed)]
    here, there = map(told_by_mlflow, trackings)
    assert here == there
    assert sorted(here) == ["playground", "playground/0000", "playground/0001"]
    assert {status for status, _ in here.values()} == {"FINISHED"}
    champions = [tracking.champion("playground") for tracking in trackings]
    assert champions[0]._replace(path="") == champions[1]._replace(path="")


def test_nothing_that_killed_runs_wrote_is_left_behind(disturbed):
    home = disturbed[0]
    assert not list((home / "lines").rglob(".*"))
    assert not [path for path in home.iterdir() if path.name.startswith(".")]

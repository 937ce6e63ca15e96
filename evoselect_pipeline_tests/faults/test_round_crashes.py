"""A round that is killed in the middle of any asset is finished by running again.

What was published stays untouched, nothing is stored twice, and the outcome is that of a round
which nobody disturbed. Kills are SIGKILL: at named points of the stores (`EVOSELECT_FAULT`), or at
seeded random times after something has appeared on disk.
"""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from evoselect_pipeline.stores.artifacts import open_artifact
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.stores.tracking import PARENT_TAG, Tracking
from evoselect_pipeline_tests.integration.process import (
    finish,
    manifests,
    overrides,
    run_rounds,
    start,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("crashes")]

STEPS = 24
SETTINGS = overrides(train__steps=STEPS, train__checkpoint_steps=4, train__batch_size=8)
KEYS = {
    "samples": ["sample_id"],
    "gradients_64": ["sample_id", "fingerprint"],
    "scores": ["line", "round", "sample_id"],
    "decisions": ["line", "round", "sample_id"],
}

# (point of the kill, the asset it is in the middle of); each run goes on from the one before.
POINTS = [
    ("publish:before_manifest", "target_set"),
    ("tracking:run:after_create", "incoming_adapter"),
    ("lance:samples:after", "candidates"),
    ("publish:after_rename", "candidates"),  # the hidden truth is there, the candidates are not
    ("lance:gradients:before", "projected_gradients"),
    ("lance:gradients:after", "projected_gradients"),
    ("lance:scores:after", "alignment_scores"),
    ("lance:decisions:before", "selected_subset"),
    ("tracking:metrics:after", "selected_subset"),  # published, and half told to MLflow
]
LATER_POINTS = [
    ("publish:before_rename:2", "evaluation"),  # the first contender is scored
    ("tracking:register:before_alias", "promoted_adapter"),
]


def command(home: Path) -> tuple[object, ...]:
    return ("run", "--home", home, "--rounds", 1, "--format", "json", *SETTINGS)


def finished(home: Path) -> dict[str, tuple[bytes, int]]:
    """What a run has acknowledged; the hidden truth is a part of the candidates' stage."""
    return {k: v for k, v in manifests(home).items() if not k.endswith("hidden_truth")}


def kill_at(home: Path, point: str) -> None:
    ended = finish(*command(home), fault=point)
    assert ended.returncode == -signal.SIGKILL, (point, ended.stderr)


def kill_after(home: Path, pattern: str, seconds: float) -> None:
    """Kill a run some time after a path that fits the pattern has appeared in the round."""
    child = start(*command(home))
    deadline = time.monotonic() + 120
    folder = home / "lines/playground/0000"
    while not any(folder.glob(pattern)):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline, pattern
        time.sleep(0.005)
    time.sleep(seconds)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    run_rounds(home, SETTINGS, rounds=1)
    return home


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A home whose first round was killed in every asset, with what each run left."""
    home = tmp_path_factory.mktemp("disturbed") / "home"
    rng, acknowledged, assets = random.Random(0), {}, []

    def look(asset: str) -> None:
        found = finished(home) if (home / "lines").is_dir() else {}
        assert {k: found[k] for k in acknowledged} == acknowledged, asset
        acknowledged.update(found)
        assets.append(asset)

    for point, asset in POINTS[:4]:
        kill_at(home, point)
        look(asset)
    kill_after(home, "candidates/manifest.json", rng.uniform(0.0, 3.0))
    look("projected_gradients")
    for point, asset in POINTS[4:]:
        kill_at(home, point)
        look(asset)
    for pattern in (".train-*/checkpoint-8", ".train-*/checkpoint-16"):
        kill_after(home, pattern, rng.uniform(0.0, 0.2))
        look("lora_checkpoint")
    for point, asset in LATER_POINTS:
        kill_at(home, point)
        look(asset)
    run_rounds(home, SETTINGS, rounds=1)
    look("")
    return home, assets


def test_every_asset_of_a_round_was_killed_once_at_least(disturbed, undisturbed):
    stages = {Path(name).name for name in finished(undisturbed) if "/evaluations/" not in name}
    assert stages == set(disturbed[1]) - {""}


def test_a_killed_round_ends_like_an_undisturbed_one(disturbed, undisturbed):
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
        here, there = (store._read(name, "true", key).to_pylist() for store in stores)
        rows = [tuple(row.values()) for row in here]
        assert len(set(rows)) == len(rows), name
        assert set(rows) == {tuple(row.values()) for row in there}, name


def test_mlflow_tells_the_round_once(disturbed):
    tracking = Tracking(Home(disturbed[0]))
    runs = tracking._client.search_runs([tracking._experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["playground", "playground/0000"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [PARENT_TAG in run.data.tags for run in runs].count(True) == 1
    for run in runs:
        for metric in run.data.metrics:
            history = tracking._client.get_metric_history(run.info.run_id, metric)
            steps = [point.step for point in history]
            assert len(set(steps)) == len(steps), metric
    assert len(tracking._client.search_model_versions("name = 'playground'")) == 1
    champion = tracking.champion("playground")
    assert champion is not None and champion.round == 0


def test_nothing_that_killed_runs_wrote_is_left_behind(disturbed):
    home = disturbed[0]
    assert not [path for path in (home / "lines").rglob(".*")]
    assert not [path for path in home.iterdir() if path.name.startswith(".")]


def test_a_round_that_was_killed_serves_the_next_one(disturbed, undisturbed):
    reports = [run_rounds(home, SETTINGS, rounds=1) for home in (disturbed[0], undisturbed)]
    for report in reports:
        del report["rounds"][1]["seconds"], report["champion"]["adapter"]
    assert json.dumps(reports[0]) == json.dumps(reports[1])

"""Real SIGKILLs at every point where a store commits: nothing partial, nothing lost, nothing twice.

Each test runs a child that is killed at a named point (`EVOSELECT_FAULT`), looks at what is left,
and runs the same child again: with the next fault, and at last without one.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evoselect_pipeline.stores.artifacts import open_artifact
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.stores.tracking import Tracking
from evoselect_pipeline_tests.unit.test_lance import PROXY, D, features, ids_of

REPOSITORY = Path(__file__).parents[2]


def start(code, *arguments, fault=""):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "EVOSELECT_FAULT": fault},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code, *arguments, fault=""):
    """Run a child to its end, which must be the kill if a fault is named."""
    child = start(code, *arguments, fault=fault)
    out, err = child.communicate()
    assert child.returncode == (-signal.SIGKILL if fault else 0), err
    return out


PUBLISH = """
import sys
from pathlib import Path
from evoselect_pipeline.stores.artifacts import find, publish
final, text = Path(sys.argv[1]), sys.argv[2]
if find(final, {"text": text}) is None:
    with publish(final, inputs={"text": text}) as folder:
        for name in "abc":
            (folder / name).write_text(text * 1000)
    print("published")
"""


@pytest.mark.parametrize(
    ("replace", "fault", "expected"),
    [
        (False, "publish:before_manifest", None),
        (False, "write_text:before_rename", None),
        (False, "publish:before_rename", None),
        (False, "publish:after_rename", "new"),
        (True, "publish:before_manifest", "old"),
        (True, "write_text:before_rename", "old"),
        (True, "publish:before_rename", "old"),
        (True, "publish:between_renames", "old"),
        (True, "publish:after_rename", "new"),
    ],
)
def test_a_kill_while_publishing_shows_the_old_artifact_or_the_new(
    tmp_path, replace, fault, expected
):
    final = tmp_path / "artifact"
    if replace:
        run(PUBLISH, final, "old")
    run(PUBLISH, final, "new", fault=fault)
    if expected:
        assert open_artifact(final).inputs == {"text": expected}
    else:
        assert not final.exists()
    assert run(PUBLISH, final, "new") == ("" if expected == "new" else "published\n")
    assert (open_artifact(final).path / "c").read_text() == "new" * 1000
    assert run(PUBLISH, final, "new") == ""


STORE = """
import sys
import polars as pl
from evoselect_pipeline.stores import lance, lance_tables
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.unit.test_lance import PROXY, D, features, ids_of, samples
lance_tables.COMPACT_FRAGMENTS = 3
store = lance.LanceStore(Home(sys.argv[1]))
cost = float(sys.argv[2])
ids = ids_of(60)
store.put_samples(samples(60), "sums", 0)
present = store.present(PROXY, D)
todo = [i for i in ids if i not in present]
for start in range(0, len(todo), 10):
    store.put_gradients(PROXY, features(todo[start : start + 10]))
    print(*todo[start : start + 10], flush=True)
frame = pl.DataFrame({"sample_id": ids, "selected": [True] * 60, "cost": [cost] * 60})
store.put_decisions("sums", 0, frame.head(60 - int(cost)))
store.tag_round("sums", 0)
"""


def check_store(root):
    """Everything is there exactly once, and equal to what an uninterrupted run stores."""
    store, ids = LanceStore(Home(root)), ids_of(60)
    for name in ("samples", "gradients_16"):
        stored = store.tables.read(name, "true", ["sample_id"])["sample_id"].to_pylist()
        assert sorted(stored) == sorted(ids)
    stored = store.read_gradients(ids, PROXY, D)
    assert abs(stored.vectors - features(ids).vectors).max() < 1e-3
    assert store.read_decisions("sums")["cost"].to_list() == [2.0] * 58
    assert set(store.tables.open("decisions").tags.list()) == {"sums-r0000"}


def test_kills_between_commits_leave_whole_commits_and_the_rest_is_made_later(tmp_path):
    acknowledged = []
    for fault, num_gradients, costs in [
        ("lance:samples:before", 0, set()),
        ("lance:samples:after", 0, set()),
        ("lance:gradients:before:1", 0, set()),
        ("lance:gradients:after:3", 30, set()),
        ("lance:compact", 40, set()),
        ("lance:decisions:before", 60, set()),
        ("lance:decisions:after", 60, {1.0}),
        ("lance:tag:2", 60, {1.0}),
    ]:
        acknowledged += run(STORE, tmp_path, 1, fault=fault).split()
        store = LanceStore(Home(tmp_path))
        assert len(store.present(PROXY, D)) == num_gradients, fault
        assert set(store.read_decisions("sums")["cost"]) == costs, fault
    # The last run has other settings, and must leave no row of the first.
    acknowledged += run(STORE, tmp_path, 2).split()
    assert len(set(acknowledged)) == len(acknowledged) == 40  # 20 were killed before they spoke
    check_store(tmp_path)


GRADIENTS = """
import sys
from evoselect_pipeline.stores import lance, lance_tables
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.unit.test_lance import PROXY, features, ids_of
lance_tables.COMPACT_FRAGMENTS = 4
store = lance.LanceStore(Home(sys.argv[1]))
present = store.present(PROXY, 256)
todo = [i for i in ids_of(1500) if i not in present]
print("start", flush=True)
for start in range(0, len(todo), 20):
    store.put_gradients(PROXY, features(todo[start : start + 20], 256))
    print(*todo[start : start + 20], flush=True)
"""


def test_kills_at_random_times_lose_no_acknowledged_row_and_double_none(tmp_path):
    generator, acknowledged = random.Random(0), []
    for _ in range(4):
        child = start(GRADIENTS, tmp_path)
        assert child.stdout.readline() == "start\n"
        time.sleep(generator.uniform(0.0, 0.3))
        child.kill()
        acknowledged += child.communicate()[0].split()
        present = LanceStore(Home(tmp_path)).present(PROXY, 256)
        assert set(acknowledged) <= present
        assert len(present) % 20 == 0
    acknowledged += run(GRADIENTS, tmp_path).split()[1:]
    # A batch that was committed and not acknowledged is not computed again.
    assert len(set(acknowledged)) == len(acknowledged) <= 1500
    store = LanceStore(Home(tmp_path))
    stored = store.tables.read("gradients_256", "true", ["sample_id"])["sample_id"].to_pylist()
    assert sorted(stored) == sorted(ids_of(1500))


INIT = "import sys; from evoselect_pipeline.stores.home import Home; Home(sys.argv[1]).init()"


@pytest.fixture(scope="module")
def fresh_home(tmp_path_factory):
    """A home whose first initialisation was killed with the database made but not in place."""
    root = tmp_path_factory.mktemp("fresh") / "home"
    run(INIT, root, fault="home:before_database")
    assert not (root / "mlflow.db").exists()
    assert not (root / "layout_version").exists()
    assert (root / ".mlflow-new.db").exists()
    return Home(root).init()


def test_a_kill_while_the_home_is_made_leaves_one_that_can_be_made(fresh_home):
    assert fresh_home.mlflow_db.exists()
    assert (fresh_home.root / "layout_version").exists()
    assert not [name for name in os.listdir(fresh_home.root) if "mlflow-new" in name]


TRACK = """
import sys
from pathlib import Path
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.tracking import Tracking
tracking = Tracking(Home(sys.argv[1]))
for round_number in (0, 1):
    tracking.log_round("sums", round_number, params={"rank": 8}, metrics={"after": 0.5})
    tracking.register_adapter("sums", round_number, Path("/adapter"), "f" * 64, {"after": 0.5})
    tracking.finish_round("sums", round_number)
"""


def test_kills_while_tracking_leave_each_run_point_and_version_once(fresh_home, tmp_path):
    shutil.copytree(fresh_home.root, tmp_path / "home")
    for fault in (
        "tracking:run:after_create:2",
        "tracking:metrics:before",
        "tracking:metrics:after:3",
        "tracking:register:before_alias:2",
    ):
        run(TRACK, tmp_path / "home", fault=fault)
    run(TRACK, tmp_path / "home")
    tracking = Tracking(Home(tmp_path / "home"))
    client = tracking._client
    runs = client.search_runs([tracking._experiment_id])
    assert sorted(r.info.run_name for r in runs) == ["sums", "sums/0000", "sums/0001"]
    assert {r.info.status for r in runs} == {"FINISHED"}
    for r in runs:
        steps = [p.step for p in client.get_metric_history(r.info.run_id, "after")]
        assert steps == ([0, 1] if r.info.run_name == "sums" else [int(r.info.run_name[-4:])])
    assert len(client.search_model_versions("name = 'sums'")) == 2
    assert tracking.champion("sums").round == 1

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from evoselect_pipeline.errors import ArtifactError, ConfigError, RoundHeldError
from evoselect_pipeline.stores.home import Home, round_key, round_of

REPOSITORY = Path(__file__).parents[2]


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home that three processes initialised at once."""
    root = tmp_path_factory.mktemp("with space ü") / "home"
    code = "import sys; from evoselect_pipeline.stores.home import Home; Home(sys.argv[1]).init()"
    children = [python(code, root) for _ in range(3)]
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], errors
    return Home(root)


def test_three_processes_may_start_on_a_fresh_home(home):
    assert {"lance", "lines", "dagster", "mlflow_artifacts"} <= set(os.listdir(home.root))
    assert (home.root / "layout_version").read_text() == "1\n"
    assert "telemetry" in (home.dagster_dir / "dagster.yaml").read_text()
    with closing(sqlite3.connect(home.mlflow_db)) as database:
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)
    assert not [name for name in os.listdir(home.root) if name.startswith(".")]


def test_init_again_changes_nothing(home):
    config = home.dagster_dir / "dagster.yaml"
    config.write_text("# the user's own\n")
    before = home.mlflow_db.stat().st_mtime_ns
    assert home.init() is home
    assert config.read_text() == "# the user's own\n"
    assert home.mlflow_db.stat().st_mtime_ns == before


def test_a_database_of_another_mlflow_is_migrated_with_a_copy_kept(home):
    with closing(sqlite3.connect(home.mlflow_db)) as database, database:
        database.execute("insert into registered_models (name) values ('kept')")
    (home.root / "mlflow_version").write_text("3.0.0")
    home.init()
    for path in (home.mlflow_db, home.root / "mlflow.db.before-migration"):
        with closing(sqlite3.connect(path)) as database:
            names = database.execute("select name from registered_models").fetchall()
        assert names == [("kept",)]


def test_a_newer_home_is_refused(tmp_path):
    (tmp_path / "layout_version").write_text("2\n")
    with pytest.raises(ArtifactError, match=r"newer than 1.*upgrade"):
        Home(tmp_path).init()
    assert os.listdir(tmp_path) == ["layout_version"]


def test_a_home_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be created"):
        Home(tmp_path / "file" / "home").init()


def test_paths_are_absolute_wherever_the_process_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVOSELECT_HOME", raising=False)
    assert Home.from_env().root == tmp_path / "evoselect_home"
    monkeypatch.setenv("EVOSELECT_HOME", "elsewhere")
    home = Home.from_env()
    assert home.mlflow_uri == f"sqlite:////{str(tmp_path)[1:]}/elsewhere/mlflow.db"
    assert home.round_dir("sums", 7) == tmp_path / "elsewhere" / "lines" / "sums" / "0007"


def test_a_path_that_sqlalchemy_would_misread_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot hold"):
        Home(tmp_path / "what?")


@pytest.mark.parametrize("name", ["../x", "", "A", "-a", "a/b", "a" * 65, "a\n", "a'b", "."])
def test_names_that_could_leave_the_home_are_refused(tmp_path, name):
    home = Home(tmp_path)
    for use in (
        home.line_dir,
        lambda line: home.round_dir(line, 0),
        lambda n: next(home.lease(n).gen),
    ):
        with pytest.raises(ConfigError):
            use(name)


def test_round_keys_are_four_digits_and_sort_like_numbers():
    assert [round_key(n) for n in (0, 3, 9999)] == ["0000", "0003", "9999"]
    assert all(round_of(round_key(n)) == n for n in (0, 3, 9999))
    for key in ("3", "00003", "abcd", "-001", "0003\n", "\u0663\u0663\u0663\u0663"):
        with pytest.raises(ConfigError):
            round_of(key)
    for number in (-1, 10_000):
        with pytest.raises(ConfigError):
            round_key(number)


HOLD = """
import sys, time
from evoselect_pipeline.stores.home import Home
with Home(sys.argv[1]).lease(sys.argv[2], what="round 0003"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_at_once_and_served_when_the_first_is_killed(tmp_path):
    home = Home(tmp_path)
    child = python(HOLD, tmp_path, "sums")
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RoundHeldError, match=rf"round 0003 \(process {child.pid} on"):
            home.lease("sums").__enter__()
        with home.lease("other"):
            pass
    finally:
        child.kill()
        child.communicate()
    with home.lease("sums"):
        pass


def test_the_lease_is_reentrant_across_threads_and_freed_by_the_last(tmp_path):
    home, inside, leave = Home(tmp_path), threading.Event(), threading.Event()

    def hold():
        with home.lease("sums"):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    with home.lease("sums"), home.lease("sums"):
        thread.start()
        assert inside.wait(30)
    # The thread holds it still, so another process must be refused.
    assert "RoundHeldError" in python(HOLD, tmp_path, "sums").communicate()[1]
    leave.set()
    thread.join()
    child = python(HOLD, tmp_path, "sums")
    assert child.stdout.readline() == "held\n"
    child.kill()
    child.communicate()


def test_importing_the_stores_brings_no_heavy_library():
    heavy = ["lancedb", "pyarrow", "mlflow", "polars", "torch", "matplotlib"]
    modules = ["home", "artifacts", "lance", "tables", "tracking", "faults"]
    code = (
        "import sys, importlib\n"
        f"for name in {modules}: importlib.import_module('evoselect_pipeline.stores.' + name)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert python(code).communicate()[0] == "[]\n"

"""Law: a home works wherever it can, and says at once where it cannot."""

import os
import sqlite3
from collections import namedtuple
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from evoselect_pipeline.commands.check import _far_disk
from evoselect_pipeline.errors import ArtifactError, ConfigError
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline.stores.home import MLFLOW_VARIABLE, MOST_PATH_BYTES, Home
from evoselect_pipeline.stores.lance import LanceStore

NOBODY = 65534
DEEPEST = "dagster/history/runs/39ca657a-582f-4cfc-945d-ad47dcaa1854.db"


def deep(folder: Path, num_bytes: int) -> Path:
    """A path of so many bytes, whose names are of two bytes a letter."""
    path = str(folder)
    while num_bytes - len(path.encode()) > 60:
        path += "/" + "ü" * 25
    return Path(path + "/" + "x" * (num_bytes - len(path.encode()) - 1))


def test_b4_the_longest_path_that_is_taken_holds_the_databases(tmp_path):
    home = Home(deep(tmp_path, MOST_PATH_BYTES))
    file = home.root / DEEPEST
    file.parent.mkdir(parents=True)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("create table t (x)")
    assert LanceStore(home).versions() == {}


def test_b4_a_longer_path_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"more than 400 bytes.*choose a shorter one"):
        Home(deep(tmp_path, MOST_PATH_BYTES + 1))
    with pytest.raises(ArtifactError, match=r"cannot be created \(File name too long"):
        Home(tmp_path / ("x" * 300)).init()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def read_only():
    """A folder that may not be written, also where the tests run as root."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_b4_a_folder_that_may_not_be_written_is_named(read_only):
    with pytest.raises(ArtifactError, match=r"cannot be created \(Permission denied"):
        Home(read_only / "home").init()
    with (
        pytest.raises(ArtifactError, match=r"cannot be written \(Permission denied"),
        publish(read_only / "adapter", inputs={}),
    ):
        raise AssertionError("the block must not run")
    assert LanceStore(Home(read_only)).versions() == {}


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite://", "sqlite:///./home/mlflow.db"])
def test_b8_a_database_whose_place_depends_on_the_folder_is_refused(tmp_path, monkeypatch, uri):
    monkeypatch.setenv(MLFLOW_VARIABLE, uri)
    with pytest.raises(ConfigError, match="or sqlite:////PATH"):
        Home(tmp_path / "home").init()
    monkeypatch.setenv(MLFLOW_VARIABLE, f"sqlite:///{tmp_path}/elsewhere.db")
    assert Home(tmp_path / "home").mlflow_uri == f"sqlite:///{tmp_path}/elsewhere.db"


Mounted = namedtuple("Mounted", "mountpoint fstype")


@pytest.mark.parametrize(
    ("kind", "is_told"),
    [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ext4", False), ("overlay", False)],
)
def test_b8_databases_on_a_networks_file_system_are_told_of(tmp_path, monkeypatch, kind, is_told):
    mounts = [Mounted("/", "nfs4" if not is_told else "ext4"), Mounted(str(tmp_path), kind)]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    told = _far_disk(Home(tmp_path / "not/made/yet"))
    assert [note.partition(", ")[0] for note in told] == [f"{tmp_path} lies on {kind}"] * is_told


def test_b8_databases_that_a_server_holds_are_safe_wherever_the_home_is(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.disk_partitions", lambda all: [Mounted("/", "nfs")])
    monkeypatch.setenv(MLFLOW_VARIABLE, "http://127.0.0.1:5000")
    assert _far_disk(Home(tmp_path)) == []

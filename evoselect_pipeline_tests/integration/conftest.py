"""The command line and Dagster in this process, for what needs no process of its own."""

import shutil
import sys
from typing import NamedTuple

import dagster as dg
import pytest
import yaml
from dagster._core.storage.defs_state.base import set_defs_state_storage

from evoselect_pipeline.cli import main
from evoselect_pipeline.stores.home import Home, project_file


class Ended(NamedTuple):
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def evoselect(capsys, monkeypatch, tmp_path):
    """Call `evoselect` from an empty folder; any exception but its exit fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("DAGSTER_HOME", "")  # set by `run`; restored afterwards

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["evoselect", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(autouse=True)
def no_instance_of_another_test():
    """Definitions that are loaded ask the instance that was opened last, also when it is gone."""
    with set_defs_state_storage(None):
        yield


@pytest.fixture
def instance():
    """A Dagster instance with the limits of the project's `dagster.yaml`."""
    settings = yaml.safe_load(project_file("dagster.yaml").read_text(encoding="utf-8"))
    with dg.instance_for_test(overrides={"concurrency": settings["concurrency"]}) as found:
        yield found


@pytest.fixture(scope="module")
def fresh_home(tmp_path_factory):
    """A home without rounds; making MLflow's database is what takes time."""
    return Home(tmp_path_factory.mktemp("fresh") / "home").init()


@pytest.fixture
def home(fresh_home, tmp_path):
    shutil.copytree(fresh_home.root, tmp_path / "home")
    return Home(tmp_path / "home")

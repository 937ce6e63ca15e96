"""The command line in this process, for what needs no process of its own."""

import sys
from typing import NamedTuple

import pytest

from evoselect_pipeline.cli import main


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

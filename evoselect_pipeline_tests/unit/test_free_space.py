"""Law: `evoselect check` says in figures that a disk is nearly full, and where (B3)."""

from collections import namedtuple

import pytest

from evoselect_pipeline.commands.check import LEAST_FREE_GIB, _disk

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("free", [0, 1.5 * 2**30, LEAST_FREE_GIB * 2**30 - 1])
def test_b3_little_space_is_told_of_the_disk_that_the_home_will_be_on(tmp_path, monkeypatch, free):
    looked_at = []

    def disk_usage(path):
        looked_at.append(path)
        return Usage(2**40, 2**40 - free, free)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    [problem] = _disk(tmp_path / "not/made/yet")
    assert looked_at == [tmp_path]
    assert problem.where == str(tmp_path)
    assert problem.what == f"{free / 2**30:.1f} GiB are free, 2 are wanted"
    assert "EVOSELECT_HOME" in problem.mend


def test_b3_enough_space_is_nothing_to_speak_of(tmp_path, monkeypatch):
    enough = Usage(2**40, 0, LEAST_FREE_GIB * 2**30)
    monkeypatch.setattr("shutil.disk_usage", lambda _: enough)
    assert _disk(tmp_path) == []

"""Laws: of a disk that is nearly full `check` tells in figures where, and features that it cannot
hold are not even begun (B3)."""

from collections import namedtuple

import pytest

from evoselect_pipeline.commands.check import LEAST_FREE_GIB, _disk
from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore

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


@pytest.mark.parametrize(("num_rows", "free"), [(1000, 2600 * 1000), (0, 0), (999, 2600 * 1000)])
def test_b3_features_that_the_disk_can_hold_are_begun(tmp_path, monkeypatch, num_rows, free):
    store = LanceStore(Home(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(2**40, 0, free))
    store.refuse_small_disk(num_rows, width=1000)


def test_b3_features_that_it_cannot_hold_are_refused_with_the_arithmetic(tmp_path, monkeypatch):
    store = LanceStore(Home(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(2**40, 0, 3 * 2**30))
    said = (
        r"3\.0 GiB are free, 5\.3 GiB are wanted: 2 bytes x 2,200 numbers x 1,000,000 rows,"
        r" times 1\.3 while files are joined\. Free space, lower gradients\.dim"
    )
    with pytest.raises(ArtifactError, match=said):
        store.refuse_small_disk(1_000_000, width=2200)

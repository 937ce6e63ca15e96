"""Kills and full disks while files are joined: every row is there once, and joining can go on."""

import random
import shutil
import time
from datetime import timedelta
from pathlib import Path

import lancedb
import pytest

from evoselect_pipeline.stores import lance_tables
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline_tests.faults.test_store_crashes import start
from evoselect_pipeline_tests.integration.process import IS_LONG
from evoselect_pipeline_tests.unit.test_lance import PROXY, features, ids_of

NUM_ROWS, WIDTH, NUM_KILLS = 1000, 256, 20 if IS_LONG else 3
NOW = timedelta(microseconds=1)

JOIN = """
import sys, time
from datetime import timedelta
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
stores = [LanceStore(Home(root)) for root in sys.argv[1:]]
versions = [store.versions() for store in stores]
for number, store in enumerate(stores):
    print(number, flush=True)
    store.prune(timedelta(microseconds=1))
    print("joined", flush=True)
"""


@pytest.fixture(scope="module")
def in_pieces(tmp_path_factory):
    """A table of many small files."""
    home = Home(tmp_path_factory.mktemp("pieces"))
    store = LanceStore(home)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lance_tables, "MOST_FRAGMENTS", 1000)
        patched.setattr(lance_tables, "COMPACT_FRAGMENTS", 1000)
        for first in range(0, NUM_ROWS, 5):
            store.put_gradients(PROXY, features(ids_of(5, first), WIDTH))
    assert pieces(store) == NUM_ROWS // 5
    return home.root


def pieces(store: LanceStore) -> int:
    return store.tables.open(f"gradients_{WIDTH}").stats()["fragment_stats"]["num_fragments"]


def assert_whole(store: LanceStore) -> None:
    found = store.tables.read(f"gradients_{WIDTH}", "true", ["sample_id"])["sample_id"].to_pylist()
    assert sorted(found) == sorted(ids_of(NUM_ROWS))


def copies(source: Path, folder: Path, count: int) -> list[Path]:
    return [Path(shutil.copytree(source, folder / str(number))) for number in range(count)]


@pytest.mark.filterwarnings("ignore:optimize:UserWarning")
def test_a8_a_kill_while_files_are_joined_loses_no_row_and_doubles_none(in_pieces, tmp_path):
    whole = start(JOIN, *copies(in_pieces, tmp_path / "whole", 2))
    times = [(line.strip(), time.monotonic()) for line in whole.stdout]
    assert whole.wait() == 0, whole.stderr.read()
    seconds = times[-1][1] - times[-2][1]  # of the second, when all is loaded
    moments, in_time = random.Random(0), 0
    for kill in range(NUM_KILLS):
        roots = copies(in_pieces, tmp_path / f"kill{kill}", 2)
        child = start(JOIN, *roots)
        while child.stdout.readline().strip() != "1":  # at the second
            pass
        time.sleep(moments.uniform(0, seconds))
        child.kill()
        in_time += "joined" not in child.communicate()[0]
        store = LanceStore(Home(roots[1]))
        assert_whole(store)
        store.prune(NOW)
        assert_whole(store)
        assert pieces(store) == 1
    assert in_time, "every kill came too late"


def test_rows_are_stored_where_their_files_cannot_be_joined_and_that_is_told(
    tmp_path, monkeypatch, caplog
):
    def full(*_, **__):
        raise OSError("No space left on device")

    store, count = LanceStore(Home(tmp_path)), 20
    monkeypatch.setattr(lance_tables, "COMPACT_FRAGMENTS", 2)
    with monkeypatch.context() as patched:
        patched.setattr(lancedb.table.LanceTable, "optimize", full)
        for first in range(0, count, 5):
            store.put_gradients(PROXY, features(ids_of(5, first), WIDTH))
    assert store.present(PROXY, WIDTH) == set(ids_of(count))
    told = f"table gradients_{WIDTH} could not be joined, its rows are stored: No space left"
    assert told in caplog.text
    assert pieces(store) == 4
    store.put_gradients(PROXY, features(ids_of(5, count), WIDTH))
    assert pieces(store) == 1

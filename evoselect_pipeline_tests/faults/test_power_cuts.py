"""A power cut takes all that was not brought to disk: what was reported is there, and whole.

The cut is a model of the worst disk: of a folder it keeps the entries, and of a file the bytes,
that were there when it was last synced, and nothing else.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.answer_log import Answer, AnswerLog
from evoselect_pipeline.stores.artifacts import (
    make_folder,
    open_artifact,
    publish,
    write_text_atomic,
)
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline_tests.unit.test_lance import PROXY, D, features, ids_of, samples


class Disk:
    """What would be left of a folder; `on_sync` is called after each sync."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.on_sync = root, lambda: None
        self._kept: dict[int, bytes | dict[str, int]] = {root.stat().st_ino: {}}
        self._open: list[int] = []  # so that no inode is used again
        self._fsync = os.fsync
        monkeypatch.setattr("os.fsync", self._sync)

    def _sync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._open.append(os.open(path, os.O_RDONLY))
        if path.is_dir():
            kept = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            kept = path.read_bytes()
        self._kept[path.stat().st_ino] = kept
        self.on_sync()

    def left_after_a_cut(self, target: Path) -> Path:
        """Write down what the disk holds."""
        self._restore(self.root.stat().st_ino, target)
        return target

    def _restore(self, inode: int, target: Path) -> None:
        kept = self._kept.get(inode, b"")
        if isinstance(kept, bytes):
            target.write_bytes(kept)
            return
        target.mkdir()
        for name, child in kept.items():
            self._restore(child, target / name)

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    found = Disk(tmp_path / "disk", monkeypatch)
    yield found
    found.close()


@pytest.fixture
def after_a_cut(disk, tmp_path) -> Callable[[], Path]:
    """What is left now, each time in a folder of its own."""
    cuts = iter(range(10_000))
    return lambda: disk.left_after_a_cut(tmp_path / f"left{next(cuts)}")


def put(final: Path, text: str) -> None:
    with publish(final, inputs={"text": text}) as folder:
        (folder / "sub").mkdir()
        for name in ("a", "sub/b"):
            (folder / name).write_text(text * 1000)


def test_a_cut_while_publishing_leaves_the_old_artifact_or_the_new(disk, after_a_cut):
    place = Path("lines/sums/0000/candidates")
    found: list[str | None] = []

    def look() -> None:
        try:
            found.append(open_artifact(after_a_cut() / place).inputs["text"])
        except ArtifactError as error:
            assert "no artifact there" in str(error)
            found.append(None)

    disk.on_sync = look
    put(disk.root / place, "old")
    assert found[0] is None and found[-1] == "old"
    assert set(found) == {None, "old"}
    found.clear()
    put(disk.root / place, "new")
    assert found[-1] == "new"
    assert set(found) == {"old", "new"}


def test_a_text_is_the_old_or_the_new(disk, after_a_cut):
    file, texts = disk.root / "costs.json", []
    write_text_atomic(file, "old")
    disk.on_sync = lambda: texts.append((after_a_cut() / "costs.json").read_text())
    write_text_atomic(file, "new")
    assert texts[-1] == "new"
    assert set(texts) == {"old", "new"}


def test_an_answer_that_was_written_down_is_kept(disk, after_a_cut):
    log, place = disk.root / "lines/sums/0000/answers.jsonl", "lines/sums/0000/answers.jsonl"
    for number in range(3):
        AnswerLog(log).append([Answer(f"r{number}", 0, "text", "stop", 1, 1, False, 0.0)])
        assert AnswerLog(after_a_cut() / place).spent.num_requests == number + 1


def test_rows_that_were_reported_as_stored_are_there(disk, after_a_cut):
    home = Home(disk.root)
    make_folder(home.lance_dir)  # as the home does that is made
    store = LanceStore(home)
    for start in (0, 20):
        assert store.put_samples(samples(20, start), "sums", 0) == 20
        assert store.put_gradients(PROXY, features(ids_of(20, start))) == 20
        store.tag_round("sums", start)
        left = LanceStore(Home(after_a_cut()))
        stored = ids_of(start + 20)
        assert left.get_samples(stored) == samples(start + 20)
        assert left.present(PROXY, D) == set(stored)
        assert f"sums-r{start:04d}" in left.tables.open("samples").tags.list()

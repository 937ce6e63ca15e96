import errno
import json
import os
import time

import pytest

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores import artifacts
from evoselect_pipeline.stores.artifacts import (
    MANIFEST,
    find,
    open_artifact,
    publish,
    sweep_temporary,
    write_text_atomic,
)

INPUTS = {"seed": 3, "ids": ("a", "b"), "rate": 0.5}


def make(final, text="weights", inputs=INPUTS):
    with publish(final, inputs=inputs, kind="adapter") as folder:
        (folder / "model.bin").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")
    return open_artifact(final)


def test_a_published_folder_opens_with_its_files_and_inputs(tmp_path):
    artifact = make(tmp_path / "adapter")
    assert (artifact.path / "model.bin").read_text() == "weights"
    assert artifact.inputs == {"seed": 3, "ids": ["a", "b"], "rate": 0.5}
    assert artifact.manifest["kind"] == "adapter"
    assert set(artifact.manifest["files"]) == {"model.bin", "sub/config.json"}
    assert os.listdir(tmp_path) == ["adapter"]


def test_equal_content_has_equal_digest_whenever_and_wherever_it_was_written(tmp_path, monkeypatch):
    first = make(tmp_path / "one")
    monkeypatch.setattr(artifacts, "_versions", lambda: {"python": "9"})
    second = make(tmp_path / "two")
    assert first.digest == second.digest
    assert make(tmp_path / "one", "other weights").digest != first.digest
    assert make(tmp_path / "one", inputs={**INPUTS, "seed": 4}).digest != first.digest


def test_find_returns_only_what_was_made_from_exactly_these_inputs(tmp_path):
    final = tmp_path / "adapter"
    assert find(final, INPUTS) is None
    made = make(final)
    assert find(final, INPUTS) == made
    assert find(final, {**INPUTS, "seed": 4}) is None
    assert find(final, {**INPUTS, "more": 1}) is None


def test_publishing_again_replaces_the_old_artifact_whole(tmp_path):
    final = tmp_path / "adapter"
    make(final, "old")
    with publish(final, inputs={}) as folder:
        (folder / "only.txt").write_text("new")
    assert set(open_artifact(final).manifest["files"]) == {"only.txt"}
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_failure_inside_leaves_the_old_artifact_and_no_temporary_folder(tmp_path):
    final = tmp_path / "adapter"
    made = make(final, "old")
    with pytest.raises(KeyboardInterrupt), publish(final, inputs={}) as folder:
        (folder / "half.bin").write_text("half")
        raise KeyboardInterrupt
    assert open_artifact(final) == made
    assert os.listdir(tmp_path) == ["adapter"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda path: truncate(path / "model.bin"),
    "flipped": lambda path: flip(path / "model.bin"),
    "missing": lambda path: (path / "model.bin").unlink(),
    "extra": lambda path: (path / "sub" / "extra.bin").write_text(""),
    "manifest truncated": lambda path: truncate(path / MANIFEST) or truncate(path / MANIFEST),
    "manifest of another kind": lambda path: (path / MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_refused_and_made_anew(tmp_path, damage):
    final = tmp_path / "adapter"
    make(final)
    DAMAGES[damage](final)
    with pytest.raises(ArtifactError, match="damaged"):
        open_artifact(final)
    assert find(final, INPUTS) is None
    make(final)
    assert find(final, INPUTS)


def test_an_artifact_without_manifest_is_none_and_is_never_overwritten(tmp_path):
    final = tmp_path / "adapter"
    make(final)
    (final / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match="no artifact there"):
        open_artifact(final)
    assert find(final, INPUTS) is None
    with pytest.raises(ArtifactError, match="move it away"):
        make(final)
    assert (final / "model.bin").exists()
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_newer_layout_is_refused_and_not_replaced(tmp_path):
    final = tmp_path / "adapter"
    make(final)
    manifest = json.loads((final / MANIFEST).read_text())
    (final / MANIFEST).write_text(json.dumps({**manifest, "layout_version": 99}))
    for read in (lambda: open_artifact(final), lambda: find(final, INPUTS)):
        with pytest.raises(ArtifactError, match="upgrade"):
            read()


def test_a_manifest_that_points_outside_is_refused(tmp_path):
    final = tmp_path / "adapter"
    make(final)
    manifest = json.loads((final / MANIFEST).read_text())
    del manifest["seal"]  # as a manifest of old, or one that somebody sealed anew
    manifest["files"]["../secret"] = {"size": 0, "sha256": ""}
    (final / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="outside"):
        open_artifact(final)


def test_symlinks_and_parent_paths_are_refused(tmp_path):
    with (
        pytest.raises(ArtifactError, match=r"\.\."),
        publish(tmp_path / "a" / ".." / "b", inputs={}),
    ):
        pass
    with (
        pytest.raises(ArtifactError, match="only files and folders"),
        publish(tmp_path / "a", inputs={}) as folder,
    ):
        (folder / "link").symlink_to("/etc/passwd")
    made = make(tmp_path / "real")
    (tmp_path / "link").symlink_to(made.path)
    with pytest.raises(ArtifactError, match="symlink"):
        open_artifact(tmp_path / "link")
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_inputs_that_json_cannot_hold_are_refused_before_any_work(tmp_path):
    for value in (float("nan"), object()):
        with (
            pytest.raises(ArtifactError, match="JSON"),
            publish(tmp_path / "a", inputs={"x": value}),
        ):
            raise AssertionError("the block must not run")


def test_a_full_disk_is_reported_with_the_path_and_publishes_nothing(tmp_path):
    final = tmp_path / "adapter"
    with pytest.raises(ArtifactError, match=r"adapter.*free space"), publish(final, inputs={}):
        raise OSError(errno.ENOSPC, "No space left on device", "model.bin")
    assert os.listdir(tmp_path) == []


def test_other_errors_of_the_writer_are_not_mistaken_for_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError), publish(tmp_path / "a", inputs={}):
        os.stat("/does/not/exist")


def test_an_old_version_left_aside_by_a_kill_is_moved_back(tmp_path):
    final = tmp_path / "adapter"
    made = make(final)
    final.rename(tmp_path / f".adapter.old-{'0' * 32}")
    assert find(final, INPUTS) == made
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_reader_that_moves_the_old_version_back_does_not_stop_the_writer(tmp_path, monkeypatch):
    final = tmp_path / "adapter"
    make(final, "old")
    meddled = []

    def meddle(name):
        if name == "publish:between_renames" and not meddled:
            meddled.append(open_artifact(final))

    monkeypatch.setattr(artifacts, "fault", meddle)
    made = make(final, "new")
    assert meddled and (made.path / "model.bin").read_text() == "new"
    assert os.listdir(tmp_path) == ["adapter"]


def test_sweeping_removes_old_leftovers_only(tmp_path):
    made = make(tmp_path / "adapter")
    names = [".adapter.tmp-", ".adapter.old-", ".gone.old-", ".fresh.tmp-", ".other-"]
    for name in names:
        folder = tmp_path / f"{name}{'0' * 32}"
        folder.mkdir()
        (folder / "file").write_text("")
        if "fresh" not in name:
            long_ago = time.time() - 1000
            os.utime(folder / "file", (long_ago, long_ago))
            os.utime(folder, (long_ago, long_ago))
    removed = sweep_temporary(tmp_path, older_than_s=500)
    assert {path.name[:-32] for path in removed} == {".adapter.tmp-", ".adapter.old-"}
    assert open_artifact(tmp_path / "adapter") == made


def test_text_is_replaced_atomically(tmp_path):
    write_text_atomic(tmp_path / "file", "one")
    write_text_atomic(tmp_path / "file", "zwei \u00fc\n")
    assert (tmp_path / "file").read_bytes() == "zwei \u00fc\n".encode()
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(ArtifactError, match="missing"):
        write_text_atomic(tmp_path / "missing" / "file", "text")

"""Folders that appear whole or not at all: written aside, sealed by a manifest, then renamed.

Replacing a folder takes two renames, because POSIX cannot rename onto a folder that holds files:
the old one moves aside to `.<name>.old-<uuid>`, then the new one moves in. A process killed between
the two leaves only the old one, aside; whoever looks next moves it back. So the old or the new
artifact is found after a kill at any instant, and the final path stays an ordinary folder that any
tool can load. One writer per folder is assumed (the lease of `home.py`); readers are unlimited.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from evoselect_pipeline.core.records import digest
from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.faults import fault
from evoselect_pipeline.stores.manifests import (
    LAYOUT_VERSION,
    MANIFEST,
    DamagedArtifactError,
    damaged,
    read_manifest,
    sealed,
)

RECORDED_PACKAGES = ("evoselect-pipeline", "torch", "transformers", "peft")

# Failures of the disk, not of the code that writes: only these are reported as an artifact's.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<role>tmp|old)-[0-9a-f]{32}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A published folder whose files were found to equal its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Everything that determined the content."""
        return self.manifest["inputs"]

    @property
    def digest(self) -> str:
        """Hash of inputs and content; the time of writing and package versions do not enter."""
        return digest({key: self.manifest[key] for key in ("kind", "inputs", "files")})


@contextmanager
def publish(final_dir: Path | str, *, inputs: Mapping[str, Any], kind: str = "") -> Iterator[Path]:
    """Give a temporary folder to fill; publish it as `final_dir` when the block ends well.

    Parameters
    ----------
    final_dir : path
        Where the artifact is to be; an older artifact there is replaced.
    inputs : mapping
        JSON-able; everything that determines the content. `find` compares it.
    kind : str
        What the artifact is, for people; the folder's name by default.

    Raises
    ------
    ArtifactError
        If the disk is full or read-only, a file is a symlink or `final_dir` holds something that
        was not published. Nothing is visible then, and the temporary folder is gone.
    """
    final = _checked(final_dir)
    canonical_inputs = _canonical(inputs, final)
    temporary = _beside(final, "tmp")
    try:
        make_folder(temporary)
        yield temporary
        _seal(temporary, kind or final.name, canonical_inputs)
        fault("publish:before_rename")
        _move_in(temporary, final)
    except OSError as error:
        if error.errno in _DISK_ERRORS or isinstance(error, PermissionError):
            raise ArtifactError(
                f"{final}: cannot be written ({error.strerror}: {error.filename or temporary});"
                " nothing was published; free space or mend the folder's rights, then run again"
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_artifact(directory: Path | str) -> Artifact:
    """Verify an artifact against its manifest: sizes, sha256, no file missing and none added.

    Raises
    ------
    ArtifactError
        If it is not there, was written by a newer version, or differs from its manifest.
    """
    path = _checked(directory)
    _restore(path)
    manifest = read_manifest(path)
    try:
        _verify(path, manifest["files"])
    except DamagedArtifactError:
        # A writer may have replaced the folder between our reading of manifest and files.
        newer = read_manifest(path)
        if newer == manifest:
            raise
        manifest = newer
        _verify(path, manifest["files"])
    return Artifact(path, manifest)


def is_published(directory: Path) -> bool:
    """Whether an artifact is there, looked into or not."""
    return (directory / MANIFEST).is_file()


def find(directory: Path | str, inputs: Mapping[str, Any]) -> Artifact | None:
    """The artifact in `directory` if it is whole and was made from exactly these inputs.

    A damaged artifact counts as absent, with a warning, so that the step which owns it makes it
    anew. One written by a newer version raises: it must not be replaced.
    """
    path = _checked(directory)
    _restore(path)
    if not (path / MANIFEST).exists():
        return None
    try:
        if read_manifest(path)["inputs"] != _canonical(inputs, path):
            return None
        return open_artifact(path)
    except DamagedArtifactError as error:
        _log.warning("made anew: %s", error)
        return None


def stale_temporary(directory: Path | str, older_than_s: float) -> list[Path]:
    """What killed writers left in `directory` and nobody has touched for a while."""
    found = []
    for path in sorted(Path(directory).iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if not match or time.time() - _last_touched(path) < older_than_s:
            continue
        # An old version moved aside is the only copy until its successor is in place.
        if match["role"] != "old" or (path.parent / match["name"]).exists():
            found.append(path)
    return found


def sweep_temporary(directory: Path | str, older_than_s: float) -> list[Path]:
    """Remove what killed writers left in `directory` and nobody has touched for a while."""
    removed = stale_temporary(directory, older_than_s)
    for path in removed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return removed


def write_text_atomic(path: Path | str, text: str) -> None:
    """Write a text file in UTF-8 so that readers see the old text or the new, never a part."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path | str, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    path = Path(path)
    temporary = _beside(path, "tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fault("write_text:before_rename")
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be written ({error.strerror}); the old file, if any, is unchanged"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, so that a power cut loses none of them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(temporary: Path, kind: str, inputs: Any) -> None:
    """Bring every file to disk, then write the manifest that lists them, last."""
    if (temporary / MANIFEST).exists():
        raise ArtifactError(f"{temporary}: {MANIFEST} is written by publish; name yours otherwise")
    files = {}
    for name in sorted(_files(temporary)):
        path = temporary / name
        sync(path)
        files[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    for folder, _, _ in os.walk(temporary, topdown=False):
        sync(Path(folder))
    manifest = {
        "layout_version": LAYOUT_VERSION,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": inputs,
        "files": files,
        "versions": _versions(),
    }
    fault("publish:before_manifest")
    write_text_atomic(temporary / MANIFEST, sealed(manifest))


def _move_in(temporary: Path, final: Path) -> None:
    """Rename the sealed folder to its place, with the old one, if any, moved aside first."""
    _restore(final)
    aside = None
    for _ in range(10):
        if final.exists():
            aside = _move_aside(final)
            fault("publish:between_renames")
        try:
            os.rename(temporary, final)
            break
        except OSError as error:
            # A reader found the place empty and moved the old artifact back: move it aside again.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    else:
        raise ArtifactError(f"{final}: something keeps coming back there; is a second writer up?")
    sync(final.parent)
    fault("publish:after_rename")
    if aside:
        shutil.rmtree(aside, ignore_errors=True)


def _move_aside(final: Path) -> Path:
    """Make room for the new artifact; only what was published may be moved."""
    if not (final / MANIFEST).is_file() and (not final.is_dir() or any(final.iterdir())):
        raise ArtifactError(
            f"{final}: holds something without {MANIFEST}, so it is not replaced;"
            " move it away, then run again"
        )
    # At most one old version may lie aside, or `_restore` could pick the wrong one.
    for leftover in _old_versions(final):
        shutil.rmtree(leftover)
    aside = _beside(final, "old")
    os.rename(final, aside)
    return aside


def _restore(final: Path) -> None:
    """Undo a replacement that was killed half way: move the old artifact back."""
    if final.exists() or not final.parent.is_dir():
        return
    for old in _old_versions(final):
        try:
            os.rename(old, final)
        except OSError as error:
            if not final.exists():
                raise ArtifactError(
                    f"{final}: its last version lies at {old} and cannot be moved back"
                    f" ({error.strerror})"
                ) from error
        return


def _old_versions(final: Path) -> list[Path]:
    names = [match for p in final.parent.iterdir() if (match := _TEMPORARY.fullmatch(p.name))]
    return [
        final.parent / m.string for m in names if m["role"] == "old" and m["name"] == final.name
    ]


def _verify(path: Path, expected: Mapping[str, Mapping[str, Any]]) -> None:
    for name in expected:
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise damaged(path, f"{MANIFEST} lists {name!r}, outside the artifact")
    found = _files(path) - {MANIFEST}
    if missing := sorted(expected.keys() - found):
        raise damaged(path, f"missing {missing}")
    if extra := sorted(found - expected.keys()):
        raise damaged(path, f"files that were not published: {extra}")
    for name, entry in sorted(expected.items()):
        size = (path / name).stat().st_size
        if size != entry["size"]:
            raise damaged(path, f"{name} has {size} bytes, published with {entry['size']}")
        if _sha256(path / name) != entry["sha256"]:
            raise damaged(path, f"the sha256 of {name} is not the published one")


def _files(root: Path) -> set[str]:
    """Relative names of all files; anything but files and folders is refused."""
    names = set()
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ArtifactError(f"{path}: only files and folders belong in an artifact")
        names.update(Path(folder, name).relative_to(root).as_posix() for name in files)
    return names


def _checked(directory: Path | str) -> Path:
    path = Path(directory)
    if ".." in path.parts or not path.name:
        raise ArtifactError(f"{directory}: an artifact's path must not contain `..`")
    if path.is_symlink():
        raise ArtifactError(f"{directory}: is a symlink; give the folder itself")
    return path.absolute()


def _canonical(inputs: Mapping[str, Any], where: Path) -> Any:
    """What JSON makes of the inputs, so that a tuple in memory equals a list on disk."""
    try:
        return json.loads(json.dumps(dict(inputs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: inputs cannot be written as JSON: {error}") from None


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _beside(path: Path, role: str) -> Path:
    return path.parent / f".{path.name}.{role}-{uuid.uuid4().hex}"


def _last_touched(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    return max(p.lstat().st_mtime for p in (path, *inside))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

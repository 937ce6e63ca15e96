"""What an artifact says of itself: what it was made from, its files, and a hash of all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evoselect_pipeline.core.records import digest
from evoselect_pipeline.errors import ArtifactError

LAYOUT_VERSION = 1
MANIFEST = "manifest.json"
KEYS = {"layout_version", "kind", "created", "inputs", "files", "versions"}
SEAL = "seal"  # the hash of these; manifests older than it have none


class DamagedArtifactError(ArtifactError):
    """What is on disk is not what was published."""


def sealed(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest, with the hash by which a change of it shows."""
    whole = {**manifest, SEAL: digest(manifest)}
    return json.dumps(whole, indent=2, sort_keys=True) + "\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the artifact in a folder, which is what was written.

    Raises
    ------
    ArtifactError
        If there is none, it was changed, or it was written by a newer version.
    """
    try:
        text = (path / MANIFEST).read_bytes().decode("utf-8")
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{path}: no artifact there ({MANIFEST} is missing); run the step that makes it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{MANIFEST} is not JSON ({error})") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("layout_version"), int):
        raise damaged(path, f"{MANIFEST} has no layout_version")
    if manifest["layout_version"] > LAYOUT_VERSION:
        raise ArtifactError(
            f"{path}: layout_version is {manifest['layout_version']}, this version reads up to"
            f" {LAYOUT_VERSION}; upgrade evoselect-pipeline"
        )
    if not _is_as_written(manifest, text):
        raise damaged(path, f"{MANIFEST} was changed after it was written")
    if not isinstance(manifest["inputs"], dict) or not _lists_files(manifest["files"]):
        raise damaged(path, f"{MANIFEST} lacks inputs or files")
    return manifest


def _is_as_written(manifest: Mapping[str, Any], text: str) -> bool:
    content = {key: value for key, value in manifest.items() if key != SEAL}
    try:
        as_written = sealed(content)
    except (UnicodeEncodeError, RecursionError):  # half a character, which nobody writes
        return False
    return content.keys() == KEYS and (SEAL not in manifest or as_written == text)


def damaged(path: Path, what: str) -> DamagedArtifactError:
    """The error that says so, and what to do."""
    return DamagedArtifactError(
        f"{path}: damaged: {what}; delete the folder and run the step that makes it again"
    )


def _lists_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in files.values()
    )

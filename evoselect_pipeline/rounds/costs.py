"""What rounds took: seconds of work by stage, kept beside a round's artifacts.

They are part of no artifact: the same work takes another time every time, and digests must not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.artifacts import write_text_atomic

COSTS = "costs.json"


@contextmanager
def noted(line: Line, round_number: int, stage: str) -> Iterator[None]:
    """Add what the block takes to the stage's seconds, if it worked at all.

    A stage that found its artifact in place costs nothing more; one that failed half way has spent
    its time all the same. A killed process tells nobody.
    """
    manifest = line.stage_dir(round_number, stage) / "manifest.json"
    before, started, ended_well = _identity(manifest), time.monotonic(), False
    try:
        yield
        ended_well = True
    finally:
        worked = not ended_well or _identity(manifest) != before
        # What is refused before the round has anything leaves no folder behind.
        if worked and line.home.round_dir(line.name, round_number).is_dir():
            _add(line, round_number, stage, time.monotonic() - started)


def seconds_spent(line: Line, round_number: int) -> dict[str, float]:
    """Seconds by stage, over all attempts; empty where nothing was noted."""
    return _read(_file(line, round_number))


def hours_spent(line: Line) -> float:
    """Hours of work that all rounds of a line have taken together."""
    files = line.home.line_dir(line.name).glob(f"[0-9]*/{COSTS}")
    return sum(sum(_read(file).values()) for file in files) / 3600


def _file(line: Line, round_number: int) -> Path:
    return line.home.round_dir(line.name, round_number) / COSTS


def _add(line: Line, round_number: int, stage: str, seconds: float) -> None:
    spent = seconds_spent(line, round_number)
    spent[stage] = round(spent.get(stage, 0.0) + seconds, 2)
    write_text_atomic(_file(line, round_number), json.dumps(spent, indent=1) + "\n")


def _read(file: Path) -> dict[str, float]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ArtifactError(
            f"{file}: expected JSON with the seconds of each stage, got {error}; delete the file,"
            " which loses these figures alone"
        ) from None


def _identity(manifest: Path) -> tuple[int, int] | None:
    """Which file it is: a stage that works writes a new one, of the same content or not."""
    try:
        found = manifest.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns

"""JSON lines: rows in and samples out, every error with file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from evoselect_pipeline.core.records import Sample, sample_from_row
from evoselect_pipeline.errors import DataError, cannot_be_read


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield each row of a JSONL file with its place (`file:line`); blank lines are passed over.

    Raises
    ------
    DataError
        If the file is missing, empty, not UTF-8, or a line is not a JSON object.
    """
    found = False
    for number, line in enumerate(_content(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        found = True
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=refuse_constant)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 at byte {error.start} of the line") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object, found {type(row).__name__}")
        yield where, row
    if not found:
        raise DataError(f"{path}: the file holds no rows; expected one JSON object a line")


def read_text(path: Path) -> str:
    """A whole text file.

    Raises
    ------
    DataError
        If the file is missing or not UTF-8.
    """
    content = _content(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 at byte {error.start} of the file") from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(cannot_be_read(path, error)) from None


def refuse_constant(constant: str) -> None:
    """For `parse_constant`: Python's own decoder takes NaN and Infinity for JSON."""
    raise ValueError(f"{constant} is not JSON")


def read_samples(path: Path) -> list[Sample]:
    """Read samples that `write_samples` wrote."""
    return [
        sample_from_row(row, where, subtask=row["subtask"], source=row["source"])
        for where, row in read_rows(path)
    ]


def write_samples(path: Path, samples: list[Sample]) -> None:
    """Write samples one a line, in a form that `read_samples` reads back with equal ids."""
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            row = {
                "messages": [{"role": m.role, "content": m.content} for m in sample.messages],
                "subtask": sample.subtask,
                "source": sample.source,
            }
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")

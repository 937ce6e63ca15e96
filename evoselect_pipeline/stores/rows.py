"""The user's own rows, in whatever form they come: samples out, every error with its place.

A file's name says what it holds; its columns may bear any names, see `Columns`.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evoselect_pipeline.config_rows import Columns, HubRows, Rows
from evoselect_pipeline.core.records import Sample, sample_from_row
from evoselect_pipeline.errors import DataError, RowError, cannot_be_read
from evoselect_pipeline.stores.jsonl import read_rows, read_text, refuse_constant
from evoselect_pipeline.templates import template

AS_THEY_ARE = Columns()
UNANSWERED = "(not answered)"  # of a prompt that is only asked
TEMPLATE_MARKS = ("{{", "{%")


class UserRow(NamedTuple):
    """A sample, the row it was read from, and the group the user puts it in, if any."""

    sample: Sample
    row: dict[str, Any]
    group: str


class CandidateRows(NamedTuple):
    """The usable ones of rows that nobody vouches for.

    `refused` counts the others by reason, and `first_refused` tells of the first one.
    """

    samples: list[Sample]
    refused: Counter[str]
    first_refused: str


def read_samples(rows: Rows, columns: Columns = AS_THEY_ARE) -> list[Sample]:
    """Read samples; see `read_user_rows`."""
    return [found.sample for found in read_user_rows(rows, columns)]


def read_prompts(rows: Rows, columns: Columns = AS_THEY_ARE) -> list[Sample]:
    """Read rows that are only asked; those without an answer get `UNANSWERED` for one.

    Raises
    ------
    DataError
        If there are none, or one of them asks nothing; with file and line.
    """
    placed = _dataset_rows(rows) if isinstance(rows, HubRows) else _file_rows(rows)
    asked = columns.model_copy(update={"completion": None})
    found = [
        sample_from_row(_with_answer(_content(where, row, asked)), where) for where, row in placed
    ]
    if not found:
        raise DataError(f"{rows_in_words(rows)}: it holds no rows")
    return found


def _with_answer(content: dict[str, Any]) -> dict[str, Any]:
    turns = content.get("messages")
    if turns is None:
        is_open = content.get("prompt") is not None and not content.get("completion")
        return content | {"completion": UNANSWERED} if is_open else content
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, Mapping) or last.get("role") != "user":
        return content
    return content | {"messages": [*turns, {"role": "assistant", "content": UNANSWERED}]}


def read_user_rows(rows: Rows, columns: Columns = AS_THEY_ARE) -> list[UserRow]:
    """Read rows of a file or a dataset.

    Raises
    ------
    DataError
        If there are none, or one of them is no conversation; with file and line.
    """
    if isinstance(rows, HubRows):
        placed, name = _dataset_rows(rows), rows.dataset
    else:
        placed, name = _file_rows(rows), rows.name
    found = [_user_row(where, row, columns, name) for where, row in placed]
    if not found:
        raise DataError(f"{rows_in_words(rows)}: it holds no rows")
    return found


def read_candidates(path: Path, columns: Columns = AS_THEY_ARE) -> CandidateRows:
    """Read rows of a file that nobody vouches for: those that are no conversation are left out.

    Raises
    ------
    DataError
        If there are none, or none of them can be used.
    """
    found = usable_rows(
        _file_rows(path), lambda where, row: _user_row(where, row, columns, path.name).sample
    )
    if not found.samples:
        raise DataError(f"{path}: it holds no rows")
    return found


def usable_rows(
    placed: Iterable[tuple[str, Any]], read: Callable[[str, Any], Sample]
) -> CandidateRows:
    """Read rows with their places, and pass over those that are no conversation.

    Raises
    ------
    DataError
        If there are rows, but none that can be used.
    """
    samples: list[Sample] = []
    refused: Counter[str] = Counter()
    first = ""
    for where, row in placed:
        try:
            samples.append(read(where, row))
        except RowError as error:
            refused[error.reason] += 1
            first = first or str(error)
    if refused and not samples:
        raise DataError(f"none of {refused.total()} rows can be used, the first: {first}")
    return CandidateRows(samples, refused, first)


def rows_in_words(rows: Rows) -> str:
    """Where rows come from, for messages."""
    return f"{rows.dataset} ({rows.split})" if isinstance(rows, HubRows) else str(rows)


def _content(where: str, row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """A row with what its columns hold under the names that we know."""
    named = columns.model_dump(exclude_none=True)
    content = row | {key: _value(where, row, key, column) for key, column in named.items()}
    if named.keys() & {"system", "prompt", "completion"}:
        content.pop("messages", None)
    return content


def _user_row(where: str, row: dict[str, Any], columns: Columns, name: str) -> UserRow:
    content = _content(where, row, columns)
    return UserRow(sample_of(where, content, name), row, _told(where, content, "group"))


def sample_of(where: str, content: Mapping[str, Any], source: str, **provenance) -> Sample:
    """The sample of a row; its source is `source` unless it tells of another."""
    told = {key: _told(where, content, key) for key in ("subtask", "task", "source")}
    return sample_from_row(
        content,
        where,
        subtask=told["subtask"] or told["task"],
        source=told["source"] or source,
        **provenance,
    )


def _told(where: str, content: Mapping[str, Any], key: str) -> str:
    """What a row says of itself, as text; nothing where it says nothing."""
    value = content.get(key)
    text = "" if value is None else str(value)
    if not text.isprintable():
        raise DataError(f"{where}: {key} must be printable text, got {text!r}")
    return text


def _value(where: str, row: dict[str, Any], key: str, column: str) -> Any:
    """What a row holds under a column's name, or what a template makes of the row."""
    if any(mark in column for mark in TEMPLATE_MARKS):
        try:
            return template(column).render(row)
        except Exception as error:  # a template may do anything to a value that it did not expect
            raise RowError(f"{where}: columns.{key}: {type(error).__name__}: {error}") from None
    if row.get(column) is None and key in ("messages", "prompt", "completion"):
        there = sorted(name for name, value in row.items() if value is not None)
        raise RowError(
            f"{where}: columns.{key} names {column!r}, but the row has no value there; it has"
            f" values for {there}"
        )
    return row.get(column)


def _file_rows(path: Path) -> Iterator[tuple[str, dict]]:
    reader = READERS.get(path.suffix.lower())
    if reader is None and path.is_dir():
        raise DataError(
            f"{path}: Is a directory; a dataset in a folder is written {{dataset: FOLDER}}"
        )
    if reader is None:
        raise DataError(
            f"{path}: cannot tell what it holds; expected a name that ends in one of"
            f" {', '.join(READERS)}. A dataset is written {{dataset: NAME, split: SPLIT}}"
        )
    try:
        path.stat()
    except OSError as error:
        raise DataError(cannot_be_read(path, error)) from None
    return reader(path)


def _json_rows(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        rows = json.loads(read_text(path), parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects; one object a line is .jsonl")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number}: expected an object, got {type(row).__name__}")
        yield f"{path}: row {number}", row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """A header, then a row a record; all values are text, and an empty one is none."""
    csv.field_size_limit(sys.maxsize)  # the library's own limit is shorter than a long document
    reader = csv.reader(
        io.StringIO(read_text(path), newline=""),
        delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
        strict=True,
    )
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: the header names a column twice: {header}")
        for values in reader:
            where = f"{path}:{reader.line_num}"
            if values and len(values) != len(header):
                raise DataError(
                    f"{where}: {len(values)} values, but the header names {len(header)} columns;"
                    " put values that hold separators or line ends into quotes"
                )
            if values:
                yield where, {name: v for name, v in zip(header, values, strict=True) if v}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict]]:
    # Not by polars, whose reader kills the process on some damaged files.
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise ValueError(f"it names a column twice: {names}")
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (OSError, pa.ArrowException, ValueError, LookupError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None


READERS: dict[str, Callable[[Path], Iterator[tuple[str, dict]]]] = {
    ".jsonl": read_rows,
    ".ndjson": read_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _dataset_rows(rows: HubRows) -> Iterator[tuple[str, dict]]:
    """Rows of a dataset on the hub, of a folder that `save_to_disk` wrote, or of data files."""
    import datasets

    folder = Path(rows.dataset)
    is_saved = any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    try:
        if is_saved:
            saved = datasets.load_from_disk(rows.dataset)
            is_one = isinstance(saved, datasets.Dataset)
            splits: Mapping[Any, Any] = {str(saved.split or "train"): saved} if is_one else saved
            if rows.split not in splits:
                named = ", ".join(map(str, splits))
                raise ValueError(f"its splits are {named}, and slices are for data files alone")
            dataset = splits[rows.split]
        else:
            dataset = datasets.load_dataset(
                rows.dataset, rows.config, split=rows.split, revision=rows.revision
            )
    except Exception as error:  # the library raises kinds of its own and of many others
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{rows_in_words(rows)}: the dataset cannot be loaded: {said}. Expected a name on the"
            " hub that can be reached, or a folder, and one of its splits"
        ) from None
    for number, row in enumerate(dataset, start=1):
        yield f"{rows_in_words(rows)}: row {number}", dict(row)  # type: ignore[arg-type]

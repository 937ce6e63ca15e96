"""A checksum in each row of a table: Lance keeps none of its data, and gives flipped bits out.

Tables that were made before there were checksums have no such column, and keep on without.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evoselect_pipeline.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

CHECKSUM = "checksum"
RESTORE = "restore the home's folder `lance` from a backup"
VECTOR = "vector"  # as bytes: its numbers in JSON would take a hundred times as long


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of a table whose rows are of this one."""
    import pyarrow as pa

    return schema.append(pa.field(CHECKSUM, pa.int64()))


def refuse_other_columns(found: pa.Schema, expected: pa.Schema, where: str) -> None:
    """Raise ArtifactError if a table has other columns than it was made with."""
    columns, made = ({field.name: field.type for field in schema} for schema in (found, expected))
    columns.pop(CHECKSUM, None)
    if columns != made:
        names = sorted(name for name in {**columns, **made} if columns.get(name) != made.get(name))
        raise ArtifactError(f"{where}: columns {names} are not as they were made; {RESTORE}")


def with_checksums(rows: pa.Table) -> pa.Table:
    """Rows as they are stored."""
    import pyarrow as pa

    found = [checksum for batch in rows.to_batches() for checksum in _checksums(batch)]
    return rows.append_column(pa.field(CHECKSUM, pa.int64()), pa.array(found, pa.int64()))


def num_damaged(batch: pa.RecordBatch) -> int:
    """Rows that are not what was stored."""
    if CHECKSUM not in batch.schema.names:
        return 0
    if VECTOR in batch.schema.names and batch[VECTOR].null_count:
        return batch[VECTOR].null_count
    stored = batch[CHECKSUM].to_pylist()
    try:
        found = list(_checksums(batch))
    except (TypeError, ValueError, ArithmeticError):  # what no longer is text, or a number
        return len(batch)
    return sum(one != other for one, other in zip(stored, found, strict=True))


def refuse_damaged(batch: pa.RecordBatch, where: str) -> None:
    """Raise ArtifactError if a row is not what was stored."""
    if damaged := num_damaged(batch):
        raise ArtifactError(
            f"{where}: {damaged} rows are not what was stored: a disk or a copy has changed them;"
            f" {RESTORE}"
        )


def _checksums(batch: pa.RecordBatch) -> Iterator[int]:
    """CRC-32 of each row's columns that say something, by name: a further column changes none."""
    names = sorted(set(batch.schema.names) - {CHECKSUM, VECTOR})
    rows = zip(*(batch[name].to_pylist() for name in names), strict=True)
    vectors = _vectors(batch) if VECTOR in batch.schema.names else [b""] * len(batch)
    for row, vector in zip(rows, vectors, strict=True):
        told = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        yield zlib.crc32(vector, zlib.crc32(json.dumps(told, sort_keys=True).encode()))


def _vectors(batch: pa.RecordBatch) -> Iterator[Any]:
    flat = batch[VECTOR].flatten().to_numpy(zero_copy_only=False)
    return iter(flat.reshape(len(batch), -1)) if len(batch) else iter(())

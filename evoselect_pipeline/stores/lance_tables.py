"""LanceDB tables by name: written by key in one commit, by one writer at a time, read by anybody.

Each table has one writer at a time, by a file lock: lines of one home share the tables, and Lance
was seen to insert a key twice when two processes merged it at once. Any number may read meanwhile.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.artifacts import sync
from evoselect_pipeline.stores.checksums import (
    CHECKSUM,
    RESTORE,
    refuse_damaged,
    refuse_other_columns,
    stored_schema,
    with_checksums,
)
from evoselect_pipeline.stores.faults import fault
from evoselect_pipeline.stores.tables import lookups, of_round, refuse_newer, round_rows, schema_of

if TYPE_CHECKING:
    import lancedb
    import polars as pl
    import pyarrow as pa

ROWS_PER_BATCH = 8_192
ALL_ROWS = 2**31 - 1
# A pass reads a row about twenty times faster than a lookup finds one.
SCAN_RATIO = 20
COMPACT_FRAGMENTS = 20
MOST_FRAGMENTS = 200
MOST_TABLES = 1_000
NEVER = timedelta(days=36_500)
CLOCK_SLACK_S = 1.0  # by which a file's time may lag behind the clock

_log = logging.getLogger(__name__)


class LanceTables:
    """The tables in a folder. Open it in each process by itself: Lance does not survive a fork."""

    def __init__(self, directory: Path, locks_dir: Path):
        self.directory = directory
        self.locks_dir = locks_dir

    @cached_property
    def _db(self) -> lancedb.DBConnection:
        import lancedb

        # Interval zero: a handle sees what other processes committed, at each read.
        return lancedb.connect(str(self.directory), read_consistency_interval=timedelta(0))

    def names(self) -> list[str]:
        """The tables that exist."""
        # Connecting would create the folder, and a reader creates nothing.
        if not self.directory.is_dir():
            return []
        return self._db.list_tables(limit=MOST_TABLES).tables

    def exists(self, name: str) -> bool:
        """Whether a table has been written to."""
        return name in self.names()

    def open(self, name: str) -> Any:
        """The table, created if there is none."""
        if not self.exists(name):
            schema = stored_schema(schema_of(name))
            return self._db.create_table(name, schema=schema, exist_ok=True)
        with self._reading(name):
            table = self._db.open_table(name)
            schema = table.schema
        refuse_newer(schema, f"{self.directory}: table {name}")
        refuse_other_columns(schema, schema_of(name), f"{self.directory}: table {name}")
        return table

    def insert(self, name: str, rows: pa.Table, key: list[str]) -> int:
        """Add the rows whose key is not stored yet, in one commit."""
        kind = name.partition("_")[0]
        with self.writing(name) as table:
            fault(f"lance:{kind}:before")
            rows = _stored(rows, table)
            result = table.merge_insert(key).when_not_matched_insert_all().execute(rows)
            fault(f"lance:{kind}:after")
            self._compact(table)
        return result.num_inserted_rows

    def replace(self, name: str, line: str, round: int, frame: pl.DataFrame) -> None:
        """Make the frame all that the table holds of this round, in one commit."""
        where = of_round(line, round)
        rows = round_rows(name, line, round, frame)
        with self.writing(name) as table:
            fault(f"lance:{name}:before")
            (
                table.merge_insert(["line", "round", "sample_id"])
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(where)
                .execute(_stored(rows, table))
            )
            fault(f"lance:{name}:after")
            self._compact(table)

    def _compact(self, table: Any) -> None:
        """Join small files once there are many; old versions, and so tags and readers, stay.

        Waiting until the biggest file holds less than half of the rows makes the rows rewritten
        over a table's life grow with its size, not with its square. The rows are stored already,
        so a failure is told and no more.
        """
        pieces = table.stats()["fragment_stats"]
        many = pieces["num_fragments"] >= COMPACT_FRAGMENTS
        grown = 2 * pieces["lengths"]["max"] <= table.count_rows()
        if (many and grown) or pieces["num_fragments"] >= MOST_FRAGMENTS:
            fault("lance:compact")
            try:
                table.optimize(cleanup_older_than=NEVER)
            except (OSError, RuntimeError) as error:
                _log.warning(
                    "%s: small files of table %s could not be joined, its rows are stored: %s",
                    *(self.directory, table.name, str(error)[:500]),
                )

    def read(
        self, name: str, where: str, columns: list[str] | None = None, limit: int = ALL_ROWS
    ) -> pa.Table:
        """The rows that a query finds; whole rows are held against their checksums.

        Raises
        ------
        ArtifactError
            If the table cannot be read, or gives out other rows than were stored.
        """
        # A reader never creates a table: it may run beside the writer, or on a read-only disk.
        if not self.exists(name):
            empty = schema_of(name).empty_table()
            return empty.select(columns) if columns else empty
        with self._reading(name):
            query = self.open(name).search().where(where).limit(limit)
            found = (query.select(columns) if columns else query).to_arrow()
        if columns or CHECKSUM not in found.column_names:
            return found
        for batch in found.to_batches():
            refuse_damaged(batch, f"{self.directory}: table {name}")
        return found.drop_columns([CHECKSUM])

    def queries(self, name: str, ids: Sequence[str], where: str = "") -> Iterable[str]:
        """Queries for ids: look each up, or pass over all rows where the ids are a fair share."""
        with self._reading(name):
            stored = self.open(name).count_rows(where or None) if self.exists(name) else 0
        return [where] if stored <= SCAN_RATIO * len(ids) else lookups(ids, where)

    def batches(
        self, name: str, where: str, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows that a query finds, or all of them, a few thousand at a time, as stored."""
        if not self.exists(name):
            return
        with self._reading(name):
            query = self.open(name).search().limit(ALL_ROWS)
            query = query.where(where) if where else query
            yield from (query.select(columns) if columns else query).to_batches(ROWS_PER_BATCH)

    def frame(self, name: str, where: str) -> pl.DataFrame:
        """The rows that a query finds in a table of decisions or scores, in a fixed order."""
        import polars as pl

        frame = pl.from_arrow(self.read(name, where))
        return frame.sort("line", "round", "sample_id")  # type: ignore[union-attr]

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """Be the table's only writer; the table is opened, or created, under the lock.

        What the block wrote is on the disk when it ends: Lance leaves that to the system, so a
        power cut would take rows that were reported as stored.
        """
        from filelock import FileLock

        self.locks_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(self.locks_dir / f"lance-{name}.lock"), self._reporting(name):
            began = time.time()
            yield self.open(name)
            _sync_written(self.directory / f"{name}.lance", began - CLOCK_SLACK_S)
            sync(self.directory)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Say which table could not be read."""
        try:
            yield
        except ArtifactError:
            raise
        except Exception as error:  # of damaged files Lance raises many kinds, and it panics
            raise ArtifactError(
                f"{self.directory}: table {name} cannot be read: {str(error)[:500]}; if its files"
                f" are damaged, {RESTORE}"
            ) from error

    @contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        """Say which table a failed write was for; Lance raises bare OSError and RuntimeError."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise ArtifactError(
                f"{self.directory}: table {name} could not be written, and is unchanged:"
                f" {str(error)[:500]}; check the disk's space and rights, then run again"
            ) from error


def _stored(rows: pa.Table, table: Any) -> pa.Table:
    """Rows as a table keeps them; an old one keeps no checksums."""
    return with_checksums(rows) if CHECKSUM in table.schema.names else rows


def _sync_written(table: Path, since: float) -> None:
    """Bring to disk what a commit wrote: files, and folders with other entries than before."""
    for folder, _, files in os.walk(table):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            if path.stat().st_mtime >= since:
                sync(path)

"""The LanceDB tables: samples, gradients, scores and decisions, written by key and never appended.

Every method that writes makes one commit per table, by `merge_insert` on the table's key. Lance
shows a commit whole or not at all, but a process may die after a commit and before it reports it;
since writing the same rows again changes nothing, a step is repaired by running it again.

Each table has one writer at a time, by a file lock: lines of one home share the tables, and Lance
was seen to insert a key twice when two processes merged it at once. Any number may read meanwhile.
Legend: n rows asked for, D width of a sketched gradient.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evoselect_pipeline.core.features import Features
from evoselect_pipeline.core.records import ID_LENGTH, Sample
from evoselect_pipeline.errors import ArtifactError, DataError
from evoselect_pipeline.stores.faults import fault
from evoselect_pipeline.stores.home import Home, line_name, round_key
from evoselect_pipeline.stores.tables import (
    coordinate_rows,
    coordinates_table,
    fill_rows,
    gradient_rows,
    gradients_table,
    hex_fingerprint,
    hex_id,
    lookups,
    of_round,
    round_rows,
    sample_of,
    sample_rows,
    schema_of,
)

if TYPE_CHECKING:
    import lancedb
    import numpy as np
    import polars as pl
    import pyarrow as pa

    from evoselect_pipeline.core.gradients import GradientBatch

ROWS_PER_BATCH = 8_192
ALL_ROWS = 2**31 - 1
# A pass reads a row about twenty times faster than a lookup finds one.
SCAN_RATIO = 20
COMPACT_FRAGMENTS = 20
MOST_FRAGMENTS = 200
MOST_TABLES = 1_000
SHORTEST_PREFIX = 4
NEVER = timedelta(days=36_500)


class LanceStore:
    """All row data of a home. Open it in each process by itself: Lance does not survive a fork."""

    def __init__(self, home: Home):
        self.directory = home.lance_dir
        self.locks_dir = home.locks_dir

    # Samples

    def put_samples(
        self,
        samples: Sequence[Sample],
        line: str,
        round: int,
        num_tokens: Sequence[int | None] | None = None,
    ) -> int:
        """Store samples; the first sight of a sample keeps its provenance. Return how many are new.

        Parameters
        ----------
        samples : sequence of Sample
            Repeated ones are stored once.
        line, round : str, int
            Where they were seen.
        num_tokens : sequence of int, optional
            Length of each encoded sample, where known.
        """
        rows = sample_rows(samples, line, round, num_tokens)
        return self._insert("samples", rows, ["sample_id"])

    def get_samples(self, ids: Sequence[str]) -> list[Sample]:
        """The samples of these ids, in their order.

        Raises
        ------
        ArtifactError
            If some are not stored.
        """
        found = {}
        for where in lookups(ids):
            for row in self._read("samples", where).to_pylist():
                found[row["sample_id"]] = sample_of(row)
        _refuse_missing([i for i in ids if i not in found], "samples", self.directory)
        return [found[i] for i in ids]

    def sample_row(self, sample_id: str) -> dict[str, Any]:
        """Everything stored about one sample, with the line and round that first saw it."""
        rows = self._read("samples", f"sample_id = '{hex_id(sample_id)}'").to_pylist()
        _refuse_missing([] if rows else [sample_id], "samples", self.directory)
        return rows[0]

    def find_sample(self, prefix: str) -> str:
        """The one sample id that starts with these hex digits.

        Raises
        ------
        DataError
            If the prefix is not hex, or fits no sample or several; these are listed.
        """
        if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},{ID_LENGTH}}}", prefix):
            raise DataError(
                f"sample id {prefix!r}: expected {SHORTEST_PREFIX} to {ID_LENGTH} digits of 0-9a-f"
            )
        rows = self._read("samples", f"sample_id LIKE '{prefix}%'", ["sample_id"], limit=11)
        ids = sorted(rows["sample_id"].to_pylist())
        if not ids:
            raise DataError(f"sample id {prefix}: no stored sample starts with it")
        if len(ids) > 1:
            more = ", ..." if len(ids) > 10 else ""
            raise DataError(
                f"sample id {prefix}: ambiguous, give more digits of one of"
                f" {', '.join(ids[:10])}{more}"
            )
        return ids[0]

    # Gradients

    def present(self, fingerprint: str, dim: int) -> set[str]:
        """Ids whose gradients under this fingerprint are stored."""
        return self._present(gradients_table(dim), fingerprint)

    def placed(self, span: str, num_targets: int) -> set[str]:
        """Ids whose coordinates among the targets of this span are stored."""
        return self._present(coordinates_table(num_targets), span)

    def put_gradients(self, fingerprint: str, batch: GradientBatch, span: str | None = None) -> int:
        """Store gradient features as float16, in one commit a table; return how many are new.

        With a `span`, the rows' coordinates in it go first: a row counts as done once it has both.

        Raises
        ------
        NumericsError
            If a norm, loss or vector is not finite, a gradient vanishes, or a vector is not of
            unit length. Lance would take infinities without a word.
        """
        rows = gradient_rows(fingerprint, batch)
        if span is not None:
            name = coordinates_table(batch.coordinates.shape[1])
            self._insert(name, coordinate_rows(span, batch), ["sample_id", "fingerprint"])
        name = gradients_table(batch.vectors.shape[1])
        return self._insert(name, rows, ["sample_id", "fingerprint"])

    def read_gradients(self, ids: Sequence[str], fingerprint: str, dim: int) -> Features:
        """Gradient features in the order of `ids`; rows are made unit again after float16.

        Raises
        ------
        ArtifactError
            If some were not computed under this fingerprint, with their number.
        """
        import numpy as np

        columns = {
            "vector": np.zeros((len(ids), dim), np.float32),
            "norm": np.zeros(len(ids), np.float32),
            "loss": np.zeros(len(ids), np.float32),
            "num_tokens": np.zeros(len(ids), np.int32),
        }
        self._fill(gradients_table(dim), ids, fingerprint, columns)
        columns["vector"] /= np.linalg.norm(columns["vector"], axis=1, keepdims=True)
        return Features(*columns.values())

    def read_coordinates(self, ids: Sequence[str], span: str, num_targets: int) -> np.ndarray:
        """Coordinates [n, M] among the targets, in the order of `ids`, float32."""
        import numpy as np

        columns = {"vector": np.zeros((len(ids), num_targets), np.float32)}
        self._fill(coordinates_table(num_targets), ids, span, columns)
        return columns["vector"]

    def _present(self, name: str, fingerprint: str) -> set[str]:
        where = f"fingerprint = '{hex_fingerprint(fingerprint)}'"
        return set(self._read(name, where, ["sample_id"])["sample_id"].to_pylist())

    def _fill(
        self, name: str, ids: Sequence[str], fingerprint: str, columns: dict[str, np.ndarray]
    ) -> None:
        """Read the rows of some ids into columns, in the order of `ids`."""
        import numpy as np

        seen = np.zeros(len(ids), bool)
        row_of = {i: row for row, i in enumerate(ids)}
        for where in self._vector_queries(name, ids, fingerprint):
            for batch in self._batches(name, where):
                fill_rows(columns, seen, row_of, batch)
        missing = [i for i, row in row_of.items() if not seen[row]]
        what = f"{name.partition('_')[0]} under fingerprint {fingerprint}"
        _refuse_missing(missing, what, self.directory)
        if len(row_of) < len(ids):  # a repeated id was filled where it stands last
            places = [row_of[i] for i in ids]
            for column in columns.values():
                column[:] = column[places]

    def _vector_queries(self, name: str, ids: Sequence[str], fingerprint: str) -> Iterable[str]:
        """Look the ids up, or pass once over all rows where the ids are a fair share of them."""
        where = f"fingerprint = '{hex_fingerprint(fingerprint)}'"
        stored = self._table(name).count_rows(where) if self._exists(name) else 0
        return [where] if stored <= SCAN_RATIO * len(ids) else lookups(ids, where)

    # Scores and decisions

    def put_scores(self, line: str, round: int, frame: pl.DataFrame) -> None:
        """Replace the scores of a round; columns of `tables.schema_of`, those left out are null."""
        self._replace("scores", line, round, frame)

    def read_scores(self, line: str, round: int | None = None) -> pl.DataFrame:
        """The scores of a round, or of all rounds of a line, by round and sample id."""
        return self._frame("scores", of_round(line, round))

    def scores_of(self, sample_id: str) -> pl.DataFrame:
        """The scores of one sample in every line and round."""
        return self._frame("scores", f"sample_id = '{hex_id(sample_id)}'")

    def put_decisions(self, line: str, round: int, frame: pl.DataFrame) -> None:
        """Replace the decisions of a round, so that a run with other settings leaves none behind.

        Columns as in `tables.schema_of("decisions")`; those left out are null.
        """
        self._replace("decisions", line, round, frame)

    def read_decisions(self, line: str, round: int | None = None) -> pl.DataFrame:
        """The decisions of a round, or of all rounds of a line, by round and sample id."""
        return self._frame("decisions", of_round(line, round))

    def decisions_of(self, sample_id: str) -> pl.DataFrame:
        """What every line and round decided about one sample."""
        return self._frame("decisions", f"sample_id = '{hex_id(sample_id)}'")

    # Versions

    def versions(self) -> dict[str, int]:
        """The current version of each table."""
        return {name: self._table(name).version for name in sorted(self._names())}

    def tag_round(
        self, line: str, round: int, versions: dict[str, int] | None = None
    ) -> dict[str, int]:
        """Keep the table versions that a round read (the current ones if not given), by a tag."""
        tag = f"{line_name(line)}-r{round_key(round)}"
        versions = versions if versions is not None else self.versions()
        for name, version in versions.items():
            with self._writing(name) as table:
                tags = table.tags
                fault("lance:tag")
                (tags.update if tag in tags.list() else tags.create)(tag, version)
        return versions

    def prune(self, older_than: timedelta) -> None:
        """Free the disk of table versions older than this; the tags that hold them go first."""
        # Generous, for Lance looks at the clock later than we do and refuses if a tag is left.
        cutoff = datetime.now() - older_than + timedelta(minutes=1)
        for name in self.versions():
            with self._writing(name) as table:
                # First what would make a new version, so that the current one is the one that stays
                table.optimize(cleanup_older_than=NEVER)
                created = {v["version"]: v["timestamp"] for v in table.list_versions()}
                for tag, entry in table.tags.list().items():
                    if created[entry["version"]] < cutoff and entry["version"] != table.version:
                        table.tags.delete(tag)
                table.optimize(cleanup_older_than=older_than)

    # The database

    @cached_property
    def _db(self) -> lancedb.DBConnection:
        import lancedb

        # Interval zero: a handle sees what other processes committed, at each read.
        return lancedb.connect(str(self.directory), read_consistency_interval=timedelta(0))

    def _names(self) -> list[str]:
        # Connecting would create the folder, and a reader creates nothing.
        if not self.directory.is_dir():
            return []
        return self._db.list_tables(limit=MOST_TABLES).tables

    def _exists(self, name: str) -> bool:
        return name in self._names()

    def _table(self, name: str) -> Any:
        if not self._exists(name):
            return self._db.create_table(name, schema=schema_of(name), exist_ok=True)
        return self._db.open_table(name)

    def _insert(self, name: str, rows: pa.Table, key: list[str]) -> int:
        """Add the rows whose key is not stored yet, in one commit."""
        kind = name.partition("_")[0]
        with self._writing(name) as table:
            fault(f"lance:{kind}:before")
            result = table.merge_insert(key).when_not_matched_insert_all().execute(rows)
            fault(f"lance:{kind}:after")
            self._compact(table)
        return result.num_inserted_rows

    def _replace(self, name: str, line: str, round: int, frame: pl.DataFrame) -> None:
        """Make the frame all that the table holds of this round, in one commit."""
        where = of_round(line, round)
        rows = round_rows(name, line, round, frame)
        with self._writing(name) as table:
            fault(f"lance:{name}:before")
            (
                table.merge_insert(["line", "round", "sample_id"])
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(where)
                .execute(rows)
            )
            fault(f"lance:{name}:after")
            self._compact(table)

    def _compact(self, table: Any) -> None:
        """Join small files once there are many; old versions, and so tags and readers, stay.

        Waiting until the biggest file holds less than half of the rows makes the rows rewritten
        over a table's life grow with its size, not with its square.
        """
        pieces = table.stats()["fragment_stats"]
        many = pieces["num_fragments"] >= COMPACT_FRAGMENTS
        grown = 2 * pieces["lengths"]["max"] <= table.count_rows()
        if (many and grown) or pieces["num_fragments"] >= MOST_FRAGMENTS:
            fault("lance:compact")
            table.optimize(cleanup_older_than=NEVER)

    def _read(
        self, name: str, where: str, columns: list[str] | None = None, limit: int = ALL_ROWS
    ) -> pa.Table:
        # A reader never creates a table: it may run beside the writer, or on a read-only disk.
        if not self._exists(name):
            empty = schema_of(name).empty_table()
            return empty.select(columns) if columns else empty
        query = self._table(name).search().where(where).limit(limit)
        return (query.select(columns) if columns else query).to_arrow()

    def _batches(self, name: str, where: str) -> Iterable[pa.RecordBatch]:
        if not self._exists(name):
            return ()
        return self._table(name).search().where(where).limit(ALL_ROWS).to_batches(ROWS_PER_BATCH)

    def _frame(self, name: str, where: str) -> pl.DataFrame:
        import polars as pl

        frame = pl.from_arrow(self._read(name, where))
        return frame.sort("line", "round", "sample_id")  # type: ignore[union-attr]

    @contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        """Be the table's only writer; the table is opened, or created, under the lock."""
        from filelock import FileLock

        self.locks_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(self.locks_dir / f"lance-{name}.lock"), self._reporting(name):
            yield self._table(name)

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


def _refuse_missing(missing: list[str], what: str, directory: Path) -> None:
    if missing:
        raise ArtifactError(
            f"{directory}: {len(missing)} {what} are not stored, the first is {missing[0]};"
            " run the step that makes them"
        )

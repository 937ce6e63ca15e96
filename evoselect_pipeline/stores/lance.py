"""The LanceDB tables: samples, gradients, scores and decisions, written by key and never appended.

Every method that writes makes one commit per table, by `merge_insert` on the table's key. Lance
shows a commit whole or not at all, but a process may die after a commit and before it reports it;
since writing the same rows again changes nothing, a step is repaired by running it again.

Legend: n rows asked for, D width of a sketched gradient.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evoselect_pipeline.core.features import Features
from evoselect_pipeline.core.records import ID_LENGTH, Sample
from evoselect_pipeline.errors import ArtifactError, DataError
from evoselect_pipeline.stores.checksums import RESTORE
from evoselect_pipeline.stores.faults import fault
from evoselect_pipeline.stores.home import Home, line_name, round_key
from evoselect_pipeline.stores.lance_tables import NEVER, LanceTables
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
    sample_of,
    sample_rows,
    schema_of,
)

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from evoselect_pipeline.core.gradients import GradientBatch

SHORTEST_PREFIX = 4
FEATURE_BYTES = 2  # float16
SPACE_TO_JOIN = 1.3  # files of a table are joined by writing them anew, a part at a time


class LanceStore:
    """All row data of a home. Open it in each process by itself: Lance does not survive a fork."""

    def __init__(self, home: Home):
        self.directory = home.lance_dir
        self.tables = LanceTables(home.lance_dir, home.locks_dir)

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
        return self.tables.insert("samples", rows, ["sample_id"])

    def get_samples(self, ids: Sequence[str]) -> list[Sample]:
        """The samples of these ids, in their order.

        Raises
        ------
        ArtifactError
            If some are not stored, or are not what their ids say.
        """
        found = {}
        for where in lookups(ids):
            for row in self.tables.read("samples", where).to_pylist():
                found[row["sample_id"]] = sample_of(row)
        _refuse_changed(found, self.directory)
        _refuse_missing([i for i in ids if i not in found], "samples", self.directory)
        return [found[i] for i in ids]

    def sample_row(self, sample_id: str) -> dict[str, Any]:
        """Everything stored about one sample, with the line and round that first saw it."""
        rows = self.tables.read("samples", f"sample_id = '{hex_id(sample_id)}'").to_pylist()
        _refuse_missing([] if rows else [sample_id], "samples", self.directory)
        return rows[0]

    def origins(self, ids: Sequence[str]) -> pl.DataFrame:
        """Source, prompt and parents of each of these samples, without their text.

        Raises
        ------
        ArtifactError
            If some are not stored.
        """
        import polars as pl
        import pyarrow as pa

        columns = ["sample_id", "source", "prompt_id", "parents"]
        wanted, found = set(ids), []
        for where in self.tables.queries("samples", ids):
            for batch in self.tables.batches("samples", where, columns):
                is_wanted = [i in wanted for i in batch["sample_id"].to_pylist()]
                found.append(batch.filter(pa.array(is_wanted)))
        schema = schema_of("samples").empty_table().select(columns).schema
        frame = pl.DataFrame(pa.Table.from_batches(found, schema))
        _refuse_missing(sorted(wanted.difference(frame["sample_id"])), "samples", self.directory)
        return frame

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
        rows = self.tables.read("samples", f"sample_id LIKE '{prefix}%'", ["sample_id"], limit=11)
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

    def refuse_small_disk(self, num_rows: int, width: int) -> None:
        """Refuse features [num_rows, width] that the disk has no room for, before any is computed.

        Raises
        ------
        ArtifactError
            With what is free, and how what is wanted comes about.
        """
        wanted = FEATURE_BYTES * num_rows * width * SPACE_TO_JOIN
        free = shutil.disk_usage(self.directory).free
        if wanted > free:
            raise ArtifactError(
                f"{self.directory}: {_gib(free)} are free, {_gib(wanted)} are wanted:"
                f" {FEATURE_BYTES} bytes x {width:,} numbers x {num_rows:,} rows, times"
                f" {SPACE_TO_JOIN} while files are joined. Free space, lower gradients.dim, or"
                " set EVOSELECT_HOME to another disk"
            )

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
            self.tables.insert(name, coordinate_rows(span, batch), ["sample_id", "fingerprint"])
        name = gradients_table(batch.vectors.shape[1])
        return self.tables.insert(name, rows, ["sample_id", "fingerprint"])

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
        return set(self.tables.read(name, where, ["sample_id"])["sample_id"].to_pylist())

    def _fill(
        self, name: str, ids: Sequence[str], fingerprint: str, columns: dict[str, np.ndarray]
    ) -> None:
        """Read the rows of some ids into columns, in the order of `ids`."""
        import numpy as np

        seen = np.zeros(len(ids), bool)
        row_of = {i: row for row, i in enumerate(ids)}
        for where in self.tables.queries(
            name, ids, f"fingerprint = '{hex_fingerprint(fingerprint)}'"
        ):
            for batch in self.tables.batches(name, where):
                fill_rows(columns, seen, row_of, batch, f"{self.directory}: table {name}")
        missing = [i for i, row in row_of.items() if not seen[row]]
        what = f"{name.partition('_')[0]} under fingerprint {fingerprint}"
        _refuse_missing(missing, what, self.directory)
        if len(row_of) < len(ids):  # a repeated id was filled where it stands last
            places = [row_of[i] for i in ids]
            for column in columns.values():
                column[:] = column[places]

    # Scores and decisions

    def put_scores(self, line: str, round: int, frame: pl.DataFrame) -> None:
        """Replace the scores of a round; columns of `tables.schema_of`, those left out are null."""
        self.tables.replace("scores", line, round, frame)

    def read_scores(self, line: str, round: int | None = None) -> pl.DataFrame:
        """The scores of a round, or of all rounds of a line, by round and sample id."""
        return self.tables.frame("scores", of_round(line, round))

    def scores_of(self, sample_id: str) -> pl.DataFrame:
        """The scores of one sample in every line and round."""
        return self.tables.frame("scores", f"sample_id = '{hex_id(sample_id)}'")

    def put_decisions(self, line: str, round: int, frame: pl.DataFrame) -> None:
        """Replace the decisions of a round, so that a run with other settings leaves none behind.

        Columns as in `tables.schema_of("decisions")`; those left out are null.
        """
        self.tables.replace("decisions", line, round, frame)

    def read_decisions(self, line: str, round: int | None = None) -> pl.DataFrame:
        """The decisions of a round, or of all rounds of a line, by round and sample id."""
        return self.tables.frame("decisions", of_round(line, round))

    def decisions_of(self, sample_id: str) -> pl.DataFrame:
        """What every line and round decided about one sample."""
        return self.tables.frame("decisions", f"sample_id = '{hex_id(sample_id)}'")

    # Versions

    def versions(self) -> dict[str, int]:
        """The current version of each table."""
        return {name: self.tables.open(name).version for name in sorted(self.tables.names())}

    def tag_round(self, line: str, round: int) -> dict[str, int]:
        """Keep the current table versions by a tag of the round, and return them."""
        tag, versions = f"{line_name(line)}-r{round_key(round)}", self.versions()
        for name, version in versions.items():
            with self.tables.writing(name) as table:
                tags = table.tags
                fault("lance:tag")
                (tags.update if tag in tags.list() else tags.create)(tag, version)
        return versions

    def prune(self, older_than: timedelta) -> None:
        """Free the disk of table versions older than this; the tags that hold them go first.

        Only tables whose oldest version is twice as old are touched, for a table is rewritten.
        """
        # Generous, for Lance looks at the clock later than we do and refuses if a tag is left.
        cutoff = datetime.now() - older_than + timedelta(minutes=1)
        for name in self.versions():
            with self.tables.writing(name) as table:
                oldest = min(v["timestamp"] for v in table.list_versions())
                if oldest > datetime.now() - 2 * older_than:
                    continue
                # First what would make a new version, so that the current one is the one that stays
                table.optimize(cleanup_older_than=NEVER)
                created = {v["version"]: v["timestamp"] for v in table.list_versions()}
                for tag, entry in table.tags.list().items():
                    if created[entry["version"]] < cutoff and entry["version"] != table.version:
                        table.tags.delete(tag)
                table.optimize(cleanup_older_than=older_than)


def _refuse_changed(found: dict[str, Sample], directory: Path) -> None:
    """Hold samples against their ids: tables made before there were checksums have but these."""
    changed = [sample_id for sample_id, sample in found.items() if sample.sample_id != sample_id]
    if changed:
        raise ArtifactError(
            f"{directory}: {len(changed)} samples are not what was stored, the first is"
            f" {changed[0]}; {RESTORE}"
        )


def _refuse_missing(missing: list[str], what: str, directory: Path) -> None:
    if missing:
        raise ArtifactError(
            f"{directory}: {len(missing)} {what} are not stored, the first is {missing[0]};"
            " remove the folder of the stage that makes them, then materialize it again"
        )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"

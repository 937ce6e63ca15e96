"""Whether the LanceDB tables keep what they promise: a key once, rows as stored, tags that open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.checksums import CHECKSUM, num_damaged
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance_tables import LanceTables
from evoselect_pipeline.stores.tables import sample_of

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = {
    "samples": ("sample_id",),
    "gradients": ("sample_id", "fingerprint"),
    "coordinates": ("sample_id", "fingerprint"),
    "scores": ("line", "round", "sample_id"),
    "decisions": ("line", "round", "sample_id"),
}


@dataclass(frozen=True)
class TableProblem:
    """A promise that a table breaks, and the tag that breaks it, if one does."""

    table: str
    what: str
    tag: str | None = None


def table_problems(home: Home) -> Iterator[TableProblem]:
    """Name each broken promise of each table; one pass over all that they hold."""
    tables = LanceTables(home.lance_dir, home.locks_dir)
    for name in sorted(tables.names()):
        try:
            yield from _problems_of(tables, name)
        except ArtifactError as error:  # one table hides nothing of another
            yield TableProblem(name, str(error))


def _problems_of(tables: LanceTables, name: str) -> Iterator[TableProblem]:
    import polars as pl

    key = list(KEYS[name.partition("_")[0]])
    frame = pl.from_arrow(tables.read(name, "true", key))
    repeated = len(frame) - frame.n_unique()  # type: ignore[union-attr]
    if repeated:
        what = f"{repeated} of {len(frame)} rows repeat a key ({', '.join(key)})"
        yield TableProblem(name, what)
    if changed := sum(_num_changed(name, batch) for batch in tables.batches(name, "")):
        what = f"{changed} of {len(frame)} rows are not what was stored"
        yield TableProblem(name, what)
    table = tables.open(name)
    versions = {version["version"] for version in table.list_versions()}
    for tag, entry in table.tags.list().items():
        if entry["version"] not in versions:
            what = f"tag {tag} names version {entry['version']}, which is gone"
            yield TableProblem(name, what, tag)


def _num_changed(name: str, batch: pa.RecordBatch) -> int:
    """Rows that are not what was stored; of old tables only samples tell, by their ids."""
    if name == "samples" and CHECKSUM not in batch.schema.names:
        return sum(sample_of(row).sample_id != row["sample_id"] for row in batch.to_pylist())
    return num_damaged(batch)


def remove_tag(home: Home, table: str, tag: str) -> None:
    """Remove a tag, whatever it names; the rows are not touched."""
    with LanceTables(home.lance_dir, home.locks_dir).writing(table) as opened:
        opened.tags.delete(tag)

"""Whether the LanceDB tables keep what they promise: a key once, and tags that can be opened."""

from __future__ import annotations

from collections.abc import Iterator

from evoselect_pipeline.stores.home import Home

KEYS = {
    "samples": ("sample_id",),
    "gradients": ("sample_id", "fingerprint"),
    "coordinates": ("sample_id", "fingerprint"),
    "scores": ("line", "round", "sample_id"),
    "decisions": ("line", "round", "sample_id"),
}


def table_problems(home: Home) -> Iterator[tuple[str, str]]:
    """Name each table that breaks a promise, with a sentence; one pass over the key columns."""
    import lancedb
    import polars as pl

    if not home.lance_dir.is_dir():
        return
    database = lancedb.connect(str(home.lance_dir))
    for name in database.list_tables(limit=1_000).tables:
        table = database.open_table(name)
        key = list(KEYS[name.partition("_")[0]])
        frame = pl.from_arrow(table.search().select(key).to_arrow())
        repeated = len(frame) - frame.n_unique()  # type: ignore[union-attr]
        if repeated:
            yield name, f"{repeated} of {len(frame)} rows repeat a key ({', '.join(key)})"
        versions = {version["version"] for version in table.list_versions()}
        for tag, entry in table.tags.list().items():
            if entry["version"] not in versions:
                yield name, f"tag {tag} names version {entry['version']}, which is gone"

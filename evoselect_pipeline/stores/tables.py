"""What the LanceDB tables hold: schemas, rows to and from Arrow, and queries that cannot escape.

Legend: n rows, D width of a sketched gradient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evoselect_pipeline.core.records import ID_LENGTH, Message, Sample
from evoselect_pipeline.errors import ArtifactError, DataError, NumericsError
from evoselect_pipeline.stores.checksums import RESTORE, refuse_damaged
from evoselect_pipeline.stores.home import line_name, round_key

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa

    from evoselect_pipeline.core.gradients import GradientBatch

LAYOUT_VERSION = 1
LAYOUT = b"evoselect_layout"  # in a table's schema; tables older than this mark have layout 1
IDS_PER_QUERY = 5_000
UNIT_TOLERANCE = 1e-3

_HEX_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
_HEX_FINGERPRINT = re.compile(r"[0-9a-f]{8,64}")


def gradients_table(dim: int) -> str:
    """Name of the table that holds gradients of width D."""
    return f"gradients_{int(dim)}"


def coordinates_table(num_targets: int) -> str:
    """Name of the table that holds coordinates among M targets."""
    return f"coordinates_{int(num_targets)}"


def schema_of(name: str) -> pa.Schema:
    """The Arrow schema of a table."""
    import pyarrow as pa

    kind, _, dim = name.partition("_")
    text, count, real = pa.string(), pa.int32(), pa.float64()
    turn = pa.struct([("role", text), ("content", text)])
    of_round = {"line": text, "round": count, "sample_id": text}
    of_vector = {
        "sample_id": text,
        "fingerprint": text,
        "vector": pa.list_(pa.float16(), int(dim or 1)),
    }
    fields = {
        "samples": {
            "sample_id": text,
            "messages": pa.list_(turn),
            **dict.fromkeys(("subtask", "source", "prompt_id"), text),
            "parents": pa.list_(text),
            "num_tokens": count,
            "first_line": text,
            "first_round": count,
        },
        "gradients": of_vector | {"norm": pa.float32(), "loss": pa.float32(), "num_tokens": count},
        "coordinates": of_vector,
        "scores": of_round
        | {"weight": real, "potential": real, "energy": real}
        | {"nearest_target": text, "nearest_cosine": real, "transport_mass": real, "prior": real},
        "decisions": of_round
        | {"selected": pa.bool_(), "stage": text, "reason": text, "rank": count}
        | {"target_id": text, "transport_mass": real, "cost": real}
        | {"related_id": text, "nearest_id": text, "nearest_cosine": real},
    }
    return pa.schema(fields[kind]).with_metadata({LAYOUT: str(LAYOUT_VERSION)})


def refuse_newer(schema: pa.Schema, where: str) -> None:
    """Refuse a table that a newer version of this package made.

    Raises
    ------
    ArtifactError
        Naming the table and what to do.
    """
    told = (schema.metadata or {}).get(LAYOUT, b"1").decode("utf-8", "replace")
    if not told.isdigit() or int(told) > LAYOUT_VERSION:
        raise ArtifactError(
            f"{where}: layout version {told[:20]!r}, this version reads up to {LAYOUT_VERSION};"
            " upgrade evoselect-pipeline"
        )


def sample_rows(
    samples: Sequence[Sample], line: str, round: int, num_tokens: Sequence[int | None] | None
) -> pa.Table:
    """Samples as Arrow rows; a repeated one only where it stands first."""
    import pyarrow as pa

    where = {"first_line": line_name(line), "first_round": int(round_key(round))}
    lengths = num_tokens if num_tokens is not None else [None] * len(samples)
    rows: dict[str, dict[str, Any]] = {}
    for sample, length in zip(samples, lengths, strict=True):
        if sample.sample_id not in rows:
            rows[sample.sample_id] = {
                "sample_id": sample.sample_id,
                "messages": [{"role": m.role, "content": m.content} for m in sample.messages],
                "subtask": sample.subtask,
                "source": sample.source,
                "prompt_id": sample.prompt_id,
                "parents": list(sample.parents),
                "num_tokens": length,
                **where,
            }
    return pa.Table.from_pylist(list(rows.values()), schema=schema_of("samples"))


def sample_of(row: dict[str, Any]) -> Sample:
    """The sample that `sample_rows` wrote.

    Raises
    ------
    ArtifactError
        If a part of it is missing, as damage may leave a table without checksums.
    """
    parts = [row["messages"], row["parents"]]
    if None in parts or any(turn is None or None in turn.values() for turn in row["messages"]):
        raise ArtifactError(f"sample {row['sample_id']}: a part of it is missing; {RESTORE}")
    return Sample(
        messages=tuple(Message(turn["role"], turn["content"]) for turn in row["messages"]),
        subtask=row["subtask"],
        source=row["source"],
        prompt_id=row["prompt_id"],
        parents=tuple(row["parents"]),
    )


def gradient_rows(fingerprint: str, batch: GradientBatch) -> pa.Table:
    """Checked gradient features as Arrow rows; a repeated id only where it stands first."""
    import numpy as np

    vectors_nD = np.asarray(batch.vectors, np.float32)
    _check_gradients(batch, vectors_nD)
    more = {
        "norm": np.asarray(batch.norms, np.float32),
        "loss": np.asarray(batch.losses, np.float32),
        "num_tokens": np.asarray(batch.num_tokens, np.int32),
    }
    name = gradients_table(vectors_nD.shape[1])
    return _vector_rows(name, fingerprint, batch.sample_ids, vectors_nD, more)


def coordinate_rows(span: str, batch: GradientBatch) -> pa.Table:
    """Checked coordinates among the targets as Arrow rows."""
    import numpy as np

    coordinates_nM = np.asarray(batch.coordinates, np.float32)
    if not np.isfinite(coordinates_nM).all() or np.abs(coordinates_nM).max(initial=0) > 1.01:
        raise NumericsError("coordinates: expected finite parts of unit vectors; look at the model")
    name = coordinates_table(coordinates_nM.shape[1])
    return _vector_rows(name, span, batch.sample_ids, coordinates_nM, {})


def _vector_rows(
    table: str,
    fingerprint: str,
    sample_ids: Sequence[str],
    vectors_nD: np.ndarray,
    more: dict[str, np.ndarray],
) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    # Lance inserts both of two equal keys in one batch.
    first = {i: row for row, i in reversed(list(enumerate(sample_ids)))}
    rows = np.array(sorted(first.values()), int)
    flat = pa.array(vectors_nD[rows].astype(np.float16).ravel())
    columns = {
        "sample_id": [hex_id(sample_ids[row]) for row in rows],
        "fingerprint": [hex_fingerprint(fingerprint)] * len(rows),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors_nD.shape[1]),
        **{name: values[rows] for name, values in more.items()},
    }
    return pa.table(columns, schema=schema_of(table))


def fill_rows(
    columns: dict[str, np.ndarray],
    seen: np.ndarray,
    row_of: dict[str, int],
    batch: pa.RecordBatch,
    where: str,
) -> None:
    """Copy the rows that were asked for out of one Arrow batch, column by column.

    Raises
    ------
    ArtifactError
        If one of them is not what was stored `where`.
    """
    import numpy as np

    pairs = [
        (row_of[i], position)
        for position, i in enumerate(batch["sample_id"].to_pylist())
        if i in row_of
    ]
    if not pairs:
        return
    rows, positions = np.array(pairs).T
    batch = batch.take(positions)
    refuse_damaged(batch, where)
    for name, column in columns.items():
        values = batch[name].flatten() if column.ndim == 2 else batch[name]
        flat = values.to_numpy(zero_copy_only=False)
        column[rows] = flat.reshape(-1, *column.shape[1:])
    seen[rows] = True


def round_rows(name: str, line: str, round: int, frame: pl.DataFrame) -> pa.Table:
    """A caller's frame as rows of `scores` or `decisions`; columns left out become null."""
    import polars as pl
    import polars.selectors as cs
    import pyarrow as pa

    schema, of_round = schema_of(name), f"{name} of {line} round {round}"
    unknown = set(frame.columns) - set(schema.names[2:])
    if unknown or "sample_id" not in frame.columns:
        raise DataError(
            f"{of_round}: columns are sample_id and any of {schema.names[3:]}; got {frame.columns}"
        )
    ids = [hex_id(i) for i in frame["sample_id"]]
    if len(set(ids)) != len(ids):
        raise DataError(f"{of_round}: {len(ids) - len(set(ids))} samples have more than one row")
    for column in frame.select(cs.float()):
        if not column.drop_nulls().is_finite().all():
            raise NumericsError(f"{of_round}: {column.name} holds NaN or infinity")
    absent = [pl.lit(None).alias(column) for column in schema.names if column not in frame.columns]
    whole = frame.with_columns(*absent).with_columns(line=pl.lit(line), round=pl.lit(round))
    try:
        return whole.select(schema.names).to_arrow().cast(schema)
    except pa.ArrowException as error:
        raise DataError(f"{of_round}: a column has the wrong type: {error}") from None


def hex_id(sample_id: object) -> str:
    """Return a sample id that is safe inside a query, or raise DataError."""
    if not isinstance(sample_id, str) or not _HEX_ID.fullmatch(sample_id):
        raise DataError(f"sample id {str(sample_id)[:80]!r}: expected {ID_LENGTH} of 0-9a-f")
    return sample_id


def hex_fingerprint(fingerprint: object) -> str:
    """Return a fingerprint that is safe inside a query, or raise DataError."""
    if not isinstance(fingerprint, str) or not _HEX_FINGERPRINT.fullmatch(fingerprint):
        raise DataError(f"fingerprint {str(fingerprint)[:80]!r}: expected 8 to 64 of 0-9a-f")
    return fingerprint


def of_round(line: str, round: int | None) -> str:
    """A query for one round, or all rounds, of a line."""
    where = f"line = '{line_name(line)}'"
    return where if round is None else f"{where} AND round = {int(round_key(round))}"


def lookups(ids: Sequence[str], also: str = "") -> Iterator[str]:
    """Queries that together find the rows of the ids, each narrowed by `also`."""
    unique = [hex_id(i) for i in dict.fromkeys(ids)]
    for start in range(0, len(unique), IDS_PER_QUERY):
        listed = ",".join(f"'{i}'" for i in unique[start : start + IDS_PER_QUERY])
        yield f"{also} AND sample_id IN ({listed})" if also else f"sample_id IN ({listed})"


def _check_gradients(batch: GradientBatch, vectors_nD: np.ndarray) -> None:
    """Refuse what Lance would store without a word: infinities, vanished and broken rows."""
    import numpy as np

    num_rows = len(batch.sample_ids)
    shapes = [np.shape(column) for column in (batch.norms, batch.losses, batch.num_tokens)]
    if vectors_nD.ndim != 2 or len(vectors_nD) != num_rows or shapes != [(num_rows,)] * 3:
        raise NumericsError(
            f"gradients: expected vectors [{num_rows}, D] and {num_rows} norms, losses and"
            f" num_tokens; got {vectors_nD.shape} and {shapes}"
        )
    # In float64, so that the length of a huge row is a number and not an overflow.
    lengths = np.linalg.norm(vectors_nD.astype(np.float64), axis=1)
    norms, losses = np.asarray(batch.norms), np.asarray(batch.losses)
    problems = {
        "a norm that is not finite and positive": ~(np.isfinite(norms) & (norms > 0)),
        "a loss that is not finite": ~np.isfinite(losses),
        # Catches NaN and infinity, a vanished gradient, and all that float16 cannot hold.
        "a vector that is not of unit length": ~(np.abs(lengths - 1) <= UNIT_TOLERANCE),
    }
    for problem, rows in problems.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            raise NumericsError(
                f"gradients: {int(rows.sum())} of {num_rows} rows have {problem}; the first is"
                f" {batch.sample_ids[row]} (norm {norms[row]}, loss {losses[row]}, length"
                f" {lengths[row]}); leave such rows out or look at the model"
            )

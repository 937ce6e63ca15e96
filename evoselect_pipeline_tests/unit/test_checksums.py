"""Law: what is stored of a row is what is read, or the row counts as damaged."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.checksums import (
    CHECKSUM,
    num_damaged,
    refuse_damaged,
    stored_schema,
    with_checksums,
)
from evoselect_pipeline.stores.tables import schema_of

TEXT = st.text(max_size=5) | st.none()
SCORES = st.fixed_dictionaries(
    {"line": TEXT, "round": st.integers(0, 9), "sample_id": TEXT, "weight": st.floats() | st.none()}
)
SAMPLES = st.fixed_dictionaries(
    {
        "sample_id": TEXT,
        "messages": st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=2),
        "parents": st.lists(TEXT, max_size=2),
    }
)


def batch_of(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


@pytest.mark.parametrize(("name", "rows"), [("scores", SCORES), ("samples", SAMPLES)])
def test_rows_as_they_were_stored_are_whole_and_a_changed_one_is_not(name, rows):
    @settings(max_examples=50, deadline=None)
    @given(rows=st.lists(rows, min_size=2, max_size=4, unique_by=repr))
    def holds(rows):
        stored = with_checksums(pa.Table.from_pylist(rows, schema_of(name)))
        assert stored.schema.equals(stored_schema(schema_of(name)))
        batch = batch_of(stored)
        assert num_damaged(batch) == 0
        moved = stored.set_column(
            stored.num_columns - 1, CHECKSUM, stored[CHECKSUM].take([1, 0, *range(2, len(rows))])
        )
        is_alike = stored[CHECKSUM][0] == stored[CHECKSUM][1]
        assert num_damaged(batch_of(moved)) == (0 if is_alike else 2)

    holds()


def gradients(vectors: np.ndarray) -> pa.Table:
    n, width = vectors.shape
    flat = pa.array(vectors.astype(np.float16).ravel())
    columns = {
        "sample_id": [f"{i:032x}" for i in range(n)],
        "fingerprint": ["f" * 8] * n,
        "vector": pa.FixedSizeListArray.from_arrays(flat, width),
        "norm": np.ones(n, np.float32),
        "loss": np.ones(n, np.float32),
        "num_tokens": np.ones(n, np.int32),
    }
    return pa.table(columns, schema=schema_of(f"gradients_{width}"))


def test_one_bit_of_a_vector_damages_its_row_alone_and_the_order_of_rows_none():
    vectors = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float16)
    stored = with_checksums(gradients(vectors))
    assert num_damaged(batch_of(stored.take([3, 1, 4]))) == 0
    vectors.view(np.uint16)[2, 5] ^= 1
    changed = gradients(vectors).append_column(stored.schema.field(CHECKSUM), stored[CHECKSUM])
    assert num_damaged(batch_of(changed)) == 1
    with pytest.raises(ArtifactError, match=r"table x: 1 rows are not what was stored.*backup"):
        refuse_damaged(batch_of(changed), "table x")


def test_a_lost_vector_or_checksum_is_damage_and_a_table_of_old_has_none():
    stored = with_checksums(gradients(np.ones((3, 4))))
    for column in ("vector", CHECKSUM):
        place = stored.schema.get_field_index(column)
        lost = pa.nulls(3, stored.schema.field(place).type)
        assert num_damaged(batch_of(stored.set_column(place, column, lost))) == 3
    assert num_damaged(batch_of(stored.drop_columns([CHECKSUM]))) == 0


def test_a_column_that_is_added_later_and_says_nothing_damages_no_row():
    stored = with_checksums(pa.Table.from_pylist([{"line": "a", "round": 1}], schema_of("scores")))
    wider = stored.append_column("later", pa.nulls(1, pa.string()))
    assert num_damaged(batch_of(wider)) == 0

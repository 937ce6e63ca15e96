"""Law: whatever is in a file of rows, it is read, or a DataError names the file; also by templates.

Parquet is read by native code, whose crash would end the test's process.
"""

import csv
import io
import json

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from jinja2 import TemplateError
from pyarrow import parquet

from evoselect_pipeline.config_rows import Columns
from evoselect_pipeline.core.records import sample_from_row
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.stores.jsonl import read_samples, write_samples
from evoselect_pipeline.stores.rows import UserRow, read_user_rows
from evoselect_pipeline.templates import template
from evoselect_pipeline_tests.fuzz.fuzzing import ANY_TEXT, JSON_VALUES, damaged, fuzz

PAIRS = [
    {"prompt": f'what, "{i}"\nis \u00e4 \U0001f600?', "completion": f"answer {i}", "task": "t"}
    for i in range(6)
]
NESTED = [
    {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "numbers": [1, 2.5],
        "more": {"a": None, "b": True},
    }
    | pair
    for pair in PAIRS
]


def delimited(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(PAIRS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(PAIRS)
    return text.getvalue().encode()


def as_parquet(rows: list[dict], **how) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer, **how)
    return buffer.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(NESTED))
WHOLE = {
    ".jsonl": [LINES.encode(), b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode()],
    ".json": [json.dumps(NESTED, indent=1).encode()],
    ".csv": [delimited(",")],
    ".tsv": [delimited("\t")],
    ".parquet": [
        as_parquet(NESTED, compression="none"),
        as_parquet(NESTED, compression="zstd", write_page_checksum=True),
        as_parquet(PAIRS, use_dictionary=False, data_page_version="2.0"),
    ],
}
CONTENTS = st.binary(max_size=200) | ANY_TEXT.map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


def check(path, columns=None) -> list[UserRow]:
    try:
        rows = read_user_rows(path, columns or Columns())
    except DataError as error:
        assert str(error).startswith(str(path))
        return []
    assert rows
    for found in rows:
        turns = [{"role": m.role, "content": m.content} for m in found.sample.messages]
        assert sample_from_row({"messages": turns}, "again").sample_id == found.sample.sample_id
        assert found.sample.source.isprintable() and found.group.isprintable()
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("suffix", WHOLE)
def test_the_whole_files_can_be_read(suffix, folder):
    for content in WHOLE[suffix]:
        (folder / f"whole{suffix}").write_bytes(content)
        assert len(read_user_rows(folder / f"whole{suffix}")) == len(PAIRS)


def damaged_files(*suffixes: str) -> st.SearchStrategy:
    whole = [(suffix, content) for suffix in suffixes for content in WHOLE[suffix]]
    some = st.sampled_from(whole)
    return some.flatmap(lambda file: st.tuples(st.just(file[0]), damaged(file[1]) | CONTENTS))


@fuzz(examples=100, file=damaged_files(".jsonl", ".json", ".csv", ".tsv"))
def test_a_damaged_text_file_is_read_or_named(file, folder):
    suffix, content = file
    path = folder / f"rows{suffix}"
    path.write_bytes(content)
    check(path)


@fuzz(examples=100, file=damaged_files(".parquet"))
def test_a_damaged_parquet_file_is_read_or_named(file, folder):
    path = folder / "rows.parquet"
    path.write_bytes(file[1])
    check(path)


SAID = st.text(min_size=1) | JSON_VALUES
ANY_ROWS = st.lists(
    st.fixed_dictionaries({"prompt": SAID, "completion": SAID, "subtask": ANY_TEXT | JSON_VALUES})
    | st.dictionaries(ANY_TEXT, JSON_VALUES, max_size=4)
)


@fuzz(examples=50, rows=ANY_ROWS)
def test_what_is_read_of_any_rows_is_written_and_read_again_alike(rows, folder):
    path, kept = folder / "any.jsonl", folder / "kept.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [found.sample for found in check(path)]
    write_samples(kept, samples)
    assert not samples or read_samples(kept) == samples


WORDS = ["{{", "}}", "{%", "%}", "{#", "prompt", "numbers[-1]", "more.b", "|", "join", "tojson"]
WORDS += [
    "for x in numbers",
    "endfor",
    "if",
    "endif",
    "x",
    "(",
    ")",
    "[",
    "]",
    "'",
    '"',
    "~",
    "~ 1",
]
WORDS += ["completion.__class__.__mro__", "more.update({1: 2})", "numbers[0]", ".", "%", "\ud800"]
TEXTS = st.lists(st.sampled_from(WORDS) | ANY_TEXT, max_size=10).map(" ".join)


@fuzz(examples=60, text=TEXTS)
def test_any_column_template_makes_text_of_a_row_or_is_named(text, folder):
    path = folder / "whole.jsonl"
    path.write_bytes(WHOLE[".jsonl"][0])
    check(path, Columns.model_construct(prompt="{{ prompt }} " + text))


@fuzz(examples=60, text=TEXTS)
def test_no_template_reaches_python_or_changes_a_row(text):
    row = json.loads(json.dumps(NESTED[0]))
    try:
        rendered = template(text).render(row)
    except (TemplateError, ValueError, TypeError, IndexError, ArithmeticError, RecursionError):
        rendered = ""
    assert "<class" not in rendered
    assert row == NESTED[0]

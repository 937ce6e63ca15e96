"""Law: a sample is its messages; what is not a conversation to learn from is refused."""

import pickle

import pytest

from evoselect_pipeline.core.records import (
    Message,
    Sample,
    content_id,
    make_sample,
    sample_from_pair,
    sample_from_row,
)
from evoselect_pipeline.errors import DataError, RowError


def test_identity_is_content_and_not_provenance():
    one = sample_from_pair("2 + 2 =", "4", source="a", parents=("x",))
    other = sample_from_pair("2 + 2 =", "4", source="b", subtask="sums")
    assert one.sample_id == other.sample_id
    assert one.sample_id != sample_from_pair("2 + 2 =", "5").sample_id
    assert len(one.sample_id) == 32


@pytest.mark.parametrize(
    ("one", "twin"),
    [("caf\u00e9", "cafe\u0301"), ("a\nb", "a\r\nb"), ("a\nb", "a\rb")],
)
def test_unicode_and_line_end_twins_are_one_sample(one, twin):
    assert sample_from_pair(one, "x").sample_id == sample_from_pair(twin, "x").sample_id


def test_the_id_is_fixed_for_ever():
    messages = [Message("user", "2 + 2 ="), Message("assistant", "4")]
    assert content_id(messages) == "b5607a3f0021f54ce15e50765569f7c7"


@pytest.mark.parametrize(
    ("turns", "complaint", "reason"),
    [
        ([("user", "a")], "ending with assistant", "turns_out_of_order"),
        ([("assistant", "a")], "ending with assistant", "turns_out_of_order"),
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "in turn", "turns_out_of_order"),
        ([("user", "a"), ("system", "s"), ("assistant", "b")], "in turn", "turns_out_of_order"),
        ([("user", "a"), ("tool", "b"), ("assistant", "c")], "role must be one", "unknown_role"),
        ([("user", " "), ("assistant", "b")], "non-empty", "empty_content"),
        ([("user", "a"), ("assistant", None)], "non-empty", "empty_content"),
        ([("user", 3), ("assistant", "b")], "non-empty text", "not_text"),
        ([("user", "\ud800"), ("assistant", "b")], "surrogate", "not_text"),
        ([], "ending with assistant", "turns_out_of_order"),
    ],
)
def test_what_is_no_conversation_is_refused_with_a_reason(turns, complaint, reason):
    with pytest.raises(RowError, match=complaint) as error:
        make_sample([Message(role, content) for role, content in turns])
    assert error.value.reason == reason
    assert pickle.loads(pickle.dumps(error.value)).reason == reason


def test_rows_are_read_in_both_forms():
    pair = sample_from_row({"prompt": "q", "completion": "a"}, "f:1")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert sample_from_row({"messages": turns}, "f:2").sample_id == pair.sample_id
    assert isinstance(pair, Sample)
    assert (pair.prompt, pair.completion) == ("q", "a")


@pytest.mark.parametrize(
    "row",
    [{}, {"prompt": "q"}, {"messages": "q"}, {"messages": ["q"]}, {"prompt": 1, "completion": "a"}],
)
def test_a_bad_row_is_refused_with_its_place(row):
    with pytest.raises(DataError, match=r"rows\.jsonl:7"):
        sample_from_row(row, "rows.jsonl:7")

"""Of an answer that was cut off (E5) the rows before the cut count, and nothing is guessed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoselect_pipeline.generation.answers import ReadAnswer, read_answer
from evoselect_pipeline.generation.requests import Request
from evoselect_pipeline.stores.answer_log import Answer

PAIRS = [('say "a', "b\n"), ("c]}", "{[d"), ("é😀", '", "')]
WHOLE = json.dumps({"rows": [{"prompt": p, "completion": c} for p, c in PAIRS]})
FRAMES = {
    "bare": "{}",
    "fenced": "```json\n{}",
    "courteous": "Of the set {{a, b}} and [1]:\n{}",
    "thoughtful": '<think>{{"x": 1}}</think>{}',
}


def read(text: str, *, ended: str = "length", as_json: bool = True, most: int = 9) -> ReadAnswer:
    answer = Answer("r", 0, text, ended, 1, 1, False, 0.0)
    return read_answer(answer, Request("k", "words", ("p",), most), as_json, "llm:m")


def pairs_of(found: ReadAnswer) -> list[tuple[str, str]]:
    return [(row.prompt, row.completion) for row in found.samples]


def ends_of_rows(text: str) -> list[int]:
    """Where each row's last text is closed."""
    ends = [
        text.index(json.dumps(completion), text.index(json.dumps(p))) for p, completion in PAIRS
    ]
    return [end + len(json.dumps(c)) for end, (_, c) in zip(ends, PAIRS, strict=True)]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("spaced", [True, False], ids=["on lines", "on one line"])
def test_e5_wherever_an_answer_is_cut_the_rows_before_the_cut_are_kept(frame, spaced):
    rows = json.loads(WHOLE)
    text = FRAMES[frame].format(json.dumps(rows, indent=2 if spaced else None))
    ends = ends_of_rows(text)
    for place in range(len(text) + 1):
        found = read(text[:place])
        assert pairs_of(found) == PAIRS[: sum(end <= place for end in ends)]
        assert found.refused == ["length"], "the rest is counted"


def test_e5_a_cut_in_a_text_leaves_no_part_of_it_and_one_between_rows_leaves_all():
    inside = WHOLE.index("[d") + 1
    between = WHOLE.index(json.dumps(PAIRS[2][0])) - len('{"prompt": ')
    assert pairs_of(read(WHOLE[:inside])) == PAIRS[:1]
    assert pairs_of(read(WHOLE[:between])) == PAIRS[:2]


def test_e5_a_row_that_is_none_before_the_cut_is_counted_and_the_cut_one_is_not():
    found = read('{"rows": [{"prompt": "a"}, {"prompt": "b", "completion": "c"}, {"prompt": "d')
    assert pairs_of(found) == [("b", "c")]
    assert found.refused == ["length", "malformed_row"]


def test_of_a_cut_answer_no_more_rows_are_taken_than_were_asked_for():
    assert pairs_of(read(WHOLE[:-1], most=2)) == PAIRS[:2]


@pytest.mark.parametrize(
    "text", ["", "I would rather", '{"rows": "no', '{"rows": [1, 2', '["a", "b']
)
def test_e5_a_cut_answer_without_a_row_is_cut_off_whatever_else_it_is(text):
    assert read(text) == ReadAnswer([], ["length"])


def test_a_completion_that_was_cut_is_no_row():
    assert read("half an answ", as_json=False) == ReadAnswer([], ["length"])


def test_an_answer_that_ends_by_itself_is_not_taken_in_parts():
    found = read(WHOLE[: WHOLE.index("[d")], ended="stop")
    assert not found.samples
    assert found.refused == ["wrong_form"]


@given(st.text())
@pytest.mark.parametrize("frame", ["{}", '{{"rows": [{}', '{{"rows": [{{"prompt": "{}"'])
def test_whatever_was_cut_off_is_counted_so(frame, text):
    assert read(frame.format(text)).refused[0] == "length"


def test_a_letter_that_is_none_is_no_row():
    assert read('{"rows": [{"prompt": "\ud800", "completion": "a"}, {"prom').samples == []

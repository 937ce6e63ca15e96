"""Law: no evaluation row and no row twice gets past the gates; lookalikes that differ do."""

import pytest

from evoselect_pipeline.core.gates import evaluation_keys, gate, normalised, text_key
from evoselect_pipeline.core.records import sample_from_pair


@pytest.mark.parametrize(
    ("one", "copy"),
    [
        ("Tom has 3 figs.", "tom has 3 figs"),
        ("Tom has 3 figs.", "  Tom  has\n3 figs!"),
        ("3 + 4 =", "\uff13 + 4 ="),
    ],
)
def test_spelling_does_not_make_a_new_text(one, copy):
    assert normalised(one) == normalised(copy)
    assert text_key(sample_from_pair(one, "7")) == text_key(sample_from_pair(copy, "7."))


@pytest.mark.parametrize(("one", "other"), [("3 + 4", "3 - 4"), ("[ (", "( ["), ("3.5", "35")])
def test_signs_brackets_and_digits_do(one, other):
    assert normalised(one) != normalised(other)


def test_evaluation_prompts_are_kept_out_whatever_the_answer():
    trusted = sample_from_pair("What is 3 + 4?", "7")
    leak = sample_from_pair("what is 3 + 4", "8")
    fresh = sample_from_pair("What is 3 + 5?", "8")
    passed, rejected = gate([leak, fresh], evaluation_keys([trusted]))
    assert [s.sample_id for s in passed] == [fresh.sample_id]
    assert [(r.sample_id, r.stage, r.related_id) for r in rejected] == [
        (leak.sample_id, "leaks_evaluation", trusted.sample_id)
    ]


def test_rows_of_earlier_rounds_and_repeated_rows_come_through_once_at_most():
    old, new = sample_from_pair("a", "1"), sample_from_pair("b", "2")
    passed, rejected = gate([old, new, new], {}, frozenset([old.sample_id]))
    assert passed == [new]
    assert [r.stage for r in rejected] == ["already_selected"]

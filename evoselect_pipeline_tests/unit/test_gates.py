"""Law: no evaluation row and no row twice gets past the gates; lookalikes that differ do."""

import pytest

from evoselect_pipeline.core.gates import gate
from evoselect_pipeline.core.private_text import SECRETS
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.core.settings import GateSettings
from evoselect_pipeline.core.text_keys import normalised, text_key
from evoselect_pipeline.errors import ConfigError


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
    for overlap in ("quarantine", "off"):
        found = gate([leak, fresh], [trusted], GateSettings(overlap=overlap))
        assert found.passed == [fresh]
        assert [(r.sample_id, r.stage, r.related_id) for r in found.rejected] == [
            (leak.sample_id, "leaks_evaluation", trusted.sample_id)
        ]
        assert found.hits[leak.sample_id].evaluation_id == trusted.sample_id


def test_rows_of_earlier_rounds_and_repeated_rows_come_through_once_at_most():
    old, new = sample_from_pair("a", "1"), sample_from_pair("b", "2")
    found = gate([old, new, new], [], GateSettings(), frozenset([old.sample_id]))
    assert found.passed == [new]
    assert [r.stage for r in found.rejected] == ["already_selected"]


SECRET_TEXTS = {
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
    "an AWS access key": "AKIAIOSFODNN7EXAMPLE",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a Google API key": "AIza" + "a1B2c" * 7,
    "a Hugging Face token": "hf_" + "a1B2c3" * 6,
    "a Slack token": "xoxb-1234567890-abcdef",
    "a Stripe key": "sk_live_" + "a1B2c3" * 4,
    "an API key": "sk-proj-" + "a1B2c3" * 4,
    "a JSON Web Token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_f16_a_row_with_a_key_is_dropped_and_the_key_is_not_repeated(kind):
    text = SECRET_TEXTS[kind]
    rows = [
        sample_from_pair(f"My key is {text}, ok?", "yes"),
        sample_from_pair("hi", f"use {text}"),
    ]
    found = gate(rows, [], GateSettings())
    assert [r.stage for r in found.rejected] == ["holds_secret", "holds_secret"]
    assert all(kind in r.reason and text[:12] not in r.reason for r in found.rejected)
    assert gate(rows, [], GateSettings(secrets="keep")).passed == rows


def test_f16_words_that_only_look_a_little_like_keys_pass():
    texts = ("ask-the-long-question-about-sk-8", "a risk-averse AKIA", "hf_hub", "eyJ.eyJ.x")
    rows = [sample_from_pair(text, "yes") for text in texts]
    assert gate(rows, [], GateSettings()).passed == rows


def test_f16_addresses_are_dropped_on_demand_only():
    rows = [sample_from_pair("Write to jane.doe+x@mail.example.org.", "done")]
    rows.append(sample_from_pair("2 @ 3.50 each, a@b", "7"))
    assert gate(rows, [], GateSettings()).passed == rows
    found = gate(rows, [], GateSettings(emails="drop"))
    assert found.passed == rows[1:]
    assert [r.stage for r in found.rejected] == ["holds_email"]


def test_rows_outside_the_lengths_are_dropped():
    rows = [
        sample_from_pair("q", "a"),
        sample_from_pair("q", "abc"),
        sample_from_pair("q" * 50, "abc"),
    ]
    found = gate(rows, [], GateSettings(min_answer_chars=3, max_chars=20))
    assert found.passed == rows[1:2]
    assert [r.stage for r in found.rejected] == ["too_short", "too_long"]


def test_a_source_that_floods_is_cut_at_its_cap_and_others_are_not():
    flood = [sample_from_pair(f"flood {n}", "x", source="loud") for n in range(50)]
    quiet = [sample_from_pair(f"quiet {n}", "x", source="quiet") for n in range(5)]
    found = gate([*flood, *quiet], [], GateSettings(max_per_source=7))
    assert found.passed == [*flood[:7], *quiet]
    assert {r.stage for r in found.rejected} == {"source_flood"}


@pytest.mark.parametrize(
    "bad", [{"ngram": 4}, {"near_copy": 0.0}, {"max_per_source": 0}, {"max_chars": 0}]
)
def test_settings_that_mean_nothing_are_refused(bad):
    with pytest.raises(ConfigError, match=f"gates.{next(iter(bad))} must be"):
        GateSettings(**bad)

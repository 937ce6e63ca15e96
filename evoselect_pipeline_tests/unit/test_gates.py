"""Law: no evaluation row and no row twice gets past the gates; lookalikes that differ do."""

import time
from pathlib import Path

import pytest

from evoselect_pipeline.core.gates import gate
from evoselect_pipeline.core.private_text import SECRETS, email_in, secret_in
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.core.settings import GateSettings
from evoselect_pipeline.core.text_keys import normalised, text_key
from evoselect_pipeline.errors import ConfigError

SHARED = Path(__file__).parents[3] / "shared" / "data"


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


# In pieces, so that nobody who looks for keys takes these for some: a text that holds a secret of
# each form, and one that nearly does.
PEM, END, JOSE = "-----BEGIN {} KEY-----\nMIIEvQ==\n", "-----END {} KEY-----", "ey" + "Jh1Ci0J"
SECRET_TEXTS = [
    ("a private key", PEM.format("PRIVATE") + END.format("PRIVATE"), PEM.format("PUBLIC")),
    ("a private key", PEM.format("OPENSSH PRIVATE"), "-----BEGIN CERTIFICATE-----"),
    ("a private key", PEM.format("PGP PRIVATE").replace("Y-", "Y BLOCK-"), "BEGIN PRIVATE KEY"),
    ("an AWS access key", "AK" + "IA" + "A1B2" * 4, "AK" + "IA" + "a1b2" * 4),
    ("an Azure key", "Account" + "Key=" + "a1B+" * 21 + "aB==", "AccountKey=YOUR_KEY_HERE=="),
    ("an Azure key", "SharedAccess" + "Key=" + "a1B/" * 10 + "aB1=", "SharedAccessKey=a1B2="),
    ("an Azure signature", "?sv=2024&si" + "g=" + "a1B2" * 10 + "%2B1a%3D", "?sig=a1B2%3D&x=1"),
    ("a GitHub token", "gh" + "p_" + "a1B2" * 9, "gh" + "p_" + "a1B2" * 8),
    ("a GitHub token", "github" + "_pat_" + "a1B2c" * 11, "github" + "_pat_of_mine"),
    ("a GitLab token", "gl" + "pat-" + "a1B2" * 5, "gl" + "pat-your-token"),
    ("a Google API key", "AI" + "za" + "a1B2c" * 7, "AI" + "za" + "a1B2c" * 6),
    ("a Hugging Face token", "h" + "f_" + "a1B2c3" * 6, "hf_hub_download_of_many_small_files"),
    ("an npm token", "np" + "m_" + "a1B2" * 9, "npm_config_registry_of_the_whole_company_1"),
    ("a Slack token", "xo" + "xb-1234567890-abcdef", "xo" + "xb-your-token-comes-here"),
    ("a Stripe key", "sk" + "_live_" + "a1B2c3" * 4, "sk" + "_test_" + "a1B2c3" * 4),
    ("an API key", "s" + "k-" + "proj-" + "a1B2c3" * 4, "sk-learn-0-24-pipelines-are-nice"),
    ("an API key", "s" + "k-" + "a1B2c3" * 8, "task-" + "a1B2c3" * 8),
    ("a JSON Web Token", f"{JOSE}IUzI1.{JOSE}zI1Ni.SflKxwRJSMeK", f"{JOSE}IUzI1.{JOSE}zI1Ni"),
]  # fmt: skip


def test_f16_every_form_of_a_secret_has_an_example():
    assert {kind for kind, _, _ in SECRET_TEXTS} == set(SECRETS)


@pytest.mark.parametrize(("kind", "text"), [case[:2] for case in SECRET_TEXTS])
def test_f16_a_row_with_a_key_is_dropped_and_the_key_is_not_repeated(kind, text):
    rows = [
        sample_from_pair(f"My key is {text}, ok?", "yes"),
        sample_from_pair("hi", f"use {text}"),
    ]
    found = gate(rows, [], GateSettings())
    assert [r.stage for r in found.rejected] == ["holds_secret", "holds_secret"]
    assert all(kind in r.reason and text[:12] not in r.reason for r in found.rejected)
    assert gate(rows, [], GateSettings(secrets="keep")).passed == rows


@pytest.mark.parametrize("text", [case[2] for case in SECRET_TEXTS])
def test_f16_words_that_only_look_a_little_like_keys_pass(text):
    rows = [sample_from_pair(f"My key is {text}, ok?", "yes"), sample_from_pair("hi", text)]
    assert gate(rows, [], GateSettings()).passed == rows


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no data at {SHARED}")
def test_f16_no_row_of_gsm8k_or_of_big_bench_hard_holds_a_secret():
    files = sorted(SHARED.glob("*/*.jsonl"))
    assert len(files) > 10
    for file in files:
        assert secret_in(file.read_text(encoding="utf-8")) is None


@pytest.mark.parametrize(
    "start", ["s" + "k-", "ey" + "J-", "xo" + "xb-", "sig=%2B", "a@", "-----BEGIN "]
)
def test_a_text_of_beginnings_of_keys_is_looked_through_at_once(start):
    """Whoever writes candidates must not be able to stop a round by one row."""
    text = start * (100_000 // len(start))
    began = time.process_time()
    assert secret_in(text) is None
    assert not email_in(text)
    assert time.process_time() - began < 1


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

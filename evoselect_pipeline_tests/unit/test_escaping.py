"""Law: whatever a row, a server or a file says is shown as text, wherever it is shown."""

import json

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoselect_pipeline import cli
from evoselect_pipeline.commands import console
from evoselect_pipeline.components.alerts import INERT
from evoselect_pipeline.components.metadata import subset_table, table
from evoselect_pipeline.core.selection import SourceShare
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.report.card import Adapter, Base, model_card
from evoselect_pipeline.report.facts import Change, Promotion
from evoselect_pipeline.report.html import to_html
from evoselect_pipeline.report.page import page
from evoselect_pipeline.report.text import MOST_CHARS, MOST_SHOWN, UNSEEN, one_line, plain
from evoselect_pipeline_tests.unit.test_report_page import NASTY, Seen, read_back, told

STEERING = {
    "clears the screen": "\x1b[2J\x1b[H",
    "sets the title": "\x1b]0;owned\x07",
    "makes a link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "writes the clipboard": "\x1b]52;c;b3duZWQ=\x07",
    "in one character": "\x9b31m",
    "goes back over the line": "rm -rf\rls    \x08\x08",
    "turns text round": "abc\u202edef",
    "hides text": "a\u200b\U000e0041\U000e0042b",
}
MARKUP = ["[bold red]x[/]", r"\[bold]x", "[link=http://evil.example]x[/link]", "[/]", "x\\", "[["]
SECRET = "sk-proj-" + "a1B2c3" * 4


def is_harmless(text):
    return not UNSEEN.search(text.replace("\n", ""))


@pytest.mark.parametrize("text", STEERING.values(), ids=STEERING)
def test_g10_nothing_that_steers_a_terminal_reaches_it(text, capsys, monkeypatch):
    console.print_table("The row", ["", ""], [("answer", f"before {text} after")])
    console.print_failure("the round failed", text)
    console.print_json({"answer": text})

    def fails():
        raise DataError(text)

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    assert is_harmless(out) and is_harmless(err)
    assert "before" in out and "after" in out
    assert json.loads(out[out.index("{") :]) == {"answer": text}, "JSON still says it all"


@pytest.mark.parametrize("text", MARKUP)
def test_g10_our_terminals_own_markup_is_shown_as_it_is(text, monkeypatch, capsys):
    monkeypatch.setattr(console.stdout, "_force_terminal", True)
    monkeypatch.setenv("NO_COLOR", "1")
    console.print_table("The row", ["answer"], [(text,)])
    out = capsys.readouterr().out
    assert text in out
    assert "evil" in text or "\x1b]8" not in out


@given(st.text(st.characters(codec="utf-8")))
def test_g10_any_text_comes_out_of_a_table_of_the_terminal_harmless(text):
    shown = console._cell(text)
    assert is_harmless(shown)


@pytest.mark.parametrize("text", [*NASTY, *STEERING.values(), "x" * 5_000, SECRET])
def test_g10_dagsters_tables_hold_plain_text_that_is_cut(text):
    pick = {"rank": 1, "sample_id": "a" * 32, "reason": text}
    for found in (table({"prompt": "string"}, [(text,)]), subset_table([pick])):
        assert isinstance(found, dg.TableMetadataValue), "which the UI shows without Markdown"
        [shown] = [value for value in found.records[0].data.values() if value not in (1, "a" * 8)]
        assert shown == one_line(text)
        assert len(shown) <= MOST_SHOWN
        assert is_harmless(shown)
        assert SECRET not in shown


def test_g10_a_secret_is_named_before_a_text_is_cut():
    for text in (f"{'x ' * 76}{SECRET}", f"-----BEGIN RSA PRIVATE KEY-----\n{'MII ' * 200}"):
        shown = plain(text)
        assert len(read_back(shown)) <= MOST_CHARS + 20
        assert "MII" not in shown and "sk-proj" not in shown
    assert one_line(f"my key {SECRET}, ok") == "my key [an API key], ok"


def card_with(text) -> str:
    change = Change(0.05, 0.01, 0.09, 0.95, 600)
    return model_card(
        Adapter(
            line="sums",
            task=text,
            round=1,
            base=Base(text, text, text, False, "a folder", "float32", "f" * 32),
            promotion=Promotion(True, change, 0.02, "the adapter of round 1"),
            accuracy=dict.fromkeys(("base", "before", "after"), (0.5, 0.4, 0.6)),
            metric="exact",
            num_test=10,
            generator="files",
            generated={"num_generated": 9},
            selected={"rejected": {"same_text": 1}, "num_selected": 5, "method": "evoselect"},
            trained={"num_rows": 5, "num_trained_tokens": 50, "num_steps": 5, "first_loss": 2.0,
                     "last_loss": 1.0},
            settings={
                "lora": {"targets": text, "rank": 8, "alpha": 16.0, "dropout": 0.0},
                "train": {"batch_size": 16, "accumulation": 1, "learning_rate": 1e-4, "warmup": 1,
                          "weight_decay": 0.0, "bf16": False},
            },
            versions={"torch": text},
            lineage_digest="d" * 32,
            rows_of_round={0: 5},
            rows_of_source={text: 5},
        ),
        None,
    )  # fmt: skip


@pytest.mark.parametrize("text", [*NASTY, *STEERING.values()])
def test_g10_nothing_that_a_model_card_is_told_takes_effect_in_it(text):
    card = card_with(text)
    harmless = card_with("harmless")
    body, plain_body = (told.split("---\n", 2)[2] for told in (card, harmless))
    seen, wanted = (Seen(to_html(told, "card", {})) for told in (body, plain_body))
    assert seen.tags == wanted.tags
    assert seen.links == wanted.links == []
    assert is_harmless(body.replace("\u2060", ""))


@pytest.mark.parametrize("text", NASTY)
def test_g10_a_source_on_the_page_of_a_round_is_shown_letter_by_letter(text):
    shares = (SourceShare(text, 0.9, 0.8, 0.5), SourceShare("honest", 0.1, 0.2, 0.5))
    html = to_html(page(told(sources=shares, num_sources=2), {}), "round", {})
    seen = Seen(html)
    assert one_line(text, MOST_CHARS) in [read_back(cell) for cell in seen.cells]
    assert seen.links == []


def test_g10_a_failure_calls_nobody_and_makes_no_link_in_a_chat():
    told = "round 3 failed: <!channel> <http://evil.example|click> @here"
    shown = told.translate(INERT)
    assert "<" not in shown and ">" not in shown
    assert "@here" not in shown
    assert one_line(told.replace("<", "\x1b<")).startswith("round 3 failed: \ufffd<!channel>")

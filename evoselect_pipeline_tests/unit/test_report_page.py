"""The page of a round: what it says, that no row can change it, and that it is always the same."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoselect_pipeline.report.facts import (
    Bill,
    Canaries,
    Change,
    ChangedAnswer,
    Cloud,
    Comparison,
    Example,
    Funnel,
    Lengths,
    Outcome,
    Promotion,
    Round,
    Spread,
    TargetShare,
    Training,
)
from evoselect_pipeline.report.html import data_uri, to_html
from evoselect_pipeline.report.page import cost_section, headline, page
from evoselect_pipeline.report.plots import draw, interval_svg
from evoselect_pipeline.report.reasons import in_order, in_words
from evoselect_pipeline.report.text import UNSEEN, WORD_JOINER, duration, plain, points, table

NASTY = [
    "| a | b |\n| --- | --- |",
    r"\| \\| \` \\",
    "`code` ``two`` ```\nfence\n```",
    "[a](javascript:alert(1)) ![x](http://evil/x.png) [ref]: http://evil",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp; &#124; &copy",
    "**bold** _under_ ~~gone~~ # head\n- list\n1. one\n> quote",
    "http://evil.example www.evil.example me@evil.example <https://evil.example>",
    'src="figures/map.png" ](figures/map.png)',
    "$x^2$ :smile: [^1] - [ ] todo",
    "right \u202eto left\u202c \x00 \x1b[31m",
]


KEPT = Change(-0.01, -0.04, 0.02, 0.95, 200)


class Seen(HTMLParser):
    """The elements of a page, and the texts of its cells."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.cells, self.links, self.in_cell = [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag == "td":
            self.cells.append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag != "td"

    def handle_data(self, data):
        if self.in_cell:
            self.cells[-1] += data


def read_back(cell):
    return cell.replace(WORD_JOINER, "")


def as_read(text):
    return UNSEEN.sub("\ufffd", " ".join(text.split()))


def shown_in_a_table(text):
    return Seen(to_html(table(("one", "two"), [(plain(text, 10_000), "end")]), "title", {}))


@pytest.mark.parametrize("text", NASTY)
def test_a_rows_text_is_shown_letter_by_letter_and_takes_no_effect(text):
    seen = shown_in_a_table(text)
    assert [read_back(cell) for cell in seen.cells] == [as_read(text), "end"]
    assert seen.links == []
    known = {"html", "head", "meta", "title", "style", "body", "table", "thead", "tbody", "tr"}
    assert set(seen.tags) <= known | {"th", "td"}
    # What Dagster's reader would make links of, once the escapes are gone.
    assert not re.search(r"https?://|www\.|\w@\w", "".join(seen.cells))


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_comes_back(text):
    seen = shown_in_a_table(text)
    assert [read_back(cell) for cell in seen.cells] == [read_back(as_read(text)).strip(), "end"]


def told(**changes) -> Round:
    rng = np.random.default_rng(0)
    change = Change(0.05, 0.01, 0.09, 0.95, 600)
    rows = [
        Example("beyond_reach", f"{n:032x}", text, text[::-1], text) for n, text in enumerate(NASTY)
    ]
    facts = {
        "line": "sums",
        "method": "evoselect",
        "outcomes": (
            Outcome(0, 0.37, 0.37, 0.71, 0.67, 0.75, True),
            Outcome(1, 0.37, 0.71, 0.76, 0.72, 0.80, False),
        ),
        "test": change,
        "promotion": Promotion(True, change, 0.02, "the adapter of round 1"),
        "funnel": Funnel(100, 10, {"beyond_reach": 60, "same_text": 10}, 20, 0),
        "cloud": Cloud(*(rng.normal(size=(n, 2)) for n in (50, 20, 5)), (0.3, 0.1), 70, 20, 5),
        "targets": (
            TargetShare("a" * 32, "nobody | answers", 0, 0.0, False),
            TargetShare("b" * 32, "2 + 2", 20, 0.8, True),
        ),
        "spread": Spread(20, 2, Comparison(9.0, (12.0, 13.5)), Comparison(0.4, (0.7, 0.8))),
        "chosen": tuple(replace(row, verdict="1") for row in rows),
        "rejected": tuple(rows),
        "training": Training(20, 200, 16, 300, 1.2, 0.3),
    }
    return Round(**facts | changes)


def test_the_page_stands_alone_and_nasty_rows_add_nothing_to_it():
    figures = draw(told())
    seen = Seen(to_html(page(told(), {name: name for name in figures}), "<title>", figures))
    assert len(figures) == seen.tags.count("img") == 6
    assert seen.links == [data_uri(n, figures[n]) for n in (
        "accuracy.svg", "promotion.svg", "funnel.svg", "map.png", "targets.svg", "spread.svg"
    )]  # fmt: skip
    assert seen.tags.count("table") == 3
    assert seen.tags.count("td") == 4 + 2 * 5 * len(NASTY)
    assert not {"script", "a", "h3", "li", "em"} & set(seen.tags)


def test_the_same_facts_give_the_same_bytes_whatever_matplotlib_was_told():
    import matplotlib

    first = draw(told())
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        assert draw(told()) == first
    assert matplotlib.rcParams["svg.fonttype"] == "path"  # what the process had set stays
    assert sum(map(len, first.values())) < 300_000


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.01, 0.09, "The round helped"),
        (-0.09, -0.01, "The round did harm"),
        (-0.01, 0.09, "no difference that could be told from chance"),
        (0.0, 0.0, "no difference that could be told from chance"),
    ],
)
def test_the_headline_says_whether_it_helped_and_how_sure_that_is(low, high, says):
    change = Change((low + high) / 2, low, high, 0.9, 600)
    text = headline(told(test=change))
    assert says in text
    assert f"90 % interval {points(low)} to {points(high)}" in text
    assert "76.0 % of 600 test rows" in text


def test_the_headline_says_who_serves_and_why():
    kept = Promotion(False, KEPT, 0.02, "the base model")
    assert headline(told(promotion=kept)).endswith(
        "It was not promoted: on 200 validation rows accuracy changed by −1.0 points (95 % interval"
        " −4.0 to +2.0), and the interval reaches down to the tolerated −2.0 or below; the base"
        " model stays champion."
    )
    assert "It was promoted" in headline(told())


def test_unreached_targets_are_listed_and_the_counts_are_those_of_the_funnel():
    text = page(told(), {})
    assert "No row was chosen for these" in text
    assert "nobody &#124; answers" in text
    assert "1 of 2 target rows have a chosen row" in text
    assert "100 rows were generated, 80 were left out and 20 chosen." in text
    assert "![" not in text
    served = told(targets=told().targets[1:])
    assert "The worst served" in page(served, {})


@pytest.mark.parametrize(
    "changes",
    [
        {"spread": None, "chosen": ()},
        {"targets": (TargetShare("a" * 32, "x", 0, None, False),)},
        {"targets": tuple(TargetShare(f"{n:032x}", "x", 1, n / 99, True) for n in range(99))},
        {"funnel": Funnel(0, 0, {}, 0, 0), "rejected": ()},
        {"cloud": Cloud(*(np.zeros((n, 2)) for n in (1, 0, 1)), (0.0, 0.0), 1, 0, 1)},
        {"outcomes": (Outcome(0, 0.0, 0.0, 0.0, 0.0, 0.0, False),)},
    ],
)
def test_odd_rounds_have_a_page_too(changes):
    assert draw(told(**changes))
    assert page(told(**changes), {})


def test_the_small_picture_is_small_and_well_formed():
    for mean, low, high in ((0.05, 0.01, 0.09), (-0.5, -0.9, -0.1), (0.0, 0.0, 0.0)):
        change = Change(mean, low, high, 0.95, 10)
        svg = interval_svg(Promotion(False, change, 0.0, "the base model"))
        assert len(svg) < 800
        places = [float(x) for x in re.findall(r'(?:M|H|cx=")([0-9.-]+)', svg)]
        assert all(0 <= place <= 320 for place in places)
        ElementTree.fromstring(svg)


def test_the_headline_says_that_answers_drift_alone_or_beside_a_loss():
    for change, also in ((Change(0.05, 0.01, 0.09, 0.95, 200), False), (KEPT, True)):
        kept = Promotion(False, change, 0.02, "the base model", drifts=True)
        said = headline(told(promotion=kept))
        assert "its answers have grown too long or do not end; the base model stays" in said
        assert ("reaches down to the tolerated" in said) == also


def test_lengths_of_answers_are_told_where_they_were_measured():
    text = page(told(lengths=(Lengths(3.04, 0.0), Lengths(16.0, 0.25))), {})
    assert "have 16.0 tokens in the mean, 3.0 before the round; 25.0 % of them ran into" in text
    assert "How long answers are" not in page(told(), {})


def test_changed_canaries_are_listed_as_text_and_not_too_many():
    nasty = tuple(ChangedAnswer(text, text, text[::-1]) for text in NASTY)
    seen = Seen(to_html(page(told(canaries=Canaries(40, nasty)), {}), "title", {}))
    shown = [read_back(cell) for cell in seen.cells]
    assert all(as_read(text) in shown for text in NASTY)
    assert not {"script", "a", "h3", "li", "em"} & set(seen.tags)
    text = page(told(canaries=Canaries(40, nasty)), {})
    assert f"{len(NASTY)} of 40 canary prompts are answered otherwise" in text
    many = page(told(canaries=Canaries(99, nasty[:1] * 90)), {})
    assert "90 of 99 canary prompts" in many and "(the first 20)" in many
    assert "0 of 4 canary prompts" in page(told(canaries=Canaries(4, ())), {})
    assert "## Canaries" not in page(told(), {})


def test_a_budget_that_was_hardly_filled_stands_out():
    scarce = Funnel(100, 10, {"beyond_reach": 87}, 3, 17, scarce=True)
    assert "**Not even half of the budget was filled" in page(told(funnel=scarce), {})
    assert "Not even half" not in page(told(), {})


def test_tokens_trained_are_those_of_all_passes():
    text = page(told(), {})
    assert "160.0 passes over 20 rows whose answers have 300 tokens" in text
    assert "48,000 tokens trained" in text


def test_seconds_are_told_with_their_sum():
    text = cost_section({"candidates": 3.2, "lora_checkpoint": 3600})
    assert "| `candidates` | 3.2 s |" in text
    assert "| **all** | **1 h 0 min** |" in text
    assert cost_section({}) == ""
    bill = Bill(num_requests=1200, num_tokens=345_678, cost=0.51234, stopped_by="max_cost")
    text = cost_section({"candidates": 3.2}, bill)
    assert "1,200 requests with 345,678 tokens, prompts included: 0.5123 at the config" in text
    assert "`generator.max_cost` was reached" in text
    assert [duration(s) for s in (0, 59.94, 61, 7260)] == [
        "0.0 s",
        "59.9 s",
        "1 min 1 s",
        "2 h 1 min",
    ]


def test_reasons_stand_in_the_order_of_a_round_and_unknown_ones_tell_themselves():
    stages = ["not_needed", "made_up", "beyond_reach", "leaks_evaluation"]
    assert in_order(stages) == ["made_up", "leaks_evaluation", "beyond_reach", "not_needed"]
    assert in_words("made_up") == "made up"

"""Law: an answer is right when what counts of it is what counts of the reference."""

import sys
from fractions import Fraction

import pytest

from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.config_rows import MetricSettings
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.evaluation.metrics import chosen_option, final_number, load_metric


def score(answer: str, reference: str, **settings) -> float:
    return load_metric(MetricSettings(**settings)).score(answer, sample_from_pair("q", reference))


def test_exact_is_the_text_but_for_blanks_at_its_ends():
    assert score(" 7\n", "7") == 1
    assert score("7.", "7") == score("seven", "7") == score("", "7") == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 9 * 2 = $18.\n#### 18", "18"),
        ("#### 1,000.50", "1000.5"),
        ("#### $-7 #### -7 and 3 more", "-7"),
        ("so 3 of the 1,234 are left", "1234"),
        ("that makes 10-5", "5"),
        ("-5", "-5"),
        ("costs \u20ac.75", "0.75"),
        ("1,2", "2"),
        ("none", None),
        ("5 are left ####", "5"),
        ("####18####", "18"),
        ("\u22125 degrees", "-5"),
        ("1e3", "1000"),
        ("so 1/2 of it", "1/2"),
    ],
)
def test_a_number_is_the_one_after_the_mark_else_the_last(text, number):
    assert final_number(text) == (None if number is None else Fraction(number))


def test_numbers_are_compared_by_value():
    assert score("The total is $1,000.", "9 + 991 = 1000\n#### 1000.0", kind="numeric") == 1
    assert score("1001", "#### 1000", kind="numeric") == 0
    assert score("no idea", "#### 1000", kind="numeric") == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(B)", "B"), ("b", "B"), (" C \n", "C"), ("B. because it is", "B"), ("D) none", "D"),
        ("The answer is (A).", "A"), ("Answer: B", "B"), ("(A) is wrong, so (C)", "C"),
        ("**B**", "B"), ("The correct option is D", "D"), ("A bird in the hand", None),
        ("It is wet.", None), ("", None), ("**Answer:** B", "B"), ("\\boxed{B}", "B"),
        ('The answer is "B".', "B"), ("(b)", "B"), ("b)", "B"), ("The answer is b", "B"),
        ("[B]", "B"), ("The answer is a bird", None), ("The answer is I think B", None),
    ],
)  # fmt: skip
def test_an_option_is_known_by_its_letter(text, letter):
    assert chosen_option(text) == letter


def test_a_pattern_finds_what_counts():
    settings = {"kind": "regex", "pattern": r"<a>(.*?)</a>"}
    assert score("<a>x</a> no, <a> 7 </a>", "<a>7</a>", **settings) == 1
    assert score("7", "<a>7</a>", **settings) == 0
    assert score("maybe yes", "yes", kind="regex", pattern="yes|no") == 1
    assert score("x", "y 7", kind="regex", pattern=r"x|y (\d)") == 0


def test_a_reference_without_what_counts_is_refused_before_anything_is_answered():
    metric = load_metric(MetricSettings(kind="numeric"))
    metric.check([sample_from_pair("q", "#### 4")])
    with pytest.raises(DataError, match=r"finds nothing to compare in .*'four'"):
        metric.check([sample_from_pair("q", "#### 4"), sample_from_pair("q", "four")])


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text(
        "def overlap(answer, row):\n"
        "    said, meant = set(answer.split()), set(row.completion.split())\n"
        "    return len(said & meant) / len(said | meant)\n"
        "def percent(answer, row):\n"
        "    return 55\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_scores"
    sys.modules.pop("my_scores", None)


def test_an_own_function_scores_between_0_and_1(own_module):
    assert score("a b c d", "a b", kind="function", function=f"{own_module}:overlap") == 0.5
    with pytest.raises(DataError, match="returned 55"):
        score("a", "a", kind="function", function=f"{own_module}:percent")
    for name in (f"{own_module}:nothing", "no.such.module:score"):
        with pytest.raises(ConfigError, match=r"task\.metric\.function"):
            load_metric(MetricSettings(kind="function", function=name))


@pytest.mark.parametrize(
    ("metric", "complaint"),
    [
        ("regex", "metric.pattern belongs to kind: regex"),
        ({"kind": "exact", "pattern": "x"}, "metric.pattern belongs to kind: regex"),
        ({"kind": "regex", "pattern": "("}, "metric.pattern"),
        ({"kind": "regex", "pattern": "x*"}, "finds itself in an empty answer"),
        ({"kind": "function", "function": "os.system"}, "expected package.module:name"),
        ("best", "metric"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(metric, complaint):
    tree = {
        "task": {"kind": "files", "rows": "r.jsonl", "metric": metric},
        "generator": {"kind": "files", "pattern": "x"},
    }
    with pytest.raises(ConfigError, match=complaint):
        parse_config(tree, "test")

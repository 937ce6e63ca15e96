"""Law: whatever an LLM answers, rows are whole or refused, and a score is a score."""

import json

import pytest
from hypothesis import strategies as st

from evoselect_pipeline.config_rows import MetricSettings
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.evaluation.metrics import load_metric
from evoselect_pipeline.generation.answers import BROKEN, read_answer
from evoselect_pipeline.generation.requests import Request
from evoselect_pipeline.stores.answer_log import Answer
from evoselect_pipeline_tests.fuzz.fuzzing import ANY_TEXT, JSON_VALUES, damaged, fuzz

REQUEST = Request("k", "Write rows.", ("p",), 3)
SLUGS = {*BROKEN, "empty", "not_json", "wrong_form", "malformed_row"}
PAIRS = st.fixed_dictionaries({"prompt": ANY_TEXT, "completion": ANY_TEXT})
ROWS = st.fixed_dictionaries({"rows": st.lists(PAIRS | JSON_VALUES)}) | st.lists(PAIRS)


@st.composite
def written(draw):
    """Rows as models write them: fenced, with words around them, damaged; or any words at all."""
    text = json.dumps(draw(ROWS), ensure_ascii=draw(st.booleans()))
    text = draw(
        st.sampled_from(["{}", "```json\n{}\n```", "[1] So: {} {{", "<think>[{{</think>{}"])
    ).format(text)
    if draw(st.booleans()):
        text = draw(damaged(text.encode("utf-8", "surrogatepass"))).decode("utf-8", "replace")
    return text


def answer(text: str, ended: str = "stop") -> Answer:
    return Answer("k", 0, text, ended, 1, 1, False, 0.0)


@fuzz(
    examples=100,
    text=written() | ANY_TEXT,
    ended=st.sampled_from(["stop", "stop", "length", *BROKEN]),
    as_json=st.booleans(),
)
def test_any_answer_gives_whole_rows_or_reasons(text, ended, as_json):
    samples, refused = read_answer(answer(text, ended), REQUEST, as_json, "model")
    assert len(samples) <= REQUEST.num_rows
    assert samples or refused
    assert set(refused) <= SLUGS
    for sample in samples:
        assert sample.prompt_id == "k" and sample.parents == ("p",)
        assert as_json or sample.prompt == REQUEST.words
        sample.completion.encode("utf-8")


@fuzz(examples=60, rows=ROWS, ascii=st.booleans(), cut=st.floats(0, 1))
def test_what_is_read_of_a_cut_answer_stands_in_the_whole_one(rows, ascii, cut):
    text = json.dumps(rows, ensure_ascii=ascii)
    whole = read_answer(answer(text), REQUEST, True, "model").samples
    part = read_answer(answer(text[: int(cut * len(text))], "length"), REQUEST, True, "model")
    assert part.samples == whole[: len(part.samples)]


NUMBERS = """1 12,345.60 - $ \u20ac #### 1/2 0.5 /3 e9 E-400 1e9999999 \u0663 \u00bd . ,"""
WORDS = """answer is the option : ( ) B b boxed { } * \\ it's A. x"""
PIECES = [*NUMBERS.split(), "9" * 5000], [*WORDS.split(), " " * 2000, "\n" * 2000, "\u2003" * 200]
SAID = st.sampled_from(PIECES).flatmap(
    lambda pieces: st.lists(st.sampled_from(pieces) | st.text(max_size=2), max_size=7)
)
TEXTS = SAID.map("".join) | SAID.map(" ".join)
METRICS = [
    {"kind": "exact"},
    {"kind": "numeric"},
    {"kind": "choice"},
    {"kind": "regex", "pattern": r"(\w)\s*$"},
]


@pytest.mark.parametrize("settings", METRICS, ids=lambda settings: settings["kind"])
@fuzz(examples=100, said=TEXTS, meant=TEXTS)
def test_any_answer_has_a_score_and_the_reference_is_right_by_itself(settings, said, meant):
    metric = load_metric(MetricSettings(**settings))
    try:
        row = sample_from_pair("q", meant)
        metric.check([row])
    except DataError:
        row = sample_from_pair("q", "#### 7 (B) x")
    assert metric.score(said, row) in (0, 1)
    assert metric.score(row.completion, row) == 1

"""What a server is asked for: fair to the targets, by their weights, the same again by the seed."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoselect_pipeline.config_rows import ModelSource, ServerSource
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.generation.answers import read_answer
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.generation.requests import Request, _in_turn, requests_for
from evoselect_pipeline.generation.server import Server
from evoselect_pipeline.stores.answer_log import Answer

TARGETS = [sample_from_pair(f"question {n}", f"answer {n}", subtask=f"s{n % 3}") for n in range(9)]
SOURCE = ServerSource(
    kind="server", base_url="https://llm/v1", model="m", num_candidates=90, rows_per_request=2
)


def asked(seed=0, weights=None, round_number=0, **changes):
    assignment = Assignment(TARGETS, round_number, seed, weights or {})
    return requests_for(SOURCE.model_copy(update=changes), assignment, "m")


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=30),
    st.integers(0, 200),
    st.integers(0, 2**32 - 1),
)
def test_every_number_comes_up_as_often_as_its_weight_says(weights, count, seed):
    found = Counter(_in_turn(weights, count, np.random.default_rng(seed)))
    assert sum(found.values()) == count
    for number, share in enumerate(np.array(weights) / np.sum(weights) * count):
        assert abs(found[number] - share) < 2
    # Whoever asks for more goes on where the others stopped.
    more = _in_turn(weights, count + 7, np.random.default_rng(seed))
    assert more[:count] == _in_turn(weights, count, np.random.default_rng(seed))


def test_targets_that_need_more_rows_are_imitated_more_often():
    needy = TARGETS[4].sample_id
    first = Counter(request.parents[0] for request in asked(weights={needy: 4.0}))
    assert sum(first.values()) == 45
    assert first[needy] == 15  # 4 of 12
    assert set(first.values()) <= {15, 3, 4}


def test_requests_are_the_same_again_and_others_in_another_round():
    keys = [request.key for request in asked(seed=1)]
    assert keys == [request.key for request in asked(seed=1)]
    assert len(set(keys)) == len(keys) == 45
    assert not set(keys) & {request.key for request in asked(seed=2)}
    assert not set(keys) & {request.key for request in asked(seed=1, temperature=0.5)}


def test_the_last_request_asks_for_what_is_left_and_few_targets_are_shown_as_they_are():
    words = [request.words for request in asked(num_candidates=5, num_examples=50)]
    assert [w.count("Write 2 new") for w in words] == [1, 1, 0]
    assert "Write 1 new" in words[-1]
    assert all(w.count("### Example") == len(TARGETS) for w in words)


@given(st.text() | st.binary().map(lambda b: b.decode("latin-1")))
@pytest.mark.parametrize("frame", ["{}", '{{"rows": [{}]}}', '{{"rows": [{{"prompt": "{}"}}]}}'])
def test_whatever_a_model_says_is_rows_or_reasons(frame, text):
    answer = Answer("r", 0, frame.format(text), "stop", 1, 1, False, 0.0)
    found = read_answer(answer, Request("k", "w", ("p",), 4), as_json=True, source="llm:m")
    assert found.samples or found.refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": "http://example.org/v1"}, "would travel in the clear"),
        ({"base_url": "http://169.254.169.254/v1"}, "hands out its machines' credentials"),
        ({"base_url": "https://me:secret@example.org/v1"}, "holds a password"),
        ({"base_url": "https://example.org/v1?api-key=secret"}, "holds a password or a query"),
        ({"base_url": "file:///etc/passwd"}, "expected http"),
        ({"format": "completion", "rows_per_request": 4}, "leave rows_per_request out"),
        ({"timeout_s": 700}, r"deadline_s 600 ends before .* timeout_s 700; raise deadline_s"),
        ({"max_cost": 1.0}, "limits nothing without price"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(changes, said):
    settings = {"kind": "server", "base_url": "http://localhost:1/v1", "model": "m"}
    with pytest.raises(ValueError, match=said):
        ServerSource(**(settings | changes))


def test_a_completion_is_one_row_and_a_json_answer_holds_several_unless_told_otherwise():
    server = {"kind": "server", "base_url": "http://localhost:1/v1", "model": "m"}
    for source, own in ((ServerSource, server), (ModelSource, {"kind": "model", "model": "m"})):
        for changes, expected in (
            ({}, 4),
            ({"format": "completion"}, 1),
            ({"format": "json", "rows_per_request": 1}, 1),
        ):
            assert source.model_validate(own | changes).rows_per_request == expected


def test_how_answers_are_fetched_is_no_part_of_what_they_are():
    before = Server(SOURCE).fingerprint(0)
    for name, value in {"deadline_s": 900.0, "retries": 1, "base_url": "https://other/v1"}.items():
        assert Server(SOURCE.model_copy(update={name: value})).fingerprint(0) == before
    assert Server(SOURCE.model_copy(update={"temperature": 0.5})).fingerprint(0) != before


def test_the_template_of_the_documentation_writes_another_prompt_for_every_request(tmp_path):
    page = (Path(__file__).parents[2] / "docs/generators.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```jinja\n(.*?)```", page, re.DOTALL)
    (tmp_path / "shop.jinja").write_text(text)
    changes = {"template": tmp_path / "shop.jinja", "rows_per_request": 1, "num_candidates": 1000}
    words = [r.words for n in (0, 1) for r in asked(round_number=n, **changes)]
    assert len(set(words)) == 2000
    assert words[0].startswith("A shop sells 3 crates in the morning")

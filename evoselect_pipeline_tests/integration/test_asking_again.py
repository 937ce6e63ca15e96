"""A model whose answer holds no row is shown that answer and told what was wrong with it (E4)."""

import json

import pytest

from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.generation.questions import MENDABLE, SHOWN
from evoselect_pipeline.generation.server import Server
from evoselect_pipeline_tests.integration.fake_llm import completion, fake_llm, rows

TARGETS = [sample_from_pair(f"add {n} and 1", str(n + 1)) for n in range(3)]
GOOD = rows(("add 7 and 7", "14"))
LONG = completion("rows, " * SHOWN, ended="length")


def generate(server, folder, **changes):
    """One request's rows."""
    settings = {"kind": "server", "base_url": server.address, "model": "fake"}
    few = {"num_candidates": 1, "concurrency": 1}
    source = ServerSource.model_validate(settings | few | changes)
    assignment = Assignment(TARGETS, 0, seed=7, log_file=folder / "answers.jsonl")
    return Server(source).generate(assignment)


def conversations(server) -> list[list[dict]]:
    return [body["messages"] for body in server.asked]


@pytest.mark.parametrize(
    ("why", "answer", "shown"),
    [
        ("not_json", completion("I would rather talk."), "I would rather talk."),
        ("wrong_form", completion('{"rows": "none"}'), '{"rows": "none"}'),
        ("malformed_row", completion('{"rows": [{"prompt": "q"}]}'), '{"rows": [{"prompt": "q"}]}'),
        ("empty", completion('{"rows": []}'), '{"rows": []}'),
        ("empty", completion("  "), "(nothing)"),
        ("length", LONG, f"{('rows, ' * SHOWN)[:SHOWN]} ..."),
    ],
)
def test_e4_the_next_attempt_shows_the_last_answer_and_says_what_was_wrong(
    tmp_path, why, answer, shown
):
    with fake_llm(lambda number, body: [answer, answer, GOOD][number]) as server:
        written = generate(server, tmp_path)
    assert len(written.samples) == 1
    assert written.facts["refused_answers"] == {why: 2}
    first, second, third = conversations(server)
    assert [turn["role"] for turn in first] == ["user"]
    assert second == third, "the last answer alone is shown"
    assert second[0] == first[0]
    assert second[1] == {"role": "assistant", "content": shown}
    assert second[2]["role"] == "user"
    assert second[2]["content"].startswith(MENDABLE[why])


@pytest.mark.parametrize(
    "answer",
    [
        completion("", ended="content_filter"),
        completion(None, message={"refusal": "I cannot help with that"}),
    ],
)
def test_e5_a_refusal_is_put_once_more_as_it_is(tmp_path, answer):
    """E5."""
    with fake_llm(lambda number, body: answer) as server:
        assert generate(server, tmp_path).samples == []
    assert len(server.asked) == 2
    assert conversations(server)[0] == conversations(server)[1]


def test_e5_an_answer_that_holds_whole_rows_before_its_cut_is_not_asked_for_again(tmp_path):
    whole = '{"rows": [{"prompt": "a", "completion": "b"}'
    cut = completion(f'```json\n{whole}, {{"prompt": "c', ended="length")
    with fake_llm(lambda number, body: cut) as server:
        written = generate(server, tmp_path, num_candidates=2)
        again = generate(server, tmp_path, num_candidates=2)
    assert len(server.asked) == 1
    assert [(row.prompt, row.completion) for row in written.samples] == [("a", "b")]
    assert written.facts["refused_answers"] == {"length": 1}
    assert again == written


def test_what_the_next_attempt_says_follows_from_the_log_alone(tmp_path):
    """E12: an attempt that was cut off by a crash is put in the same words, under its number."""
    replies = [completion("no rows"), completion('{"rows": 1}'), GOOD]
    with fake_llm(lambda number, body: replies[number]) as whole:
        generate(whole, tmp_path / "whole")
    log = (tmp_path / "whole" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    for num_kept in (0, 1, 2):
        folder = tmp_path / str(num_kept)
        folder.mkdir()
        (folder / "answers.jsonl").write_bytes(b"".join(log[:num_kept]))
        with fake_llm(lambda number, body, n=num_kept: replies[n + number]) as server:
            generate(server, folder)
        assert conversations(server) == conversations(whole)[num_kept:]
        assert [body["seed"] for body in server.asked] == [
            body["seed"] for body in whole.asked[num_kept:]
        ]
        assert (folder / "answers.jsonl").read_bytes() == b"".join(log)
    assert [json.loads(line)["attempt"] for line in log] == [0, 1, 2]


def test_the_estimate_counts_the_whole_conversation(tmp_path):
    """E7."""
    replies = [completion("no rows", usage=None), rows(("a", "b"))]
    replies[1].body.pop("usage")
    with fake_llm(lambda number, body: replies[number]) as server:
        generate(server, tmp_path)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    for answer, messages in zip(answers, conversations(server), strict=True):
        num_bytes = sum(len(turn["content"].encode()) for turn in messages)
        assert answer["prompt_tokens"] == -(-num_bytes // 4)
        assert answer["estimated"]

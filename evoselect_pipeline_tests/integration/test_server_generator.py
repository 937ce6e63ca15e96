"""An LLM behind a server writes rows: paid for once, whatever the server or we do."""

import json
import signal
import time

import pytest

from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.errors import ArtifactError, ConfigError
from evoselect_pipeline.generation.answers import CUT
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.generation.questions import REFUSED
from evoselect_pipeline.generation.server import Server
from evoselect_pipeline.stores.answer_log import AnswerLog
from evoselect_pipeline_tests.browser.serving import free_port
from evoselect_pipeline_tests.integration.fake_llm import (
    ENDLESS,
    Reply,
    completion,
    fake_llm,
    rows,
)

TARGETS = [sample_from_pair(f"add {n} and 1", str(n + 1), subtask=f"s{n % 2}") for n in range(6)]
KEY = "sk-very-secret-4711"


def source(server, **changes) -> ServerSource:
    settings = {
        "kind": "server",
        "base_url": server.address,
        "model": "fake",
        "num_candidates": 12,
        "rows_per_request": 2,
        "concurrency": 3,
        "retries": 2,
        "timeout_s": 5,
    }
    return ServerSource(**(settings | changes))


def generate(server, folder, **changes):
    assignment = Assignment(TARGETS, 0, seed=7, log_file=folder / "answers.jsonl")
    return Server(source(server, **changes)).generate(assignment)


def good(number, body):
    """Two rows that nobody else gets."""
    words = body["messages"][0]["content"]
    name = f"{abs(hash(words)) % 10**9}"
    return rows((f"{name} a", "1"), (f"{name} b", "2"))


def test_rows_know_their_writer_their_prompt_and_the_rows_they_grew_from(tmp_path):
    with fake_llm(good) as server:
        written = generate(server, tmp_path, num_examples=3)
        assert len(server.asked) == 6
        assert len(written.samples) == 12
        ids = {target.sample_id for target in TARGETS}
        for sample in written.samples:
            assert sample.source == "llm:fake"
            assert len(set(sample.parents)) == 3 and set(sample.parents) <= ids
        # Each target is the one to imitate once, and the others come from its subtask first.
        assert {s.parents[0] for s in written.samples} == ids
        subtask_of = {target.sample_id: target.subtask for target in TARGETS}
        assert all(len({subtask_of[i] for i in s.parents}) == 1 for s in written.samples)
        for words in server.words():
            assert words.count("Prompt:\nadd ") == 3
            assert "Write 2 new examples" in words
        assert {body["response_format"]["json_schema"]["strict"] for body in server.asked} == {True}
        assert written.facts == {
            "refused_answers": {},
            "num_requests": 6,
            "num_tokens": 720,
            "cost": 0.0,
            "stopped_by": None,
        }
        again = generate(server, tmp_path, num_examples=3)
        assert len(server.asked) == 6, "what was answered is not asked for again"
        assert [s.sample_id for s in again.samples] == [s.sample_id for s in written.samples]


def test_e2_a_busy_server_is_asked_again_when_it_says(tmp_path):
    busy = {
        0: Reply({}, 429, {"Retry-After": "1"}),
        1: Reply({}, 500),
        2: Reply({}, 503),
        4: Reply({}, 502),
    }
    with fake_llm(lambda number, body: busy.get(number) or good(number, body)) as server:
        written = generate(server, tmp_path, concurrency=1, retries=3)
    assert len(written.samples) == 12
    assert len(server.asked) == 6 + len(busy)
    assert server.asked[1]["at"] - server.asked[0]["at"] >= 1
    assert written.facts["num_requests"] == 6


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, r"refuses the key in \$A_KEY"),
        (403, r"refuses the key in \$A_KEY"),
        (404, "knows no model 'fake', or no chat completions"),
        (402, r"refuses the key in \$A_KEY, or its account"),
        (400, "6 of 6 requests got no answer, .* set generator.constrain to false"),
        (301, "of 6 requests got no answer"),
    ],
)
def test_e3_what_would_be_refused_again_ends_at_once_and_keeps_the_key_to_itself(
    tmp_path, monkeypatch, status, said
):
    monkeypatch.setenv("A_KEY", KEY)
    refusal = Reply({"error": {"message": f"not with {KEY}"}}, status)
    with fake_llm(lambda number, body: refusal) as server:
        with pytest.raises(ConfigError, match=said) as error:
            generate(server, tmp_path, api_key_variable="A_KEY")
        assert len(server.asked) <= (3 if status in (401, 402, 403, 404) else 7)
        assert server.asked[0]["key"] == f"Bearer {KEY}"
    assert KEY not in str(error.value)
    assert "***" in str(error.value)


UNREADABLE = {
    "not_json": completion("I would rather talk about it."),
    "wrong_form": completion('{"rows": "none"}'),
    "malformed_row": completion('{"rows": [{"prompt": "a question"}]}'),
    "length": completion('{"rows": [', ended="length"),
    "content_filter": completion("", ended="content_filter"),
    "refused": completion(None, message={"refusal": "I cannot help with that"}),
    "empty": completion("  "),
    "malformed": Reply(b"<html>hello</html>"),
    "too_long": Reply(b'{"choices": "' + b"x" * 20_000),
    "too_slow": Reply(ENDLESS),
    "broken_off": Reply(b'{"choices": [', headers={"Content-Length": "9999"}),
}


@pytest.mark.parametrize("why", UNREADABLE)
def test_e4_e5_e6_an_answer_that_holds_no_row_is_asked_for_again_then_counted(tmp_path, why):
    """E4, E5: three times, and twice of a model that will not."""
    times = 2 if why in REFUSED else 3

    def reply(number, body):
        is_first = body["messages"][0]["content"] == first[0] if first else True
        first.append(body["messages"][0]["content"])
        return UNREADABLE[why] if is_first else good(number, body)

    first: list[str] = []
    with fake_llm(reply) as server:
        changes = {"concurrency": 1, "timeout_s": 1, "max_answer_bytes": 10_000}
        written = generate(server, tmp_path, **changes)
        assert len(written.samples) == 10
        assert written.facts["refused_answers"] == {why: times}
        assert len(server.asked) == 5 + times
        assert written.facts["num_requests"] == 5 + times, "all of them are counted"
        seeds = [body["seed"] for body in server.asked[:times]]
        assert len(set(seeds)) == times, "the same seed would get the same answer"
        again = generate(server, tmp_path, **changes)
        # What we or the network cut off may come whole another time; the rest is settled.
        assert len(server.asked) == (11 if why in CUT else 5 + times)
        assert again.samples == written.samples


@pytest.mark.parametrize(
    "wrapped",
    [
        "```json\n{}\n```",
        "Sure! Of the set {a, b} and [1]:\n{}\nI hope this helps {{smile}}.",
        '<think>{"x": 1}</think>{}',
        "{}",
    ],
    ids=["fenced", "courteous", "thoughtful", "bare"],
)
def test_e4_rows_are_found_among_fences_and_courtesies(tmp_path, wrapped):
    def reply(number, body):
        told = json.dumps({"rows": [{"prompt": f"q{number} {{", "completion": "}", "mood": 1}]})
        return completion(wrapped.replace("{}", told, 1), ended="eos", usage={"total_tokens": 9})

    with fake_llm(reply) as server:
        written = generate(server, tmp_path)
    assert {s.completion for s in written.samples} == {"}"}
    assert len(written.samples) == 6


def test_e7_tokens_that_the_server_does_not_count_are_estimated(tmp_path):
    with fake_llm(lambda number, body: completion('{"rows": []}', usage=None)) as server:
        generate(server, tmp_path, num_candidates=2, price_prompt=1.0, price_completion=2.0)
        words = server.words()[0]
    answer = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    assert answer["estimated"]
    assert answer["prompt_tokens"] == -(-len(words) // 4)
    assert answer["completion_tokens"] == 3
    assert answer["cost"] == pytest.approx((answer["prompt_tokens"] + 6) / 1e6)


@pytest.mark.parametrize(
    ("limit", "allowed", "higher"),
    [("max_requests", 4, 5), ("max_total_tokens", 480, 600), ("max_cost", 0.0005, 0.0006)],
)
def test_e8_a_limit_ends_the_asking_and_a_higher_one_goes_on(tmp_path, limit, allowed, higher):
    prices = {"price_prompt": 1.0, "price_completion": 2.0}  # 0.00014 a request
    with fake_llm(good) as server:
        part = generate(server, tmp_path, **prices, concurrency=1, **{limit: allowed})
        assert part.facts["stopped_by"] == limit
        assert len(server.asked) == 4
        assert len(part.samples) == 8
        assert part.facts["cost"] == pytest.approx(4 * 0.00014)
        more = generate(server, tmp_path, **prices, concurrency=1, **{limit: higher})
        assert len(server.asked) == 5
        assert [s.sample_id for s in more.samples[:8]] == [s.sample_id for s in part.samples]
        # Several at a time spend no more than what is under way.
        whole = generate(server, tmp_path / "wide", **prices, concurrency=3, **{limit: allowed})
    assert 4 <= whole.facts["num_requests"] <= 6


def test_e1_what_was_answered_before_the_server_died_is_kept(tmp_path):
    def reply(number, body):
        return good(number, body) if number < 4 else Reply({}, 500)

    changes = {"concurrency": 1, "retries": 0, "num_candidates": 24}
    with fake_llm(reply) as server:
        with pytest.raises(ConnectionError, match=r"5 of 12 requests got no answer, the last bec"):
            generate(server, tmp_path, **changes)
        assert len(server.asked) == 9, "a server that is down is not asked for everything"
    with fake_llm(good) as server:
        assert len(generate(server, tmp_path, **changes).samples) == 24
        assert len(server.asked) == 8


@pytest.mark.parametrize("status", [500, 400])
def test_one_request_that_the_server_cannot_take_costs_its_own_rows_alone(tmp_path, status):
    def reply(number, body):
        is_poison = "Example 1\nPrompt:\nadd 3 and 1" in body["messages"][0]["content"]
        return Reply({}, status) if is_poison else good(number, body)

    changes = {"num_candidates": 24, "num_examples": 1, "retries": 0, "concurrency": 1}
    too_many = pytest.raises((ConnectionError, ConfigError), match="2 of 12 requests")
    with fake_llm(reply) as server, too_many:
        generate(server, tmp_path, **changes)
    wide = {**changes, "num_candidates": 60, "rows_per_request": 1}
    targets = [*TARGETS, *(sample_from_pair(f"mul {n} and 1", f"{n}") for n in range(6))]
    with fake_llm(reply) as server:
        assignment = Assignment(targets, 0, seed=7, log_file=tmp_path / "wide" / "answers.jsonl")
        written = Server(source(server, **wide)).generate(assignment)
    assert written.facts["refused_answers"] == {"no_answer": 5}
    assert len(written.samples) == 55, "one was asked for at a time"


def test_an_answer_that_is_kept_counts_though_a_limit_is_reached_before_its_turn(tmp_path):
    def reply(number, body):
        return Reply({}, 500) if number == 0 else good(number, body)

    changes = {"concurrency": 1, "retries": 0, "max_requests": 5}
    with fake_llm(reply) as server:
        with pytest.raises(ConnectionError, match="1 of 6 requests got no answer"):
            generate(server, tmp_path, **changes)
        written = generate(server, tmp_path, **changes)
    assert written.facts["stopped_by"] == "max_requests"
    assert len(written.samples) == 10


def test_e1_a_slow_answer_is_counted_and_a_longer_wait_gets_it(tmp_path):
    def slow(number, body):
        time.sleep(1.0)
        return good(number, body)

    changes = {"concurrency": 6, "price_completion": 1.0, "max_tokens": 50}
    with fake_llm(slow) as server:
        nothing = generate(server, tmp_path, timeout_s=0.3, max_requests=6, **changes)
        assert nothing.samples == []
        num_asked = len(server.asked)  # the limit, and what was under way when it was reached
        assert 6 <= num_asked == nothing.facts["num_requests"] <= 12
        assert nothing.facts["cost"] == pytest.approx(num_asked * 50 / 1e6)
        assert len(generate(server, tmp_path, timeout_s=20, **changes).samples) == 12


def test_e6_an_error_that_never_ends_ends_in_time(tmp_path):
    with fake_llm(lambda number, body: Reply(ENDLESS, status=500)) as server:
        changes = {"timeout_s": 0.5, "num_candidates": 2}
        assert generate(server, tmp_path, **changes).facts["refused_answers"] == {"too_slow": 3}


def test_more_candidates_ask_for_more_and_for_nothing_twice(tmp_path):
    with fake_llm(good) as server:
        few = generate(server, tmp_path, num_candidates=12)
        more = generate(server, tmp_path, num_candidates=20)
        assert len(server.asked) == 10
    assert more.samples[:12] == few.samples


def test_an_interrupt_ends_the_asking(tmp_path):
    def reply(number, body):
        if number == 3:
            signal.raise_signal(signal.SIGUSR1)
        return good(number, body)

    class Interrupted(BaseException):
        """As Dagster's own: no KeyboardInterrupt."""

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with fake_llm(reply) as server:
            with pytest.raises(Interrupted):
                generate(server, tmp_path, num_candidates=400, concurrency=1)
            time.sleep(0.5)  # what was under way comes to the server still
            asked = len(server.asked)
            time.sleep(0.3)
            assert len(server.asked) == asked < 200
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) >= 3


@pytest.mark.parametrize("key", ["sk-47\x7f11", "sk-47é11", "sk-47\n11"])
def test_a_key_that_no_header_takes_is_refused_without_repeating_it(tmp_path, monkeypatch, key):
    monkeypatch.setenv("A_KEY", key)
    with fake_llm(good) as server, pytest.raises(ConfigError, match=r"\$A_KEY holds") as error:
        generate(server, tmp_path, api_key_variable="A_KEY")
    assert "47" not in str(error.value)


def test_e1_nobody_listens_is_said_with_the_address(tmp_path):
    address = f"http://127.0.0.1:{free_port()}/v1"
    nobody = ServerSource(kind="server", base_url=address, model="fake", retries=0)
    with pytest.raises(ConnectionError, match=address):
        Server(nobody).generate(Assignment(TARGETS, 0, 7, log_file=tmp_path / "answers.jsonl"))
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_log_that_was_cut_off_is_taken_up_and_one_that_was_changed_is_refused(tmp_path):
    log = tmp_path / "answers.jsonl"
    with fake_llm(good) as server:
        generate(server, tmp_path)
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
        assert len(generate(server, tmp_path).samples) == 12
        assert len(server.asked) == 7
        log.write_bytes(b'{"request": 1}\n' + log.read_bytes())
        with pytest.raises(ArtifactError, match=r"answers.jsonl:1: expected one answer"):
            generate(server, tmp_path)
    log.write_bytes(b"".join(lines)[:-1])  # as editors leave it
    with fake_llm(good) as server:
        assert len(generate(server, tmp_path, num_candidates=14).samples) == 14
        assert len(server.asked) == 1
    assert len(AnswerLog(log).file.read_bytes().splitlines()) == 7
    log.write_bytes(lines[0] + lines[0])
    with pytest.raises(ArtifactError, match="is there twice"):
        AnswerLog(log)


def test_an_answer_that_was_removed_is_asked_for_again_whatever_came_after_it(tmp_path):
    def reply(number, body):
        return completion("no rows") if number < 3 else good(number, body)

    changes = {"num_candidates": 2, "concurrency": 1}
    log = tmp_path / "answers.jsonl"
    with fake_llm(reply) as server:
        generate(server, tmp_path, **changes, max_requests=2)
        log.write_bytes(log.read_bytes().splitlines(keepends=True)[1])
        written = generate(server, tmp_path, **changes)
        assert (len(written.samples), len(server.asked)) == (2, 4)
    assert [json.loads(line)["attempt"] for line in log.read_text().splitlines()] == [1, 2, 3]


def test_a_template_of_ones_own_makes_prompts_that_the_model_completes(tmp_path):
    template = tmp_path / "prompt.jinja"
    template.write_text("{{ examples[0].prompt }}, then {{ number }}")
    changes = {"template": template, "format": "completion", "rows_per_request": 1}
    with fake_llm(lambda number, body: completion(" 42 ")) as server:
        written = generate(server, tmp_path, num_candidates=3, **changes)
        assert "response_format" not in server.asked[0]
        assert sorted(s.prompt for s in written.samples) == sorted(server.words())
    assert {s.completion for s in written.samples} == {"42"}
    for text, said in (("{{ nobody }}", "'nobody' is undefined"), ("{% if %}", "Expected an expr")):
        template.write_text(text)
        with pytest.raises(ConfigError, match=said):
            Server(source(server, **changes)).fingerprint(0)
    template.write_text("{{ examples.__class__.__mro__ }}")
    with pytest.raises(ConfigError, match="unsafe"):
        Server(source(server, **changes)).fingerprint(0)


def test_fields_of_the_request_can_be_added_and_taken_away(tmp_path):
    with fake_llm(good) as server:
        generate(server, tmp_path, extra_body={"seed": None, "min_p": 0.1, "max_tokens": 7})
    assert "seed" not in server.asked[0]
    assert (server.asked[0]["min_p"], server.asked[0]["max_tokens"]) == (0.1, 7)

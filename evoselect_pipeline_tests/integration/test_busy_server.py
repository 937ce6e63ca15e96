"""A server that is busy, gone or rude: how long it is waited for, and who hears of it."""

import json
import time
from email.utils import formatdate
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoselect_pipeline.commands.console import live_progress
from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.generation import asking
from evoselect_pipeline.generation.asking import told_wait_s
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.generation.server import Server
from evoselect_pipeline_tests.browser.serving import free_port
from evoselect_pipeline_tests.integration.fake_llm import ENDLESS, Reply, fake_llm, rows
from evoselect_pipeline_tests.integration.process import start

TARGETS = [sample_from_pair(f"add {n} and 1", str(n + 1)) for n in range(3)]
GOOD = rows(("add 7 and 7", "14"))
KEY = "sk-very-secret-4711"


def source(address, **changes) -> ServerSource:
    few = {"num_candidates": 1, "concurrency": 1, "retries": 2, "timeout_s": 5}
    settings = {"kind": "server", "base_url": address, "model": "fake"}
    return ServerSource.model_validate(settings | few | changes)


def generate(address, folder, **changes):
    """One request's rows."""
    assignment = Assignment(TARGETS, 0, seed=7, log_file=folder / "answers.jsonl")
    return Server(source(address, **changes)).generate(assignment)


def busy_first(*replies):
    """These, then rows."""
    return lambda number, body: replies[number] if number < len(replies) else GOOD


def date(seconds: float) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("told", "least", "most"),
    [
        (lambda: date(3), 1, 3),
        (lambda: date(-3600), 0, 0),
        (lambda: "Sun Nov  6 08:49:37 1994", 0, 0),
        (lambda: time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime(time.time() + 3)), 1, 3),
        (lambda: "7", 7, 7),
        (lambda: "1.5", 1.5, 1.5),
    ],
    ids=["date", "past date", "past date of C", "date of C", "seconds", "fraction"],
)
def test_e2_a_moment_is_waited_for_in_each_form_that_servers_name_it_in(told, least, most):
    waited = told_wait_s(told())
    assert waited is not None
    assert least <= waited <= most


@pytest.mark.parametrize("nonsense", ["", "soon", "-1", "1e3", "NaN", "inf", "32 Foo 99999999"])
def test_e2_nonsense_names_no_moment(nonsense):
    assert told_wait_s(nonsense) is None


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ (Jan|Feb|Foo) \d+ \d+:\d+:\d+( [+-]\d+)?"))
def test_e2_whatever_a_server_names_is_a_wait_or_none(told):
    waited = told_wait_s(told)
    assert waited is None or waited >= 0


def test_e2_a_date_is_heeded_and_a_past_one_is_no_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "FIRST_WAIT_S", 8.0)  # where nothing is told

    def reply(number, body):
        moments = (date(-60), date(2.5))
        return Reply({}, 503, {"Retry-After": moments[number]}) if number < 2 else GOOD

    with fake_llm(reply) as server:
        assert len(generate(server.address, tmp_path).samples) == 1
    first, second, third = (body["at"] for body in server.asked)
    assert second - first < 4
    assert 1 < third - second < 5


def test_e2_without_a_moment_the_waits_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "FIRST_WAIT_S", 0.2)
    with fake_llm(busy_first(*[Reply({}, 503, {"Retry-After": "soon"})] * 3)) as server:
        generate(server.address, tmp_path, retries=3)
    times = [body["at"] for body in server.asked]
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert all(wait >= 0.75 * 0.2 * 2**number for number, wait in enumerate(waits))


@pytest.mark.parametrize("told", [lambda: "30", lambda: date(30)], ids=["seconds", "date"])
def test_e2_a_wait_that_would_pass_the_deadline_ends_the_request_at_once(tmp_path, told):
    def reply(number, body):
        return Reply({"error": {"message": "no slot"}}, 429, {"Retry-After": told()})

    began = time.monotonic()
    with fake_llm(reply) as server:
        said = r"429 - no slot; to wait \d\d\.\d s more would pass generator.deadline_s = 5\. What"
        with pytest.raises(ConnectionError, match=said):
            generate(server.address, tmp_path, deadline_s=5)
        assert len(server.asked) == 1
    assert time.monotonic() - began < 15


def test_e2_the_last_try_ends_with_the_deadline_and_counts_as_too_slow(tmp_path):
    def reply(number, body):
        return Reply({}, 503, {"Retry-After": "1.5"}) if number == 0 else Reply(ENDLESS)

    with fake_llm(reply) as server:
        generate(server.address, tmp_path, timeout_s=2, deadline_s=2, max_requests=1)
        assert time.monotonic() - server.asked[1]["at"] < 1.5, "half a second was left"
    [answer] = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert answer["ended"] == "too_slow"


def test_e1_a_server_that_is_gone_is_told_at_once_and_once(tmp_path, caplog):
    address = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ConnectionError, match="3 of 3 requests got no answer"):
        generate(address, tmp_path, num_candidates=9, rows_per_request=3, retries=1)
    [told] = [r for r in caplog.records if r.levelname == "WARNING"]
    assert time.time() - told.created > 1, "all waits came after it"
    assert f"{address}: Connection error" in told.getMessage()
    assert "put again, up to 1 times in 600 s" in told.getMessage()


def test_e1_a_name_that_leads_nowhere_is_said_with_the_address(tmp_path):
    with pytest.raises(ConnectionError, match=r"https://nobody\.invalid/v1: 1 of 1 .* Connection"):
        generate("https://nobody.invalid/v1", tmp_path, retries=0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"detail": "Unexpected keys in the request: seed"}, "- Unexpected keys in the request"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "not allowed"}]}, "'msg': 'not allowed'"),
        ({"error": {"message": "no such thing"}}, "400 - no such thing"),
        ({"error": "plain words"}, "400 - plain words"),
        (b"<p>plain\x1b[2J words</p>", r"400 - <p>plain\[2J words</p>"),
        (b"", r"Error code: 400\. If"),
        ({"detail": f"not with {KEY}" + "x" * 10_000}, r"400 - not with \*\*\*x{200,300}\. If it"),
    ],
)
def test_e3_a_refusal_is_told_in_the_servers_own_words(tmp_path, monkeypatch, body, said):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        fake_llm(lambda number, _: Reply(body, 400)) as server,
        pytest.raises(ConfigError, match=said) as error,
    ):
        generate(server.address, tmp_path)
    assert KEY not in str(error.value)


def test_a_server_that_is_there_and_takes_the_key_passes_and_nothing_is_asked(monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    with fake_llm(busy_first()) as server:
        Server(source(server.address, api_key_variable="A_KEY")).probe()
    assert (server.listed, server.asked) == ([f"Bearer {KEY}"], [])


@pytest.mark.parametrize(
    "odd",
    [
        Reply({"detail": "Not Found"}, 404),
        Reply({}, 500),
        Reply({}, 302, {"Location": "http://127.0.0.1:9/"}),
        Reply(b"<html>hello</html>"),
        Reply(b"{", headers={"Content-Length": "99"}),
        Reply(ENDLESS),
    ],
    ids=["404", "500", "redirection", "page", "cut off", "endless"],
)
def test_a_server_that_does_not_list_its_models_passes(odd):
    with fake_llm(busy_first(), odd) as server:
        Server(source(server.address)).probe()
    assert len(server.listed) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_e3_the_probe_tells_which_variable_holds_the_key_that_is_refused(monkeypatch, status):
    monkeypatch.setenv("A_KEY", KEY)
    refusal = Reply({"detail": f"not with {KEY}"}, status)
    with fake_llm(busy_first(), refusal) as server:
        said = r"refuses the key in \$A_KEY.*not with \*\*\*"
        with pytest.raises(ConfigError, match=said):
            Server(source(server.address, api_key_variable="A_KEY")).probe()
        assert len(server.listed) == 1


def test_e1_the_probe_tells_a_closed_port_and_a_server_that_is_mute(monkeypatch):
    address = f"http://127.0.0.1:{free_port()}/v1"
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"{address} cannot be reached: Connection.* Start the"):
        Server(source(address)).probe()
    assert time.monotonic() - began < 2, "it is not asked again"
    monkeypatch.setattr(asking, "PROBE_S", 0.3)
    with (
        fake_llm(busy_first(), Reply(ENDLESS, status=500)) as server,
        pytest.raises(ConfigError, match=r"cannot be reached: no answer in 0\.3 s\. Start"),
    ):
        Server(source(server.address)).probe()


def test_e1_who_looks_at_the_progress_sees_that_the_server_is_gone(tmp_path, capsys):
    with live_progress(), pytest.raises(ConnectionError):
        generate(f"http://127.0.0.1:{free_port()}/v1", tmp_path, retries=1)
    assert capsys.readouterr().err.count("Connection error. (All connection attempts failed)") == 1


@pytest.fixture
def config(tmp_path):
    """A line whose server nobody has started."""
    splits = ("targets", "validation", "test")
    for split in splits:
        (tmp_path / f"{split}.jsonl").write_text(f'{{"prompt": "{split}?", "completion": "1"}}\n')
    tree = {
        "line": "sums",
        "task": {"kind": "files"} | {split: f"{tmp_path}/{split}.jsonl" for split in splits},
        "generator": {
            "kind": "server",
            "base_url": f"http://127.0.0.1:{free_port()}/v1",
            "model": "fake",
        },
    }
    (tmp_path / "sums.yaml").write_text(json.dumps(tree))  # JSON is YAML
    return tmp_path / "sums.yaml"


def test_check_asks_whether_the_server_is_there_and_reading_a_line_does_not(config, evoselect):
    line = ("--config", config, "--home", config.parent / "home")
    checked = evoselect("check", *line)
    assert checked.code == 2
    assert "/v1 cannot be reached: Connection error." in " ".join(checked.err.split())
    assert evoselect("status", *line).code == 0
    with fake_llm(busy_first()) as server:
        there = ("--set", f"generator.base_url={server.address}")
        checked = evoselect("check", *line, *there)
        assert (checked.code, len(server.listed), server.asked) == (0, 1, [])


@pytest.mark.slow
def test_e1_run_tells_long_before_it_gives_up_that_the_server_is_gone(config, home):
    running = start("run", "--config", config, "--home", home.root)
    try:
        assert any("/v1: Connection error." in line for line in running.stderr)
        assert running.poll() is None
    finally:
        running.kill()
        running.communicate()

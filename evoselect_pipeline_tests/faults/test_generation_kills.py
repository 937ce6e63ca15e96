"""A generator whose answers are paid for, killed between them: nothing is paid for twice."""

import json

import pytest

from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.rounds.audit import audit
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.integration.fake_llm import fake_llm, rows
from evoselect_pipeline_tests.integration.forked import Forked


def user_line(folder, server, **generator):
    """A task in files whose rows a server writes."""
    pairs = {
        "targets": [(f"add {n} and 1", f"{n + 1}") for n in range(8)],
        "validation": [(f"add {n} and 2", f"{n + 2}") for n in range(8)],
        "test": [(f"add {n} and 3", f"{n + 3}") for n in range(8)],
    }
    for name, rows_ in pairs.items():
        text = "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows_)
        (folder / f"{name}.jsonl").write_text(text)
    config = {
        "line": "sums",
        "task": {"kind": "files", **{name: str(folder / f"{name}.jsonl") for name in pairs}},
        "generator": {
            "kind": "server",
            "base_url": server.address,
            "model": "fake",
            "num_candidates": 48,
            "rows_per_request": 2,
            **generator,
        },
        "gradients": {"dim": 64},
        "quality": {"prior": "none"},
        "selection": {"method": "random"},
        "train": {"steps": 5},
        "evaluation": {"max_new_tokens": 4},
        "promotion": {"tolerance": 2},
    }
    file = folder / "line.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return file


def sums(number, body):
    """A new sum, and one from the test rows, word for word."""
    first = body["seed"] % 900 + 100
    return rows((f"add {first} and {number}", f"{first + number}"), ("add 1 and 3", "4"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "num_asked"),
    [("answers:after:9", 24), ("answers:before:9", 25)],  # what came and was not kept comes again
)
def test_e11_e12_a_round_that_is_killed_between_answers_asks_for_the_missing_ones_alone(
    tmp_path, fault, num_asked
):
    with fake_llm(sums) as server:
        config = user_line(tmp_path, server, concurrency=1)
        run = ("run", "--config", config, "--home", tmp_path / "home", "--rounds", 1)
        assert Forked(*run, fault=fault).wait() == -9
        assert len(server.asked) == 9
        ended = Forked(*run, "--format", "json")
        out, errors = ended.communicate()
        assert ended.returncode == 0, errors
        words = server.words()
        assert (len(words), len(set(words))) == (num_asked, 24), "each request once"
    told = json.loads(out)["rounds"][0]
    # The question of a test row is kept out, however often it was written.
    assert told["rejected"]["leaks_evaluation"] == 1
    folder = tmp_path / "home" / "lines" / "sums" / "0000"
    facts = json.loads((folder / "candidates" / "facts.json").read_text())
    assert (facts["num_requests"], facts["num_tokens"]) == (24, 24 * 120)
    line = Line(read_line_config(config, ()), Home(tmp_path / "home"))
    assert list(audit(line)) == []
    log = folder / "answers.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    [problem] = audit(line)
    assert "tell of 24 answers with 2880 tokens, answers.jsonl holds 23 with 2760" in problem.what

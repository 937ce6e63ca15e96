"""A two-round evolution on GSM8K whose rows `transformers serve` writes, a real server.

The shipped model is student and generator at once: it answers school sums badly, so nothing is
learned here. What is shown is that every part meets the real other one.
"""

import json
import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from evoselect_pipeline_tests.browser.serving import free_port
from evoselect_pipeline_tests.deployment.compose import wait_for
from evoselect_pipeline_tests.integration.process import BIN, REPOSITORY, finish

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
MODEL = REPOSITORY / "evoselect_pipeline" / "playground" / "base_model"
SIZES = {"targets": 12, "validation": 12, "test": 12}
NUM_CANDIDATES = 40
# A question out of others, of none so much that the gates take it for theirs; the model's answer to
# it completes the row.
TEMPLATE = (
    "Round {{ round }}, question {{ number }}:"
    "{% for example in examples %} {{ example.prompt.split()[:6] | join(' ') }}{% endfor %}?"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at {GSM8K}"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server of the shipped model."""
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [BIN / "transformers", "serve", str(MODEL), "--host", "127.0.0.1", "--port", port]
    with log.open("w") as file:
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        wait_for(is_up, 180, "transformers serve")
        yield f"{address}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def config(server, tmp_path):
    """A task of GSM8K's files as they were published, with a few rows for each purpose."""
    (tmp_path / "question.jinja").write_text(TEMPLATE)
    tree = {
        "line": "gsm8k",
        "task": {
            "kind": "files",
            "rows": str(GSM8K / "train.jsonl"),
            "test": str(GSM8K / "test.jsonl"),
            "columns": {"prompt": "question", "completion": "answer"},
            "metric": "numeric",
            **{f"num_{name}": size for name, size in SIZES.items()},
        },
        "generator": {
            "kind": "server",
            "base_url": server,
            "model": str(MODEL),
            "template": f"{tmp_path}/question.jinja",
            "format": "completion",
            "rows_per_request": 1,
            "num_candidates": NUM_CANDIDATES,
            "max_tokens": 24,
            "concurrency": 2,
        },
        "gradients": {"dim": 64},
        # A model that knows no school sums cannot tell whose answers are right, and what it writes
        # is near no target: the nearest must do.
        "quality": {"prior": "none"},
        "selection": {"evoselect": {"rounding": "topk"}},
        "train": {"steps": 5},
        "evaluation": {"max_new_tokens": 4},
        "promotion": {"tolerance": 2},
    }
    file = tmp_path / "gsm8k.yaml"
    file.write_text(json.dumps(tree))
    return file


def test_two_rounds_on_gsm8k_with_rows_from_transformers_serve(config, tmp_path):
    home = tmp_path / "home"
    ended = finish("run", "--config", config, "--home", home, "--rounds", 2, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)["rounds"]
    assert [row["round"] for row in told] == [0, 1]
    for number in (0, 1):
        folder = home / "lines" / "gsm8k" / f"{number:04d}"
        facts = json.loads((folder / "candidates" / "facts.json").read_text())
        assert facts["num_requests"] >= NUM_CANDIDATES
        assert facts["num_candidates"] >= NUM_CANDIDATES * 0.8
        answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        assert not any(answer["estimated"] for answer in answers)
        picks = json.loads((folder / "selected_subset" / "picks.json").read_text())
        assert picks
    story = finish(
        *("lineage", picks[0]["sample_id"], "--config", config, "--home", home),
        *("--format", "json"),
    )
    row = json.loads(story.stdout)
    assert row["source"] == f"llm:{MODEL}"
    assert row["messages"][0]["content"].startswith("Round 1, question ")
    assert len(row["parents"]) == 4
    checked = finish("check", "--strict", "--config", config, "--home", home)
    assert checked.returncode == 0, checked.stdout

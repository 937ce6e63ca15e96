"""Law: no process is forked: Lance's threads and locks do not survive it (C8)."""

import ast
import re
from pathlib import Path

import dagster as dg
import pytest

from evoselect_pipeline.config import TrainSettings
from evoselect_pipeline.defs.resources import resources
from evoselect_pipeline.training.lora import _arguments

PACKAGE = Path(__file__).parents[2] / "evoselect_pipeline"
FORKS = re.compile(r"os\.fork|os\.forkpty|multiprocessing\.(Process|Pool)$|get_context$")


def forks(text: str) -> list[str]:
    """Calls in a source that may fork this process."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        spawns = [getattr(argument, "value", None) for argument in node.args] == ["spawn"]
        if FORKS.search(name) and not spawns:
            found.append(name)
        if name.endswith("ProcessPoolExecutor") and "mp_context" not in keywords:
            found.append(name)
    return found


def test_c8_every_pool_of_processes_spawns_them():
    sources = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert not {name: found for name, text in sources.items() if (found := forks(text))}


@pytest.mark.parametrize(
    "call", ["os.fork()", "multiprocessing.get_context('fork')", "ProcessPoolExecutor(2)"]
)
def test_c8_a_fork_is_found(call):
    assert forks(call)
    assert not forks("ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'))")


def test_c8_steps_and_batches_stay_in_the_runs_process(monkeypatch, tmp_path):
    monkeypatch.delenv("EVOSELECT_EXECUTOR", raising=False)
    assert resources().executor is dg.in_process_executor
    assert _arguments(TrainSettings(), 0, tmp_path).dataloader_num_workers == 0

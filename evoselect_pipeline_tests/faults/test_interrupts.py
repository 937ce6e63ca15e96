"""Ctrl-C and SIGTERM end `evoselect run` with one line, and the next run goes on from there."""

import json
import signal
import time
from pathlib import Path

import pytest

from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.rounds.audit import audit
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.training.lora import CHECKPOINT_FILES
from evoselect_pipeline_tests.integration.forked import Forked, run_rounds
from evoselect_pipeline_tests.integration.process import overrides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SETTINGS = overrides(train__steps=150, train__checkpoint_steps=10, quality__prior="none")
INTERRUPTED = "evoselect: interrupted; what was finished is kept"


def checkpoints(home: Path) -> set[Path]:
    """Those that are complete: this file is written last."""
    found = home.glob("lines/playground/0000/.train-*/checkpoint-*/trainer_state.json")
    return {file.parent for file in found}


def end_by(signum: int, home: Path) -> None:
    """Start a run, end it by a signal while it trains, and hold that it ends as it should."""
    child = Forked("run", "--home", home, "--rounds", 1, *SETTINGS)
    before, deadline = checkpoints(home), time.monotonic() + 300
    while checkpoints(home) <= before:
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signum)
    out, err = child.communicate(timeout=100)
    assert (child.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == INTERRUPTED


def test_a9_a_run_that_is_interrupted_says_so_in_a_line_and_goes_on_where_it_was(tmp_path):
    home = tmp_path / "home"
    folder = home / "lines/playground/0000"
    end_by(signal.SIGINT, home)
    end_by(signal.SIGTERM, home)
    assert not (folder / "lora_checkpoint").exists()
    for kept in checkpoints(home):
        assert not [name for name in CHECKPOINT_FILES if not (kept / name).is_file()]
    assert len(run_rounds(home, SETTINGS, rounds=1)["rounds"]) == 1
    assert len(json.loads((folder / "lora_checkpoint/losses.json").read_text())) == 150
    assert list(audit(Line(read_line_config(None, SETTINGS[1::2]), Home(home)))) == []

"""The same round started twice at once: one makes it, the other says who does."""

import pytest

from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.rounds.audit import audit
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.integration.forked import Forked
from evoselect_pipeline_tests.integration.process import overrides

pytestmark = pytest.mark.slow


def test_c1_of_two_runs_one_is_refused_and_the_round_is_made_once(tmp_path):
    home = tmp_path / "home"
    command = ("run", "--home", home, "--rounds", 1, *overrides())
    children = [Forked(*command) for _ in range(2)]
    said = {child.pid: child.communicate(timeout=500)[1] for child in children}
    ended = {child.returncode: child.pid for child in children}
    assert set(ended) == {0, 2}, said
    refusal = " ".join(said[ended[2]].split())
    assert f"line playground is held by evoselect run (process {ended[0]} on" in refusal
    assert "Traceback" not in refusal
    line = Line(read_line_config(None, overrides()[1::2]), Home(home))
    assert list(audit(line)) == []
    assert line.tracking.round_runs("playground") == [("playground/0000", "FINISHED")]

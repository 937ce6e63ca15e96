"""What rounds took is noted once for each piece of work, and for failed work too."""

import time

import pytest

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.rounds.costs import hours_spent, noted, seconds_spent
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline.stores.home import Home


@pytest.fixture
def line(tmp_path):
    return Line(LineConfig(), Home(tmp_path))


def work(line, seconds, stage="candidates", round_number=0):
    with noted(line, round_number, stage):
        time.sleep(seconds)
        with publish(line.stage_dir(round_number, stage), inputs={}):
            pass


def test_work_adds_up_and_finding_an_artifact_costs_nothing(line):
    work(line, 0.05)
    first = seconds_spent(line, 0)["candidates"]
    with noted(line, 0, "candidates"):
        time.sleep(0.05)  # as a stage that looks, and finds its artifact
    assert seconds_spent(line, 0) == {"candidates": first}
    work(line, 0.05)  # the same content again is work again
    assert seconds_spent(line, 0)["candidates"] >= first + 0.05


def test_a_failed_attempt_is_paid_for_and_a_refused_round_leaves_nothing(line):
    with pytest.raises(ValueError), noted(line, 3, "candidates"):
        raise ValueError
    assert not line.home.round_dir(line.name, 3).exists()
    work(line, 0.0)
    with pytest.raises(ValueError), noted(line, 0, "evaluation"):
        time.sleep(0.05)
        raise ValueError
    assert seconds_spent(line, 0)["evaluation"] >= 0.05


def test_the_hours_of_a_line_are_those_of_all_its_rounds(line):
    assert hours_spent(line) == 0.0
    for round_number in (0, 1):
        for stage in ("candidates", "evaluation"):
            work(line, 0.02, stage, round_number)
    spent = [seconds for n in (0, 1) for seconds in seconds_spent(line, n).values()]
    assert len(spent) == 4
    assert hours_spent(line) == pytest.approx(sum(spent) / 3600)
    assert seconds_spent(line, 7) == {}


def test_a_file_that_is_no_json_says_so(line):
    work(line, 0.0)
    (line.home.round_dir(line.name, 0) / "costs.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"costs\.json.*delete the file"):
        hours_spent(line)

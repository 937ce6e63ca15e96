"""Backfills of ten rounds on three lines at once, and a run that takes too long.

`EVOSELECT_LONG=1`: on a real `evoselect ui`, its webserver, its daemon, and workers of their own.
"""

import time
from itertools import pairwise

import pytest

from evoselect_pipeline.rounds.line import PROMOTED
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.tracking import Tracking
from evoselect_pipeline_tests.browser.serving import served
from evoselect_pipeline_tests.deployment.compose import wait_for
from evoselect_pipeline_tests.deployment.graphql import Webserver
from evoselect_pipeline_tests.integration.process import IS_LONG, finish, write_line

LINES = ("apples", "pears", "plums")
KEYS = [f"{number:04d}" for number in range(10)]
BACKFILL_S = 5400
SHORT_S = 12
RETRIED_WITHIN_S = 60  # the daemon looks for failed runs every few seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(BACKFILL_S + 600),
    pytest.mark.skipif(not IS_LONG, reason="takes half an hour; set EVOSELECT_LONG=1"),
]


@pytest.fixture
def lines(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOSELECT_LINES", str(tmp_path / "lines"))
    return tmp_path / "lines"


def webserver_of(ui) -> Webserver:
    return Webserver(int(ui.dagster.rstrip("/").rpartition(":")[2]))


def test_ten_rounds_on_three_lines_at_once_run_in_order_and_never_side_by_side(lines, tmp_path):
    for number, line in enumerate(LINES):
        write_line(lines, line, seed=number)
    with served(tmp_path / "home") as ui:
        web = webserver_of(ui)
        backfills = [web.launch_rounds(line, KEYS) for line in LINES]
        wait_for(
            lambda: all(web.backfill_status(b).startswith("COMPLETED") for b in backfills),
            BACKFILL_S,
            "the end of the backfills",
        )
        assert [web.backfill_status(b) for b in backfills] == ["COMPLETED_SUCCESS"] * len(LINES)
        for line in LINES:
            assert web.materializations(line, PROMOTED) == KEYS, f"{line}: each once, in order"
        # The target sets, which belong to no round, have runs of their own.
        runs = [run for run in web.runs() if "dagster/partition" in run["tags"]]
    assert len(runs) == len(LINES) * len(KEYS)
    # Each of them works a model, and the pool of the GPU has one place.
    for run, after in pairwise(runs):
        assert run["endTime"] <= after["startTime"], (run, after)
    for line in LINES:
        checked = finish("check", "--strict", "--line", line, "--home", tmp_path / "home")
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_run_that_takes_longer_than_its_line_allows_is_ended_and_said_to_have_failed(
    lines, tmp_path
):
    write_line(lines, "slow", schedule__max_hours=SHORT_S / 3600, train__steps=100_000)
    with served(tmp_path / "home") as ui:
        web = webserver_of(ui)
        web.launch_rounds("slow", ["0000"])
        wait_for(lambda: [run for run in web.runs() if run["status"] == "FAILURE"], 300, "its end")
        told = Tracking(Home(tmp_path / "home"))
        wait_for(lambda: told.status("slow", 0) == "FAILED", 120, "MLflow's word of it")
        time.sleep(RETRIED_WITHIN_S)
        [ended] = [run for run in web.runs() if "dagster/partition" in run["tags"]]
    assert ended["tags"]["dagster/max_runtime"] == str(SHORT_S)
    assert SHORT_S <= ended["endTime"] - ended["startTime"] < SHORT_S + 120
    assert told.status("slow", 0) == "FAILED"

"""What a person does with a line in the UI: leave rounds to it over night, by a backfill.

`EVOSELECT_LONG=1`; rounds in their order are part of the deployment's test as well.
"""

import time
from itertools import pairwise

import dagster as dg
import pytest

from evoselect_pipeline_tests.browser.clicks import read_report
from evoselect_pipeline_tests.browser.serving import served
from evoselect_pipeline_tests.integration.process import IS_LONG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1000),
    pytest.mark.skipif(not IS_LONG, reason="takes five minutes; set EVOSELECT_LONG=1"),
]

ROUNDS = ("0000", "0001", "0002")
BACKFILL_TIMEOUT_S = 600


def launch_backfill(page, dagster: str) -> None:
    """Materialize all rounds that exist, by clicks."""
    page.goto(f"{dagster}/locations/evoselect_pipeline/asset-groups/tiny/lineage")
    page.get_by_text("promoted_adapter").first.wait_for()
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_role("button", name="All", exact=True).click()
    page.get_by_role("button", name="Launch backfill").click()
    page.get_by_text("Created backfill").wait_for()


def wait_for_rounds(instance: dg.DagsterInstance) -> None:
    """Wait until the last round has its report."""
    report, deadline = dg.AssetKey(["tiny", "round_report"]), time.monotonic() + BACKFILL_TIMEOUT_S
    while set(ROUNDS) != instance.get_materialized_partitions(report):
        assert time.monotonic() < deadline, instance.get_runs()
        time.sleep(1)


def assert_strictly_in_order(instance: dg.DagsterInstance) -> None:
    """Each round ran once, and started after the one before it had ended."""
    records = [r for r in instance.get_run_records() if "dagster/partition" in r.dagster_run.tags]
    records.sort(key=lambda record: record.start_time or 0)
    assert tuple(r.dagster_run.tags["dagster/partition"] for r in records) == ROUNDS
    for before, after in pairwise(records):
        assert before.end_time <= after.start_time


@pytest.mark.browser
@pytest.mark.usefixtures("tiny_line")
def test_rounds_of_a_backfill_run_in_order_and_the_last_one_tells_of_them(page, tmp_path):
    dagster_home = tmp_path / "home/dagster"
    with (
        served(tmp_path / "home") as ui,
        dg.DagsterInstance.from_config(str(dagster_home)) as instance,
    ):
        instance.add_dynamic_partitions("tiny_rounds", list(ROUNDS))
        launch_backfill(page, ui.dagster)
        wait_for_rounds(instance)
        assert_strictly_in_order(instance)
        read_report(page, ui.dagster, len(ROUNDS) - 1)

"""What a person does with a line in the UI: leave rounds to it, and read in the morning."""

import re
import time
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest

from evoselect_pipeline.rounds.line import read_json
from evoselect_pipeline_tests.browser.serving import served
from evoselect_pipeline_tests.integration.process import IS_LONG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

ROUNDS = ("0000", "0001", "0002") if IS_LONG else ("0000", "0001")
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


def switch_on(page, dagster: str, name: str) -> None:
    """Turn a schedule on with its switch."""
    page.goto(f"{dagster}/automation")
    here = page.locator(f"a[href$='/schedules/{name}']")
    # The first label of a row ticks it, for acting on several at once.
    page.locator("[data-index]").filter(has=here).locator("label").nth(1).click()


def ask_about(page, dagster: str, row: str) -> None:
    """Launch `tiny_explain_row` from the Launchpad, and open what it tells."""
    page.goto(f"{dagster}/locations/evoselect_pipeline/jobs/tiny_explain_row/playground")
    editor = page.locator(".CodeMirror").first
    editor.get_by_text("tiny_story").wait_for()  # filled in with what is to be given
    editor.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(f"ops: {{tiny_story: {{config: {{row: {row}}}}}}}")
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    page.get_by_text("RUN_SUCCESS").wait_for(timeout=120_000)
    page.goto(f"{dagster}/assets/tiny/selected_subset?view=events")


@pytest.mark.browser
@pytest.mark.usefixtures("tiny_line")
def test_rounds_run_in_order_and_the_morning_after_explains_itself(page, tmp_path):
    dagster_home = tmp_path / "home/dagster"
    with (
        served(tmp_path / "home") as ui,
        dg.DagsterInstance.from_config(str(dagster_home)) as instance,
    ):
        instance.add_dynamic_partitions("tiny_rounds", list(ROUNDS))
        launch_backfill(page, ui.dagster)
        wait_for_rounds(instance)
        assert_strictly_in_order(instance)

        # The report says in words what came of the round, with its plots.
        last = f"assets/tiny/round_report?view=partitions&partition={ROUNDS[-1]}"
        page.goto(f"{ui.dagster}/{last}")
        page.get_by_text("[Show Markdown]").click()
        for head in (
            f"Round {len(ROUNDS) - 1} of line tiny",
            "Accuracy over the rounds",
            "The promotion test",
        ):
            page.get_by_role("heading", name=head).wait_for()
        assert page.locator("img[src^='data:image']").count() >= 4

        picks = ui.home / "lines/tiny/0001/selected_subset/picks.json"
        pick = read_json(Path(picks))[0]
        ask_about(page, ui.dagster, pick["sample_id"][:12])
        page.get_by_text(f"The story of row {pick['sample_id']}").wait_for()
        page.get_by_text(pick["reason"]).first.wait_for()
        page.get_by_text("adapters_that_learned_from_it").wait_for()

        switch_on(page, ui.dagster, "tiny_nightly")
        page.wait_for_timeout(2000)
        states = {found.instigator_name: found for found in instance.all_instigator_state()}
        assert states["tiny_nightly"].status.value == "RUNNING"

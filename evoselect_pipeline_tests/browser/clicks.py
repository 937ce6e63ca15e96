"""What a person does in the Dagster UI, step by step."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def read_report(page: Page, dagster: str, number: int) -> None:
    """Open a round's report: it says in words what came of the round, with its plots."""
    page.goto(f"{dagster}/assets/tiny/round_report?view=partitions&partition={number:04d}")
    page.get_by_text("[Show Markdown]").click()
    for head in (
        f"Round {number} of line tiny",
        "Accuracy over the rounds",
        "The promotion test",
    ):
        page.get_by_role("heading", name=head).wait_for()
    assert page.locator("img[src^='data:image']").count() >= 4


def switch_on(page: Page, dagster: str, name: str) -> None:
    """Turn a schedule on with its switch."""
    page.goto(f"{dagster}/automation")
    here = page.locator(f"a[href$='/schedules/{name}']")
    # The first label of a row ticks it, for acting on several at once.
    page.locator("[data-index]").filter(has=here).locator("label").nth(1).click()


def ask_about(page: Page, dagster: str, pick: dict) -> None:
    """Launch `tiny_explain_row` from the Launchpad for a chosen row, and read its story."""
    page.goto(f"{dagster}/locations/evoselect_pipeline/jobs/tiny_explain_row/playground")
    editor = page.locator(".CodeMirror").first
    editor.get_by_text("tiny_story").wait_for()  # filled in with what is to be given
    editor.click()
    page.keyboard.press("Control+A")
    row = pick["sample_id"][:12]
    page.keyboard.insert_text(f"ops: {{tiny_story: {{config: {{row: {row}}}}}}}")
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    page.get_by_text("RUN_SUCCESS").wait_for(timeout=120_000)
    page.goto(f"{dagster}/assets/tiny/selected_subset?view=events")
    page.get_by_text(f"The story of row {pick['sample_id']}").wait_for()
    page.get_by_text(pick["reason"]).first.wait_for()
    page.get_by_text("adapters_that_learned_from_it").wait_for()

"""Make the README's pictures of a home: `python docs/screenshots.py HOME [IMAGES]`.

The home needs a line `playground` with two finished rounds or more; for the pictures of a backfill
and of a row's story, one made by a backfill, and a run of `playground_explain_row`. It is not
changed: Dagster's part of it is copied, and the copy forgets the round that is open but not run
yet, because an asset is green in the graph only if all its rounds are materialized.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
from playwright.sync_api import Page, sync_playwright

from evoselect_pipeline.stores.home import VARIABLE, Home, project_file
from evoselect_pipeline.stores.tracking import Tracking

LINE = "playground"
BIN = Path(sys.executable).parent
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
# Folded side bars; MLflow's would show an empty assistant.
SETTINGS = {
    "dagster-nav-collapsed": "true",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.workflowType_v1": '"machine_learning"',
}


def main(home: Home, images: Path) -> None:
    """Serve the home and take the pictures."""
    images.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        copy = Path(stack.enter_context(TemporaryDirectory()))
        shutil.copytree(home.dagster_dir, copy, dirs_exist_ok=True)
        last = forget_open_rounds(copy)
        code = ("--workspace", str(project_file("workspace.yaml")))
        dagster = stack.enter_context(serving(["dagster-webserver", *code], home, copy))
        store = ("--backend-store-uri", home.mlflow_uri, "--workers", "1")
        mlflow = stack.enter_context(serving(["mlflow", "server", *store], home, copy))
        page = stack.enter_context(chromium())
        asset_graph(page, dagster, images / "asset_graph.png")
        table(
            page,
            f"{dagster}/assets/{LINE}/selected_subset?view=partitions&partition={last}",
            images / "selected_subset.png",
        )
        table(
            page,
            f"{dagster}/assets/{LINE}/lora_checkpoint?view=events&partition={last}",
            images / "training_rows.png",
        )
        round_report(page, home, last, images / "round_report.png")
        automation(page, dagster, images / "automation.png")
        rounds_in_order(page, dagster, images / "runs.png")
        row_story(page, dagster, images / "row_story.png")
        runs = mlflow + Tracking(home).runs_page()
        learning_curve(page, runs, images / "mlflow_line.png")
        round_in_mlflow(page, runs, last, images / "mlflow_round.png")


def forget_open_rounds(dagster_home: Path) -> str:
    """Unregister the rounds without a promoted adapter; return the key of the last one with it."""
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        done = instance.get_materialized_partitions(dg.AssetKey([LINE, "promoted_adapter"]))
        for key in set(instance.get_dynamic_partitions(f"{LINE}_rounds")) - done:
            instance.delete_dynamic_partition(f"{LINE}_rounds", key)
    return max(done)


@contextmanager
def serving(command: Sequence[str], home: Home, dagster_home: Path) -> Iterator[str]:
    """Run a server on a free port of loopback; its address, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, VARIABLE: str(home.root), "DAGSTER_HOME": str(dagster_home)}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    server = subprocess.Popen(
        [BIN / command[0], *command[1:], "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(address):
            if server.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {server.returncode}")
            time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait()


def answers(address: str) -> bool:
    """Whether a server is up."""
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@contextmanager
def chromium() -> Iterator[Page]:
    """A page of a headless Chromium."""
    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=path, args=list(QUIET))
        page = browser.new_page()
        page.set_default_timeout(180_000)
        for key, value in SETTINGS.items():
            page.add_init_script(f"localStorage.setItem({key!r}, {value!r})")
        yield page
        browser.close()


def asset_graph(page: Page, dagster: str, file: Path) -> None:
    """All assets of the line, green."""
    page.set_viewport_size({"width": 1400, "height": 800})
    page.goto(f"{dagster}/locations/evoselect_pipeline/asset-groups/{LINE}/lineage")
    page.get_by_text("promoted_adapter").first.wait_for()
    shoot(page, file)


def table(page: Page, address: str, file: Path) -> None:
    """The first table among an asset's metadata: chosen rows with reasons, rows trained on."""
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(address)
    found = page.get_by_text("Show schema").first
    found.wait_for()
    found.evaluate("element => element.scrollIntoView({block: 'start'})")
    shoot(page, file)


def round_report(page: Page, home: Home, key: str, file: Path) -> None:
    """The top of a round's page."""
    page.set_viewport_size({"width": 900, "height": 2150})
    page.goto((home.line_dir(LINE) / key / "report.html").as_uri())
    shoot(page, file)


def automation(page: Page, dagster: str, file: Path) -> None:
    """Schedule and sensors with their switches."""
    page.set_viewport_size({"width": 1400, "height": 480})
    page.goto(f"{dagster}/automation")
    page.get_by_text(f"{LINE}_nightly").first.wait_for()
    shoot(page, file)


def rounds_in_order(page: Page, dagster: str, file: Path) -> None:
    """The runs of the rounds, one after the other."""
    page.set_viewport_size({"width": 1400, "height": 700})
    page.goto(f"{dagster}/runs")
    page.get_by_text("Show runs within backfills").click()
    page.get_by_text("Success").first.wait_for()
    shoot(page, file)


def row_story(page: Page, dagster: str, file: Path) -> None:
    """What `<line>_explain_row` told last."""
    page.set_viewport_size({"width": 1500, "height": 1050})
    page.goto(f"{dagster}/assets/{LINE}/selected_subset?view=events")
    page.get_by_text("The story of row").wait_for()
    shoot(page, file)


def learning_curve(page: Page, runs: str, file: Path) -> None:
    """The line's test metrics over its rounds."""
    page.set_viewport_size({"width": 1400, "height": 680})
    page.goto(runs)
    page.get_by_role("link", name=LINE, exact=True).click()
    page.get_by_role("tab", name="Model metrics").click()
    search = page.get_by_placeholder("Search metric charts")
    search.fill("test/")
    search.blur()
    page.get_by_text("after", exact=True).first.wait_for()
    shoot(page, file)


def round_in_mlflow(page: Page, runs: str, key: str, file: Path) -> None:
    """What a round logged: its metrics, its settings and the adapter it registered."""
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(runs)
    row = page.get_by_role("gridcell").filter(has_text=LINE).first
    row.get_by_role("button").first.click()  # unfolds the line's rounds
    page.get_by_role("link", name=f"{LINE}/{key}").click()
    page.get_by_text("test/after", exact=True).first.wait_for()
    shoot(page, file)


def shoot(page: Page, file: Path) -> None:
    """Save what the page shows once its animations have ended."""
    page.wait_for_timeout(4_000)
    page.screenshot(path=file)
    print(f"{file}  {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(Home(Path(sys.argv[1])), Path((sys.argv[2:] or ["docs/images"])[0]))

"""`evoselect ui`: a round launched by clicks runs and shows in both UIs; no process stays."""

import re
import signal
import socket
import time

import dagster as dg
import pytest

from evoselect_pipeline.rounds.line import read_json
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline_tests.browser.clicks import ask_about, read_report, switch_on
from evoselect_pipeline_tests.browser.serving import processes_of, served, stop
from evoselect_pipeline_tests.integration.process import finish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1000),
]

ROUND_TIMEOUT_S = 300
PICKS = "lines/tiny/0000/selected_subset/picks.json"


def choose_round(page, key: str) -> None:
    """Open the launch dialog and tick a round; a sensor registers it soon after the start."""
    deadline = time.monotonic() + 90
    while True:
        page.get_by_role("button", name="Materialize all").click()
        page.get_by_text("Select a partition or create one").click()
        page.get_by_text("Add partition", exact=True).wait_for()
        option = page.locator("span", has_text=re.compile(f"^{key}$"))
        if option.count():
            option.click()
            page.keyboard.press("Escape")
            return
        assert time.monotonic() < deadline, f"round {key} was not registered"
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_timeout(1000)


def launch_round(page, dagster: str, key: str) -> str:
    """Materialize the whole graph for a round, by clicks; return the run's id."""
    page.goto(f"{dagster}/locations/evoselect_pipeline/asset-groups/tiny/lineage")
    choose_round(page, key)
    page.get_by_text(f"Launch runs to materialize {len(STAGES) + 1} assets").wait_for()
    # One run: were the unpartitioned target set to need a run of its own, this would be a backfill.
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_text("Launched run").wait_for()
    page.locator("a[href='/runs']").first.click()
    page.get_by_role("link", name="View", exact=True).last.click()  # the first may be a toast's
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    return re.findall(r"/runs/([0-9a-f-]{36})", page.url)[0]


def wait_for_success(page) -> None:
    """Wait on the run's page until its status is final, which must be success."""
    final = page.get_by_text(re.compile("^(Success|Failure|Canceled)$")).first
    final.wait_for(timeout=ROUND_TIMEOUT_S * 1000)
    assert final.inner_text() == "Success", page.locator("body").inner_text()


def assert_materialized(page, address: str, run_id: str, status: str | re.Pattern) -> None:
    """Open an asset's page and wait until it shows the status and the run that it came from."""
    page.goto(address)
    page.get_by_text(status).first.wait_for()
    page.get_by_role("link", name=run_id[:8]).first.wait_for()


def find_metric_in_mlflow(page, runs: str, round_name: str, metric: str) -> None:
    """From the list of runs to the round's page, by clicks."""
    page.goto(runs)
    line = round_name.partition("/")[0]
    cell = page.get_by_role("gridcell").filter(has_text=line).first
    cell.get_by_role("button").first.click()  # unfolds its rounds
    page.get_by_role("link", name=round_name).click()
    page.get_by_text(metric, exact=True).first.wait_for()


def assert_switched_on(page, instance: dg.DagsterInstance, name: str) -> None:
    """Wait until the instance holds that a schedule runs."""
    deadline = time.monotonic() + 60
    while True:
        states = {found.instigator_name: found for found in instance.all_instigator_state()}
        if name in states and states[name].status.value == "RUNNING":
            return
        assert time.monotonic() < deadline, states
        page.wait_for_timeout(200)


@pytest.mark.browser
@pytest.mark.usefixtures("tiny_line")
def test_a_round_launched_by_clicks_shows_in_both_uis_and_explains_itself(page, tmp_path):
    with served(tmp_path / "home") as ui:
        run_id = launch_round(page, ui.dagster, "0000")
        wait_for_success(page)

        # A run's process is a child of the process that launched it, and writes to its log.
        log = (ui.home / "logs/daemon.log").read_text(encoding="utf-8")
        assert f"__ASSET_JOB - {run_id} - tiny__evaluation" in log
        assets = f"{ui.dagster}/assets/tiny"
        target_set = f"{assets}/target_set?view=events"
        assert_materialized(page, target_set, run_id, "Materialized in run")
        for stage in STAGES:
            of_round = f"{assets}/{stage.name}?view=partitions&partition=0000"
            assert_materialized(page, of_round, run_id, re.compile("^Materialized$"))

        find_metric_in_mlflow(page, ui.mlflow, "tiny/0000", "test/after")

        read_report(page, ui.dagster, 0)
        ask_about(page, ui.dagster, read_json(ui.home / PICKS)[0])
        switch_on(page, ui.dagster, "tiny_nightly")
        with dg.DagsterInstance.from_config(str(ui.home / "dagster")) as instance:
            assert_switched_on(page, instance, "tiny_nightly")
        stop(ui, signal.SIGTERM)


def test_ctrl_c_ends_every_process_even_of_a_script_that_ignores_it(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what `evoselect ui &` inherits
    try:
        with served(tmp_path / "home") as ui:
            signal.signal(signal.SIGINT, before)
            assert len(processes_of(ui.home)) >= 3
            stop(ui, signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_taken_port_is_refused_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = finish("ui", "--home", tmp_path / "home", "--mlflow-port", port)
    assert ended.returncode == 2
    assert (
        ended.stderr == f"evoselect: --mlflow-port {port} is in use on 127.0.0.1; choose another\n"
    )
    assert not (tmp_path / "home").exists()


def test_the_servers_cannot_share_a_port(tmp_path):
    ended = finish("ui", "--home", tmp_path / "home", "--port", 5000, "--mlflow-port", 5000)
    assert ended.returncode == 2
    assert "--port and --mlflow-port are both 5000" in ended.stderr

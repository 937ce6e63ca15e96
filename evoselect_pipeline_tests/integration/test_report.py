"""The report of a real round: on disk, in MLflow and in Dagster; the same again, never twice."""

import json
import shutil

import dagster as dg
import pytest

from evoselect_pipeline.commands.context import open_home, read_line_config
from evoselect_pipeline.rounds.costs import hours_spent, seconds_spent
from evoselect_pipeline.rounds.line import Line, read_facts
from evoselect_pipeline.rounds.report import html_file, page_of, rejected_rows, round_report
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline_tests.integration.forked import run_rounds
from evoselect_pipeline_tests.integration.in_dagster import materialize
from evoselect_pipeline_tests.integration.process import overrides

pytestmark = pytest.mark.slow

MOST_BYTES = 400_000  # what Dagster's UI still opens well
SETTINGS = overrides(promotion__tolerance=0.02)
CONFIG = read_line_config(None, SETTINGS[1::2])


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    home = tmp_path_factory.mktemp("report") / "home"
    run_rounds(home, SETTINGS)
    return Line(CONFIG, open_home(home))


@pytest.fixture
def own(line, tmp_path):
    """A copy of the line for a test that changes it."""
    shutil.copytree(line.home.root, tmp_path / "home")
    return Line(CONFIG, open_home(tmp_path / "home"))


def again(line, stages, key="0001"):
    """Materialize stages of a round; metadata by asset."""
    with dg.DagsterInstance.from_config(str(line.home.dagster_dir)) as instance:
        result = materialize(instance, line.home, CONFIG, key, stages)
    assert result.success
    events = result.get_asset_materialization_events()
    return {
        event.asset_key.path[-1]: event.step_materialization_data.materialization.metadata
        for event in events
    }


def logged(line):
    """Everything MLflow holds of the line's rounds, but the machine's load."""
    client, found = line.tracking._client, {}
    for run in client.search_runs([line.tracking._experiment_id]):
        names = [name for name in run.data.metrics if not name.startswith("system/")]
        found[run.info.run_name] = (
            run.info.status,
            run.data.params,
            {name: client.get_metric_history(run.info.run_id, name) for name in names},
            [(i.dataset.name, i.dataset.digest, i.tags) for i in run.inputs.dataset_inputs],
            sorted(file.path for file in client.list_artifacts(run.info.run_id)),
        )
    return repr(found)


def test_every_round_has_its_page_and_the_headline_says_what_was_decided(line):
    for number in (0, 1):
        text = page_of(line, number)
        assert len(text) < MOST_BYTES
        promoted = read_facts(line.artifact(number, "promoted_adapter"))["promoted"]
        assert ("It was promoted" in text) == promoted
        assert ("It was not promoted" in text) != promoted
        assert text.count("](data:image/") == 6
        html = html_file(line, number).read_text()
        assert html.count('src="data:image/') == html.count("<img") == 6


def test_every_stages_seconds_are_on_the_page_and_add_up(line):
    for number in (0, 1):
        spent = seconds_spent(line, number)
        assert set(spent) == {stage.name for stage in STAGES}
        html = html_file(line, number).read_text()
        assert all(f"<code>{name}</code>" in html for name in set(spent) - {"round_report"})
    total = sum(sum(seconds_spent(line, number).values()) for number in (0, 1))
    assert hours_spent(line) == pytest.approx(total / 3600)


def test_rejected_rows_are_of_every_reason_while_there_is_room(line):
    counts = read_facts(line.artifact(0, "selected_subset"))["rejected"]
    for most in (len(counts), 50, 10_000):
        rows = rejected_rows(line, 0, most)
        assert len(rows) == min(most, sum(counts.values()))
        assert {row["stage"] for row in rows} == set(counts)
        assert len({row["sample_id"] for row in rows}) == len(rows)


def test_a_report_made_anew_is_the_same_and_so_it_is_after_other_seconds(own):
    before = own.artifact(1, "round_report").digest
    file = own.home.round_dir(own.name, 1) / "costs.json"
    file.write_text(json.dumps({"candidates": 7200.0}))
    found = round_report(own, 1)
    assert found.digest == before
    assert "2 h 0 min" in html_file(own, 1).read_text()
    shutil.rmtree(found.path)
    assert round_report(own, 1).digest == before


def test_mlflow_has_the_page_its_figures_and_the_digests_of_the_rows(line):
    client = line.tracking._client
    run = client.get_run(line.tracking.round_run(line.name, 1))
    line.tracking.finish_round(line.name, 1)
    assert {i.tags[0].value for i in run.inputs.dataset_inputs} == {
        "targets",
        "validation",
        "test",
        "training",
    }
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "figures", "params.json"} <= files
    figures = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    assert {"figures/map.png", "figures/accuracy.svg"} <= figures
    assert run.data.tags["mlflow.note.content"].startswith("The round ")
    assert run.data.metrics["seconds/lora_checkpoint"] > 0


def test_what_is_materialized_again_is_told_once_and_costs_nothing(own):
    before, spent = logged(own), seconds_spent(own, 1)
    for _ in range(2):
        again(own, ["evaluation", "selected_subset", "round_report"])
    assert logged(own) == before
    assert seconds_spent(own, 1) == spent


def test_a_round_that_was_killed_before_its_report_is_ended_by_materializing_it(own):
    shutil.rmtree(own.stage_dir(1, "round_report"))
    own.tracking.round_run(own.name, 1)  # as a killed round leaves it: open
    again(own, ["promoted_adapter"])
    assert own.tracking.status(own.name, 1) == "RUNNING"
    again(own, ["round_report"])
    assert own.tracking.status(own.name, 1) == "FINISHED"


def test_dagster_shows_the_page_the_rows_and_where_they_came_from(own):
    shown = again(own, ["selected_subset", "lora_checkpoint", "promoted_adapter", "round_report"])
    report = shown["round_report"]
    assert report["report"].value == page_of(own, 1)
    assert report["report_html"].value == str(html_file(own, 1))
    assert "/runs/" in report["mlflow_run"].value
    assert report["from_promoted_adapter"].asset_key.path == ["playground", "promoted_adapter"]

    subset = shown["selected_subset"]
    chosen = [record.data["sample_id"] for record in subset["rows"].records]
    left = {record.data["sample_id"] for record in subset["rejected_rows"].records}
    assert subset["dagster/partition_row_count"].value == len(chosen) == 40
    assert left.isdisjoint(chosen)
    trained = [r.data["sample_id"] for r in shown["lora_checkpoint"]["training_rows"].records]
    assert trained == chosen

    promotion = shown["promoted_adapter"]
    assert len(promotion["promotion_test"].value) < 1_300
    assert "promoted: on 10 validation rows" in promotion["verdict"].value

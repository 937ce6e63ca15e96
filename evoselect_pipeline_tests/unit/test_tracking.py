import shutil
import time
from pathlib import Path

import pytest

from evoselect_pipeline.errors import ConfigError, NumericsError
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.machine_load import watched
from evoselect_pipeline.stores.tracking import LINE_TAG, ROUND_TAG, UI_VARIABLE, Tracking

SHA = "f" * 64


@pytest.fixture(scope="module")
def fresh_home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("fresh")).init()


@pytest.fixture
def tracking(fresh_home, tmp_path):
    shutil.copytree(fresh_home.root, tmp_path / "home")
    return Tracking(Home(tmp_path / "home"))


def runs(tracking):
    return tracking._client.search_runs([tracking._experiment_id])


def pictures(tracking):
    folder = tracking.home.root / "pictures"
    folder.mkdir(exist_ok=True)
    (folder / "curve.svg").write_text("<svg/>")
    return folder


def log(tracking, round_number, **changes):
    return tracking.log_round(
        "sums",
        round_number,
        **{
            "params": {"rank": 8, "rate": 4e-3},
            "metrics": {"after": 0.5 + round_number / 10, "before": 0.3},
            "texts": {"report.md": "# Round"},
            "folders": {"figures": pictures(tracking)},
            "tags": {"evoselect.promoted": True},
            **changes,
        },
    )


def test_a_round_is_a_child_of_its_line_and_never_doubled(tracking):
    children = [tracking.round_run("sums", n) for n in (0, 1, 0)]
    assert children[0] == children[2] != children[1]
    # Another process looks with eyes of its own.
    assert Tracking(tracking.home).round_run("sums", 1) == children[1]
    parent = tracking.line_run("sums")
    found = {run.info.run_id: run for run in runs(tracking)}
    assert set(found) == {parent, *children}
    for child in children:
        assert found[child].data.tags["mlflow.parentRunId"] == parent


def test_lines_do_not_share_runs(tracking):
    assert tracking.round_run("sums", 0) != tracking.round_run("words", 0)
    assert len(runs(tracking)) == 4


def test_a_finished_round_is_reopened_and_closed_again(tracking):
    def status():
        return tracking._client.get_run(run_id).info.status

    run_id = tracking.round_run("sums", 0)
    tracking.finish_round("sums", 0, "FAILED")
    assert status() == "FAILED"
    assert tracking.round_run("sums", 0) == run_id
    assert status() == "RUNNING"
    tracking.finish_round("sums", 0)
    assert {run.info.status for run in runs(tracking)} == {"FINISHED"}


def test_logging_a_round_twice_doubles_nothing(tracking):
    for round_number in (0, 1, 0, 1):
        run_id = log(tracking, round_number)
    client = tracking._client
    curve = client.get_metric_history(tracking.line_run("sums"), "after")
    assert [(point.step, point.value) for point in curve] == [(0, 0.5), (1, 0.6)]
    assert [p.step for p in client.get_metric_history(run_id, "after")] == [1]
    run = client.get_run(run_id)
    assert run.data.params == {"rank": "8", "rate": "0.004"}
    assert run.data.tags["evoselect.promoted"] == "True"
    assert [f.path for f in client.list_artifacts(run_id)] == [
        "figures",
        "params.json",
        "report.md",
    ]


def test_another_value_at_the_same_step_is_added_and_shown_last(tracking):
    for value in (0.5, 0.7, 0.7):
        run_id = log(tracking, 0, metrics={"after": value})
    history = tracking._client.get_metric_history(run_id, "after")
    assert [point.value for point in history] == [0.5, 0.7]


def test_a_changed_param_is_noted_and_does_not_stop_the_round(tracking):
    log(tracking, 0)
    run_id = log(tracking, 0, params={"rank": 16, "rate": 4e-3, "new": None})
    run = tracking._client.get_run(run_id)
    assert run.data.params == {"rank": "8", "rate": "0.004", "new": "None"}
    assert run.data.tags["changed_param.rank"] == "16"
    path = tracking._client.download_artifacts(run_id, "params.json")
    assert '"rank": 16' in Path(path).read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_not_a_number_is_refused_before_anything_is_logged(tracking, value):
    with pytest.raises(NumericsError, match="after"):
        log(tracking, 0, metrics={"before": 0.3, "after": value})
    with pytest.raises(NumericsError):
        tracking.register_adapter("sums", 0, Path("/adapter"), SHA, {"after": value})
    assert runs(tracking) == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "params.json", "a/../../x"])
def test_artifact_names_that_leave_the_run_are_refused(tracking, name):
    with pytest.raises(ConfigError):
        log(tracking, 0, texts={name: "text"})
    with pytest.raises(ConfigError):
        tracking.round_run("../x", 0)


def test_the_selected_set_is_the_rounds_training_data_once(tracking):
    ids = ["a" * 32, "b" * 32]
    digests = {
        tracking.log_rows("sums", 0, "selected", order, Path("/selected"), "training")
        for order in (ids, ids[::-1])
    }
    assert len(digests) == 1
    tracking.log_rows("sums", 0, "targets", ids[:1], Path("/targets"), "targets")
    run = tracking._client.get_run(tracking.round_run("sums", 0))
    logged = {
        i.dataset.name: (i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs
    }
    assert len(run.inputs.dataset_inputs) == 2
    assert logged["selected"] == (digests.pop(), "training")
    assert logged["targets"][1] == "targets"


def test_the_address_of_a_runs_page_is_told_where_it_is_known(tracking, monkeypatch):
    run_id = tracking.round_run("sums", 0)
    path = tracking.run_page("sums", 0)
    assert path.startswith("/#/experiments/")
    assert path.endswith(f"/runs/{run_id}")
    monkeypatch.setenv(UI_VARIABLE, "http://127.0.0.1:5000/")
    assert tracking.run_page("sums", 0) == f"http://127.0.0.1:5000{path}"


def system_metrics(tracking, run_id):
    client = tracking._client
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith("system/")]
    return {n: [point.step for point in client.get_metric_history(run_id, n)] for n in names}


def test_the_machine_is_watched_while_a_round_works_and_steps_go_on(tracking, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    run_id = tracking.round_run("sums", 0)
    for _ in range(2):
        with watched(tracking, "sums", 0):
            time.sleep(1.0)
    steps = system_metrics(tracking, run_id)["system/cpu_utilization_percentage"]
    assert len(steps) >= 4
    assert steps == sorted(set(steps))


def test_watching_makes_no_run_and_leaves_a_closed_one_closed(tracking):
    with watched(tracking, "sums", 0):
        pass
    assert runs(tracking) == []
    tracking.round_run("sums", 0)
    tracking.finish_round("sums", 0)
    with pytest.raises(ValueError), watched(tracking, "sums", 0):
        raise ValueError
    assert {run.info.status for run in runs(tracking)} == {"FINISHED"}


def test_the_champion_is_the_last_promoted_adapter(tracking):
    assert tracking.champion("sums") is None
    tracking.register_adapter("sums", 0, Path("/r0"), SHA, {"after": 0.5}, promoted=False)
    assert tracking.champion("sums") is None
    tracking.register_adapter("sums", 1, Path("/r1"), SHA, {"after": 0.6})
    tracking.register_adapter("sums", 2, Path("/r2"), SHA, {"after": 0.4}, promoted=False)
    champion = tracking.champion("sums")
    assert champion == ("sums", 1, "2", "/r1", SHA)
    assert tracking.champion("words") is None


def test_registering_an_adapter_again_gives_the_same_version(tracking):
    first = tracking.register_adapter("sums", 0, Path("/r0"), SHA, {"after": 0.5})
    assert tracking.register_adapter("sums", 0, Path("/r0"), SHA, {"after": 0.5}) == first
    other = tracking.register_adapter("sums", 0, Path("/r0"), "e" * 64, {"after": 0.5})
    assert other != first
    (version, *_) = tracking._client.search_model_versions(
        "name = 'sums'", order_by=["version_number ASC"]
    )
    assert version.tags[ROUND_TAG] == "sums/0000"
    assert version.tags[LINE_TAG] == "sums"
    assert version.run_id == tracking.round_run("sums", 0)

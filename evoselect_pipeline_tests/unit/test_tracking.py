import shutil
from pathlib import Path

import matplotlib
import pytest

from evoselect_pipeline.errors import ConfigError, NumericsError
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.tracking import LINE_TAG, ROUND_TAG, Tracking

matplotlib.use("agg")

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


def log(tracking, round_number, **changes):
    from matplotlib.figure import Figure

    return tracking.log_round(
        "sums",
        round_number,
        **{
            "params": {"rank": 8, "rate": 4e-3},
            "metrics": {"after": 0.5 + round_number / 10, "before": 0.3},
            "texts": {"report.md": "# Round"},
            "figures": {"figures/curve.png": Figure()},
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
        tracking.log_selection("sums", 0, order, Path("/selected")) for order in (ids, ids[::-1])
    }
    assert len(digests) == 1
    run = tracking._client.get_run(tracking.round_run("sums", 0))
    (logged,) = run.inputs.dataset_inputs
    assert logged.dataset.digest in digests
    assert logged.tags[0].value == "training"


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

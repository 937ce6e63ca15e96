"""An earlier adapter can be made champion again, and everything that names the champion follows."""

import json
import os
import shutil
import time
from pathlib import Path

import dagster as dg
import pytest

import evoselect_pipeline
from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.components.feedback import entering_event
from evoselect_pipeline.errors import ArtifactError, DataError, RoundOrderError
from evoselect_pipeline.rounds.champion import appoint, champion
from evoselect_pipeline.rounds.data import incoming_adapter
from evoselect_pipeline.rounds.line import Line, entered, entering, stale_rounds
from evoselect_pipeline.rounds.selection import projected_gradients
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.integration.forked import Forked, run_rounds
from evoselect_pipeline_tests.integration.in_dagster import at_home
from evoselect_pipeline_tests.integration.process import (
    TINY,
    manifests,
    overrides,
)

SETTINGS = [f"{key}={value}" for key, value in TINY.items()]


@pytest.fixture(scope="module")
def evolved(tmp_path_factory) -> Path:
    """A home with two tiny rounds, both promoted."""
    home = tmp_path_factory.mktemp("evolved") / "home"
    run_rounds(home, overrides(), rounds=2)
    return home


@pytest.fixture
def line(evolved, tmp_path) -> Line:
    """A copy of it to change; its adapters stand where the original's do."""
    # MLflow's database names its artifact folder absolutely, and nothing here writes to that.
    shutil.copytree(evolved, tmp_path / "home")
    return Line(read_line_config(None, SETTINGS), Home(tmp_path / "home"))


def served(line: Line) -> tuple[int, str] | None:
    """Round and digest that MLflow's alias names."""
    found = line.tracking.champion(line.name)
    return found and (found.round, found.sha256)


@pytest.mark.slow
def test_an_appointed_adapter_is_champion_everywhere_and_enters_the_next_round(line, evoselect):
    first = line.artifact(0, "lora_checkpoint")
    assert champion(line).trained_in == 1
    given = ("--home", line.home.root)
    ended = evoselect("promote", "--round", "0", "--why", "round 1 was rude", *given)
    assert ended.code == 0, ended.err
    assert "round 0002 starts from it" in " ".join(ended.err.split())

    assert entering(line, 2).digest == first.digest
    assert entering(line, 1).digest == first.digest  # what round 1 was made from stays as it was
    assert served(line) == (0, first.digest)
    status = json.loads(evoselect("status", "--format", "json", *given).out)
    assert status["champion"]["round"] == 0
    with dg.DagsterInstance.from_config(str(line.home.dagster_dir)) as instance:
        key = dg.AssetKey(["playground", "incoming_adapter"])
        [newest] = instance.fetch_materializations(
            dg.AssetRecordsFilter(key, asset_partitions=["0002"]), limit=1
        ).records
        assert newest.asset_materialization.tags["dagster/data_version"] == first.digest
        promoted = dg.AssetKey(["playground", "promoted_adapter"])
        [observed] = instance.fetch_observations(promoted, limit=1).records
        assert "round 1 was rude" in observed.asset_observation.description


@pytest.mark.slow
def test_status_says_what_to_do_where_the_champion_was_trained_again(line, evoselect):
    with publish(line.stage_dir(1, "lora_checkpoint"), inputs={"trained": "again"}) as folder:
        (folder / "facts.json").write_text("{}")
    given = ("--home", line.home.root)
    told = json.loads(evoselect("status", "--format", "json", *given).out)
    assert [facts["round"] for facts in told["rounds"]] == [0, 1]
    assert "Materialize round 0001 again first" in told["champion"]["problem"]
    shown = " ".join(evoselect("status", *given).out.split())
    assert "No champion: round 2 of line 'playground' cannot start: round 1 was trained again" in (
        shown
    )


@pytest.mark.slow
def test_appointments_add_up_and_the_base_model_can_be_one(line):
    appoint(line, 0, "first")
    appoint(line, None, "second")
    assert entering(line, 2).path is None
    assert served(line) is None
    appoint(line, 1, "third")
    assert champion(line).trained_in == 1
    kept = line.artifact(1, "appointed_adapter").path / "facts.json"
    assert [a["why"] for a in json.loads(kept.read_text())["earlier_appointments"]] == [
        *("first", "second")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "said"),
    [(1, "is the champion already"), (2, "is not finished: give one of 0 to 1, or `base`")],
)
def test_what_cannot_be_appointed_is_refused_and_changes_nothing(line, wanted, said):
    with pytest.raises(DataError, match=said):
        appoint(line, wanted, "")
    assert not line.stage_dir(1, "appointed_adapter").exists()


@pytest.mark.slow
def test_an_adapter_leads_to_every_row_behind_it_and_a_row_to_every_adapter(line, evoselect):
    given = ("--format", "json", "--home", line.home.root)
    rows = json.loads(evoselect("lineage", "--adapter", "1", *given).out)
    picks = {
        number: {row["sample_id"] for row in rows if row["round"] == number} for number in (0, 1)
    }
    for number, ids in picks.items():
        folder = line.artifact(number, "selected_subset").path
        assert ids == {p["sample_id"] for p in json.loads((folder / "picks.json").read_text())}
    assert all(row["source"] and row["prompt_id"] for row in rows)

    told = json.loads(evoselect("lineage", min(picks[0]), *given).out)
    assert [(a["round"], a["learned_in"]) for a in told["adapters"]] == [
        (0, ["0000"]),
        (1, ["0000"]),
    ]
    told = json.loads(evoselect("lineage", min(picks[1]), *given).out)
    assert [a["round"] for a in told["adapters"]] == [1]


@pytest.mark.slow
def test_a_whole_home_passes_the_strict_check_and_each_kind_of_damage_is_named(line, evoselect):
    given = ("check", "--strict", "--format", "json", "--home", line.home.root)
    given += tuple(overrides())
    ended = evoselect(*given)
    assert (ended.code, json.loads(ended.out)["problems"]) == (0, [])

    picks = line.stage_dir(0, "selected_subset") / "picks.json"
    whole = picks.read_bytes()
    picks.write_bytes(whole.replace(b"0", b"1", 1))
    line.tracking.finish_round("playground", 1, "FAILED")
    line.tracking.retire_champion("playground")
    ended = evoselect(*given)
    assert ended.code == 1
    found = {(p["where"], p["what"][:40]) for p in json.loads(ended.out)["problems"]}
    where = {place for place, _ in found}
    assert {"0000/selected_subset", "round 0000", "round 0001", "MLflow"} <= where
    assert any("alias `champion` names nothing" in what for _, what in found)


@pytest.mark.slow
def test_repair_tells_again_what_was_told_and_makes_nothing_that_was_chosen(line, evoselect):
    given = ("--format", "json", "--home", line.home.root, *overrides())
    before = manifests(line.home.root)
    line.tracking.finish_round("playground", 0, "FAILED")
    line.tracking.retire_champion("playground")
    shutil.rmtree(line.stage_dir(1, "round_report"))
    left = line.stage_dir(0, f".evaluation.tmp-{'0' * 32}")
    left.mkdir()
    os.utime(left, (0, 0))
    ended = evoselect("check", "--strict", *given)
    problems = json.loads(ended.out)["problems"]
    assert ended.code == 1
    assert {(p["where"], p["can_repair"]) for p in problems} == {
        ("round 0000", True),
        ("round 0001", True),
        ("playground/0000", True),
        ("MLflow", True),
    }
    ended = evoselect("check", "--repair", *given)
    told = json.loads(ended.out)
    assert (ended.code, told["problems"]) == (0, [])
    assert [p["what"] for p in told["mended"]] == [p["what"] for p in problems]
    assert not left.exists()
    assert served(line) == (1, line.artifact(1, "lora_checkpoint").digest)
    after = manifests(line.home.root)
    made = {name for name in after if after[name] != before.get(name)}
    assert made == {"playground/0001/round_report"}


@pytest.mark.slow
def test_repair_leaves_what_was_chosen_or_trained_to_a_person(line, evoselect):
    given = ("check", "--repair", "--format", "json", "--home", line.home.root, *overrides())
    picks = line.stage_dir(0, "selected_subset") / "picks.json"
    damaged = picks.read_bytes().replace(b"0", b"1", 1)
    picks.write_bytes(damaged)
    ended = evoselect(*given)
    told = json.loads(ended.out)
    assert (ended.code, told["mended"]) == (1, [])
    assert "0000/selected_subset" in {p["where"] for p in told["problems"]}
    assert picks.read_bytes() == damaged


@pytest.mark.slow
def test_repair_waits_for_nobody_who_works_on_the_line(line, evoselect):
    holder = Forked("run", "--home", line.home.root, *overrides())
    owner = line.home.locks_dir / "line-playground.owner.json"
    while not owner.exists():
        assert holder.poll() is None, holder.communicate()[1]
        time.sleep(0.05)
    ended = evoselect("check", "--repair", "--home", line.home.root, *overrides())
    holder.kill()
    holder.communicate()
    assert ended.code == 2
    assert "is held by evoselect run" in ended.err


def launch(line: Line, job: str, op: str, **config) -> dg.ExecuteInProcessResult:
    """Launch one of the line's jobs, as a person does at the Launchpad."""
    definitions = at_home(line.config, line.home.root)
    with dg.DagsterInstance.from_config(str(line.home.dagster_dir)) as instance:
        return definitions.resolve_job_def(f"playground_{job}").execute_in_process(
            run_config={
                "ops": {f"playground_{op}": {"config": config}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=instance,
            raise_on_error=False,
        )


@pytest.mark.slow
def test_the_launchpad_tells_why_a_row_was_chosen_and_why_another_was_not(line):
    frame = line.store.read_decisions("playground", 0)
    for chosen in (True, False):
        row = frame.filter(frame["selected"] == chosen).row(0, named=True)
        result = launch(line, "explain_row", "story", row=row["sample_id"][:12])
        [event] = [e for e in result.all_events if e.is_asset_observation]
        told = event.asset_observation_data.asset_observation.metadata
        decisions = [record.data for record in told["decisions"].value.records]
        assert decisions[0]["reason"] == row["reason"]
        assert decisions[0]["stage"] == row["stage"]
        assert ("adapters_that_learned_from_it" in told) == chosen
    refused = launch(line, "explain_row", "story", row="ffffffffffff")
    [failure] = refused.get_step_failure_events()
    assert "no stored sample starts with it" in (
        failure.step_failure_data.user_failure_data.description
    )


@pytest.mark.slow
def test_the_launchpad_appoints_a_champion_as_the_command_does(line):
    result = launch(line, "promote", "appointment", round="0", why="a hunch")
    assert result.success
    assert champion(line).trained_in == 0
    [opened] = result.get_asset_materialization_events()
    assert opened.partition == "0002"
    # Asked again, as after a kill between the decision and its telling, it tells once more.
    line.tracking.retire_champion("playground")
    assert launch(line, "promote", "appointment", round="0").success
    assert served(line) == (0, line.artifact(0, "lora_checkpoint").digest)


@pytest.mark.slow
def test_an_old_round_that_cannot_be_read_makes_no_other_one_stale(line):
    assert stale_rounds(line) == []
    shutil.rmtree(line.stage_dir(0, "lora_checkpoint"))
    assert stale_rounds(line) == []
    told = entering_event(line, 1, "Round 0000 was made again.")
    assert told.tags == {"dagster/data_version": "unsettled"}


@pytest.mark.slow
def test_a_round_begun_with_another_adapter_refuses_to_go_on(line):
    """As when a person appoints a champion between two stages of a round."""
    incoming_adapter(line, 2)
    appoint(line, 0, "in between")
    with pytest.raises(RoundOrderError, match=r"was begun with adapter .* enters it now"):
        projected_gradients(line, 2)
    incoming_adapter(line, 2)
    assert entered(line, 2).trained_in == 0


def with_model(line: Line, folder: Path) -> Line:
    """The same line, its student read from another folder."""
    return Line(read_line_config(None, [*SETTINGS, f"model.name={folder}"]), line.home)


def own_model(folder: Path) -> Path:
    """A copy of the shipped model."""
    shipped = Path(evoselect_pipeline.__file__).parent / "playground/base_model"
    return Path(shutil.copytree(shipped, folder))


@pytest.mark.slow
def test_an_adapter_enters_no_round_on_a_base_model_with_other_weights(line, tmp_path):
    model = own_model(tmp_path / "model")
    incoming_adapter(with_model(line, model), 2)  # the place is no part of what a model is
    shutil.rmtree(line.stage_dir(2, "incoming_adapter"))
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / weights.name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"has the fingerprint .* was trained on"):
        incoming_adapter(with_model(line, other), 2)
    assert not line.has(2, "incoming_adapter")


@pytest.mark.slow
def test_an_adapter_enters_no_round_under_another_chat_template(line, tmp_path, evoselect):
    model = own_model(tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{ bos_token }}", "{{ bos_token }}Be rude. "))
    with pytest.raises(ArtifactError, match="another chat template"):
        incoming_adapter(with_model(line, model), 2)
    given = ("--home", line.home.root, *overrides(model__name=model))
    ended = evoselect("run", *given)
    assert ended.code == 2
    assert "another chat template" in " ".join(ended.err.split())
    assert not line.home.round_dir("playground", 2).exists()

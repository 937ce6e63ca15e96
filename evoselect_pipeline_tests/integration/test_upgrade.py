"""A home that an earlier version made opens, is mended, and its line goes on."""

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from evoselect_pipeline.stores.home import LAYOUT_VERSION
from evoselect_pipeline_tests.integration.process import manifests, overrides

HOMES = Path(__file__).parents[1] / "homes"
MADE_AT = "/tmp/oldhome"


@pytest.fixture
def old_home(tmp_path) -> Path:
    """The home of the first layout, as if it had been made here."""
    with tarfile.open(HOMES / "layout_1.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    home = tmp_path / "home"
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
        ):
            moved = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(moved, (MADE_AT, str(home)))
    return home


@pytest.mark.slow
def test_a_home_of_an_earlier_version_is_mended_and_goes_on(old_home, evoselect):
    given = ("--home", old_home, "--format", "json", *overrides())
    before = manifests(old_home)
    told = json.loads(evoselect("check", "--strict", *given).out)["problems"]
    # That version made no reports; nothing else may be missed.
    assert [(p["where"], p["what"], p["can_repair"]) for p in told] == [
        ("round 0000", "round_report is missing", True)
    ]
    ended = evoselect("check", "--repair", *given)
    assert (ended.code, json.loads(ended.out)["problems"]) == (0, [])

    ended = evoselect("run", "--rounds", "1", *given)
    assert ended.code == 0, ended.err
    assert [r["round"] for r in json.loads(ended.out)["rounds"]] == [0, 1]
    ended = evoselect("check", "--strict", *given)
    assert (ended.code, json.loads(ended.out)["problems"]) == (0, [])
    after = manifests(old_home)
    kept = {name for name in before if name.startswith("playground/0000/")}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.slow
def test_every_row_of_an_earlier_versions_round_has_its_story(old_home, evoselect):
    picks = old_home / "lines/playground/0000/selected_subset/picks.json"
    row = json.loads(picks.read_text())[0]["sample_id"]
    ended = evoselect("lineage", row, "--home", old_home, "--format", "json")
    assert ended.code == 0, ended.err
    story = json.loads(ended.out)
    assert story["decisions"][0]["selected"]
    assert [adapter["round"] for adapter in story["adapters"]] == [0]


def test_a_home_of_a_newer_version_is_left_alone(old_home, evoselect):
    (old_home / "layout_version").write_text(f"{LAYOUT_VERSION + 1}\n")
    ended = evoselect("run", "--home", old_home, *overrides())
    assert ended.code == 2
    assert "upgrade evoselect-pipeline" in " ".join(ended.err.split())
    assert not (old_home / "lines/playground/0001").exists()

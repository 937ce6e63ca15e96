"""Rows that are gone from a table come back by making the stage again, and nothing else changes."""

import shutil

import pytest

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.rounds.data import target_set
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline_tests.integration.in_dagster import tiny

MADE = {stage.name: stage for stage in STAGES[:6]}  # down to the rows that are chosen
WRITES = {
    "samples": "candidates",
    "gradients_64": "projected_gradients",
    "coordinates_8": "projected_gradients",
    "scores": "alignment_scores",
    "decisions": "selected_subset",
}


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Line:
    found = Line(tiny(), Home(tmp_path_factory.mktemp("lost") / "home"))
    target_set(found)
    for stage in MADE.values():
        stage.run(found, 0)
    return found


def rows_of(line: Line, table: str) -> list[dict]:
    found = line.store.tables.read(table, "true").to_pylist()
    return sorted(found, key=lambda row: row["sample_id"])


@pytest.mark.parametrize("table", WRITES)
def test_rows_that_are_lost_are_made_again_with_their_stage_and_nothing_else_changes(line, table):
    before = rows_of(line, table)
    digests = {name: line.artifact(0, name).digest for name in MADE}
    shutil.rmtree(line.store.directory / f"{table}.lance")
    shutil.rmtree(line.stage_dir(0, WRITES[table]))
    MADE[WRITES[table]].run(line, 0)
    assert rows_of(line, table) == before != []
    assert {name: line.artifact(0, name).digest for name in MADE} == digests


def test_a_reader_of_lost_rows_says_what_brings_them_back(line):
    table = line.store.directory / "gradients_64.lance"
    shutil.move(table, table.with_suffix(".aside"))
    try:
        with pytest.raises(ArtifactError, match=r"200 gradients .* not stored.* remove the folder"):
            MADE["alignment_scores"].run(line, 0)
    finally:
        shutil.move(table.with_suffix(".aside"), table)

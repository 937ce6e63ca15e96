"""Flipped bits in what a line has stored: found before they are used, and by the check.

`EVOSELECT_LONG=1` flips a hundred times as many.
"""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import lancedb
import pytest

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.rounds.audit import audit
from evoselect_pipeline.rounds.data import target_set
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.artifacts import MANIFEST, open_artifact
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.integrity import table_problems
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.stores.tables import schema_of
from evoselect_pipeline_tests.faults.flipped_tables import files_in, flipped
from evoselect_pipeline_tests.integration.in_dagster import tiny
from evoselect_pipeline_tests.integration.process import IS_LONG, REPOSITORY

pytestmark = pytest.mark.timeout(7200 if IS_LONG else 600)

MORE = 100 if IS_LONG else 1
NUM_TARGETS, DIM = 4, 16
TABLES = ["samples", f"gradients_{DIM}", f"coordinates_{NUM_TARGETS}", "scores", "decisions"]


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Line:
    """A line with a finished round, of which MLflow knows nothing."""
    config = tiny(
        generator__num_candidates=60,
        task__num_targets=NUM_TARGETS,
        task__num_validation=4,
        task__num_test=4,
        gradients__dim=DIM,
        train__steps=1,
        evaluation__max_new_tokens=1,
    )
    line = Line(config, Home(tmp_path_factory.mktemp("flips") / "home"))
    target_set(line)
    for stage in STAGES:
        stage.run(line, 0)
    return line


def test_a_bit_flipped_in_any_published_file_is_found_before_use_and_by_the_check(line):
    root, draw = line.home.line_dir(line.name), Random(0)
    published = sorted(manifest.parent for manifest in root.rglob(MANIFEST))
    assert len(published) > len(STAGES)
    files = [(folder, file) for folder in published for file in files_in(folder)]
    for _ in range(100 * MORE):
        folder, file = draw.choice(files)
        with flipped(file, draw):
            with pytest.raises(ArtifactError, match=r"damaged|upgrade"):
                open_artifact(folder)
            assert next(audit(line)).where == str(folder.relative_to(root))
    for folder in published:
        open_artifact(folder)


def outcomes(home: Home, table: str, count: int, whole: Path) -> list[str]:
    """What came of each flip; where Lance ended the process, it is begun again with the next."""
    told: list[str] = []
    while len(told) < count:
        program = "evoselect_pipeline_tests.faults.flipped_tables"
        command = [sys.executable, "-m", program, str(home.root), table, str(len(told)), str(count)]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        told += ended.stdout.split()
        if ended.returncode < 0:
            told.append("killed")
            shutil.rmtree(home.lance_dir)
            shutil.copytree(whole, home.lance_dir)
        else:
            assert ended.returncode == 0, ended.stderr[-3000:]
    return told


@pytest.mark.parametrize("table", TABLES)
def test_a_bit_flipped_in_a_table_changes_no_row_that_is_read(line, table, tmp_path):
    shutil.copytree(line.home.lance_dir, tmp_path / "whole")
    told = Counter(outcomes(line.home, table, 20 * MORE, tmp_path / "whole"))
    print(table, dict(told))
    assert told["found"] > 2 * MORE
    # Rows get lost where the flip is in what they are looked up by.
    assert not told["fewer"] or table in ("scores", "decisions")
    assert not list(table_problems(line.home))


def test_samples_of_a_table_without_checksums_are_held_against_their_ids(line, tmp_path):
    home, store = Home(tmp_path / "old"), LanceStore(line.home)
    shutil.copytree(line.home.root, home.root, ignore=shutil.ignore_patterns("samples.lance"))
    lancedb.connect(str(home.lance_dir)).create_table("samples", schema=schema_of("samples"))
    ids = store.tables.read("samples", "true", ["sample_id"])["sample_id"].to_pylist()
    LanceStore(home).put_samples(store.get_samples(ids), line.name, 0)
    shutil.copytree(home.lance_dir, tmp_path / "whole")
    told = Counter(outcomes(home, "samples", 20 * MORE, tmp_path / "whole"))
    assert told["found"] > 2 * MORE and not told["fewer"]

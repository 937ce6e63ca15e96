"""Flipped bits in what a line has stored: found before they are used, and by the check.

`EVOSELECT_LONG=1` flips a hundred times as many.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import lancedb
import pytest

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.rounds.audit import audit
from evoselect_pipeline.rounds.data import split_rows, target_set
from evoselect_pipeline.rounds.line import Line, read_facts, read_json
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.artifacts import MANIFEST, open_artifact
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.integrity import table_problems
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.stores.tables import schema_of
from evoselect_pipeline_tests.integration.in_dagster import tiny
from evoselect_pipeline_tests.integration.process import IS_LONG
from evoselect_pipeline_tests.unit.test_lance import ids_of, samples

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


@contextmanager
def flipped(file: Path, draw: Random) -> Iterator[None]:
    """One bit of a file the other way round, for a while."""
    whole = file.read_bytes()
    place = draw.randrange(len(whole))
    changed = bytearray(whole)
    changed[place] ^= 1 << draw.randrange(8)
    file.write_bytes(changed)
    try:
        yield
    finally:
        file.write_bytes(whole)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


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


def read_table(line: Line, table: str) -> object:
    """All of it that belongs to the round, as its users read it, in a form that can be compared."""
    store, represented = LanceStore(line.home), line.artifact(0, "projected_gradients")
    facts, ids = read_facts(represented), read_json(represented.path / "ids.json")
    ids += [target.sample_id for target in split_rows(line, "targets")]
    if table == "samples":
        return store.get_samples(read_json(line.artifact(0, "candidates").path / "ids.json"))
    if table.startswith("gradients"):
        found = store.read_gradients(ids, facts["fingerprint"], facts["dim"])
        return [column.tobytes() for column in found]
    if table.startswith("coordinates"):
        return store.read_coordinates(ids, facts["span"], NUM_TARGETS).tobytes()
    read = store.read_scores if table == "scores" else store.read_decisions
    return read(line.name, 0).rows()


@pytest.mark.parametrize("table", TABLES)
def test_a_bit_flipped_in_a_table_is_found_by_its_readers_and_by_the_check_or_changes_nothing(
    line, table
):
    whole, draw, num_found = read_table(line, table), Random(0), 0
    files = files_in(line.home.lance_dir / f"{table}.lance" / "data")
    files += files_in(line.home.lance_dir / f"{table}.lance" / "_versions")
    for _ in range(20 * MORE):
        with flipped(draw.choice(files), draw):
            try:
                assert read_table(line, table) == whole
            except ArtifactError:
                num_found += 1
                assert table in [problem.table for problem in table_problems(line.home)]
    assert num_found > 2 * MORE
    assert not list(table_problems(line.home))


def test_samples_of_a_table_without_checksums_are_held_against_their_ids(tmp_path):
    home, draw, num_found = Home(tmp_path), Random(0), 0
    lancedb.connect(str(home.lance_dir)).create_table("samples", schema=schema_of("samples"))
    LanceStore(home).put_samples(samples(50), "sums", 0)
    (file,) = files_in(home.lance_dir / "samples.lance" / "data")
    for _ in range(20 * MORE):
        with flipped(file, draw):
            try:
                found = LanceStore(home).get_samples(ids_of(50))
                assert [sample.messages for sample in found] == [s.messages for s in samples(50)]
            except ArtifactError:
                num_found += 1
    assert num_found > 2 * MORE

"""Law: an extraction costs the rows that no earlier one has stored, interrupted or not."""

import numpy as np
import pytest

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.gradients import GradientExtractor
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.rounds import representation
from evoselect_pipeline.rounds.data import split_rows, target_set
from evoselect_pipeline.rounds.line import EXTRACTION, Line, read_facts, read_json
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline_tests.integration.test_files_line import write

DIM, NUM_OLD, NUM_NEW = 64, 120, 30


@pytest.fixture
def line(tmp_path):
    """Makes a line on files whose candidates are the first few of always the same rows."""
    task = task_rows("compose", num_targets=8, num_validation=6, num_test=10)
    for split in ("targets", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", getattr(task, split))
    written = PlaygroundGenerator("compose", "strong").generate(task.targets, NUM_OLD + NUM_NEW, 1)

    def made(name, num_candidates, home="home"):
        write(tmp_path / f"{name}_0000.jsonl", written[:num_candidates])
        config = LineConfig(
            line=name,
            task={"kind": "files"}
            | {split: tmp_path / f"{split}.jsonl" for split in ("targets", "validation", "test")},
            generator={"kind": "files", "pattern": f"{tmp_path}/{name}_{{round}}.jsonl"},
            gradients={"dim": DIM, "batch_tokens": 512},
        )
        line = Line(config, Home(tmp_path / home))
        target_set(line)
        for stage in STAGES[: _place("projected_gradients")]:
            stage.run(line, 0)
        return line

    return made


def _place(name):
    return [stage.name for stage in STAGES].index(name)


def extract(line):
    return STAGES[_place("projected_gradients")].run(line, 0)


@pytest.fixture
def computed(monkeypatch):
    """The rows that are put through the model, those of the targets' span aside."""
    ids, call = [], GradientExtractor.__call__

    def watched(extractor, rows, span=None):
        ids.extend(row.sample_id for row in rows)
        return call(extractor, rows, span)

    monkeypatch.setattr(GradientExtractor, "__call__", watched)
    return ids


def stored(line, artifact):
    ids, facts = read_json(artifact.path / "ids.json"), read_facts(artifact)
    gradients = line.store.read_gradients(ids, facts["fingerprint"], DIM)
    return ids, gradients, line.store.read_coordinates(ids, facts["span"], facts["num_targets"])


def test_rows_that_come_later_cost_themselves_alone_and_no_interruption_shows(
    line, computed, monkeypatch
):
    first = line("first", NUM_OLD)
    extract(first)
    targets = {target.sample_id for target in split_rows(first, "targets")}
    assert len(computed) == len(set(computed)) == NUM_OLD + len(targets)
    earlier = set(computed)
    computed.clear()

    later = line("later", NUM_OLD + NUM_NEW)
    kept, put = [], LanceStore.put_gradients

    def putting(store, fingerprint, batch, span):
        if len(kept) >= 10:
            raise KeyboardInterrupt
        put(store, fingerprint, batch, span)
        kept.extend(batch.sample_ids)

    with monkeypatch.context() as patched:
        patched.setattr(representation, "ROWS_PER_COMMIT", 5)
        patched.setattr(LanceStore, "put_gradients", putting)
        with pytest.raises(KeyboardInterrupt):
            extract(later)
    begun = set(computed)
    computed.clear()
    extract(later)
    assert not (earlier | set(kept)) & set(computed)
    assert begun - set(kept) <= set(computed)
    assert len(kept) + len(computed) == len({*kept, *computed}) == NUM_NEW
    assert not list(later.home.round_dir("later", 0).glob(f"{EXTRACTION}*"))

    alone = line("first", NUM_OLD, "another home")
    extract(alone)
    whole = line("later", NUM_OLD + NUM_NEW, "another home")
    ids, gradients, coordinates = stored(later, extract(later))
    expected_ids, expected, expected_coordinates = stored(whole, extract(whole))
    assert ids == expected_ids and len(ids) == NUM_OLD + NUM_NEW
    np.testing.assert_array_equal(gradients.vectors, expected.vectors)
    np.testing.assert_array_equal(gradients.losses, expected.losses)
    np.testing.assert_array_equal(coordinates, expected_coordinates)


def test_rows_that_are_all_there_cost_nothing(line, computed):
    extract(line("first", NUM_OLD))
    computed.clear()
    assert len(stored(same := line("same", NUM_OLD), extract(same))[0]) == NUM_OLD
    assert computed == []

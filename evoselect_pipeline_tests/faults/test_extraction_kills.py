"""SIGKILLs at random moments of a real extraction: all rows once, the same bits, nothing twice.

`EVOSELECT_LONG=1` runs it at full size: 5,000 rows and 20 kills, some minutes.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from evoselect_pipeline.core.records import ID_LENGTH
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline_tests.integration.process import IS_LONG

NUM_ROWS, NUM_KILLS = (5000, 20) if IS_LONG else (600, 3)
COMMIT, DIM, NUM_TARGETS = (256 if IS_LONG else 60), 2048, 16
LATEST_KILL_S = 2.5 if IS_LONG else 1.0

EXTRACT = """
import sys
import torch
from evoselect_pipeline.config import GradientSettings, LoraSettings, ModelSettings
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.rounds import representation as rep
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.training.models import load_encoder, load_proxy

torch.set_num_threads(1)
num_rows, num_targets, rep.ROWS_PER_COMMIT, dim = map(int, sys.argv[2:6])
model, settings = ModelSettings(), GradientSettings(dim=dim, batch_tokens=2048)
proxy, encoder = load_proxy(model, None, LoraSettings(), 0), load_encoder(model)
targets = task_rows("stories", num_targets=num_targets, num_validation=1, num_test=1).targets
rows = PlaygroundGenerator("stories", "strong").generate(targets, num_rows, 0)
store = LanceStore(Home(sys.argv[1]))
fingerprint = rep.gradient_fingerprint(proxy, encoder, settings, 0)
span = rep.span_fingerprint(fingerprint, targets)
present = frozenset(store.present(fingerprint, dim) & store.placed(span, num_targets))
print("start", fingerprint, span, *(row.sample_id for row in rows), flush=True)
found = rep.compute_gradients(rows, targets, proxy, encoder, settings, 0, present=present)

def told(batches):
    for batch in batches:
        print("computed", *batch.sample_ids, flush=True)
        yield batch

put = store.put_gradients
def putting(fingerprint, batch, span):
    put(fingerprint, batch, span)
    print("stored", *batch.sample_ids, flush=True)
store.put_gradients = putting
assert not rep.store_gradients(store, fingerprint, span, told(found.batches))
"""


def start(home):
    arguments = (home, NUM_ROWS, NUM_TARGETS, COMMIT, DIM)
    return subprocess.Popen(
        [sys.executable, "-c", EXTRACT, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


def said(lines, word):
    """The ids of all lines that begin with a word; a kill may cut the last one off."""
    ids = [sample_id for line in lines if line[0] == word for sample_id in line[1:]]
    return [sample_id for sample_id in ids if len(sample_id) == ID_LENGTH]


def read(home, first):
    """All that is stored: ids, vectors and coordinates."""
    fingerprint, span, *ids = first
    store = LanceStore(Home(home))
    gradients = store.read_gradients(ids, fingerprint, DIM)
    return ids, gradients, store.read_coordinates(ids, span, NUM_TARGETS)


def test_an_extraction_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path):
    whole = start(tmp_path / "whole")
    lines = [line.split() for line in whole.stdout]
    assert whole.wait() == 0 and lines[0][0] == "start"

    moments, stored = random.Random(0), set()
    for kill in range(NUM_KILLS + 1):
        child = start(tmp_path / "killed")
        first = child.stdout.readline().split()
        if kill < NUM_KILLS:
            time.sleep(moments.uniform(0, LATEST_KILL_S))
            child.kill()
        own = [line.split() for line in child.stdout.read().splitlines()]
        assert child.wait() == (-signal.SIGKILL if kill < NUM_KILLS else 0)
        assert not stored & set(said(own, "computed"))
        stored |= set(said(own, "stored"))

    ids, gradients, coordinates = read(tmp_path / "killed", first[1:])
    _, expected, expected_coordinates = read(tmp_path / "whole", lines[0][1:])
    assert len(ids) == len(set(ids)) == NUM_ROWS
    np.testing.assert_array_equal(gradients.vectors, expected.vectors)
    np.testing.assert_array_equal(coordinates, expected_coordinates)
    store = LanceStore(Home(tmp_path / "killed"))
    for name in (f"gradients_{DIM}", f"coordinates_{NUM_TARGETS}"):
        kept = store.tables.read(name, "true", ["sample_id"])["sample_id"].to_pylist()
        assert sorted(kept) == sorted(ids)

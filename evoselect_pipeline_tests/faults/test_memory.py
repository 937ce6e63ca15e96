"""Memory that runs out in a pass of the model ends the stage; smaller batches then finish it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.training.memory import memory_bounded_by

EXTRACT = """
import resource, sys
from pathlib import Path
import torch
from evoselect_pipeline.config import GradientSettings, LoraSettings, ModelSettings
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.rounds import representation as rep
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.training.models import load_encoder, load_proxy

torch.set_num_threads(1)
rep.ROWS_PER_COMMIT = 20
model, store = ModelSettings(), LanceStore(Home(sys.argv[1]))
proxy, encoder = load_proxy(model, None, LoraSettings(), 0), load_encoder(model)
short = [sample_from_pair(f"add {n} and 1", str(n + 1)) for n in range(60)]
long = [sample_from_pair("word " * 200 + str(n), "4") for n in range(60)]

def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

def with_room_for(num_bytes, batches):
    '''Take batches, of which all but the first may not claim more memory than this.'''
    batches = iter(batches)
    yield next(batches)
    while True:
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + num_bytes, -1))
        try:
            batch = next(batches, None)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        if batch is None:
            return
        yield batch

def extract(batch_tokens, num_bytes=64 * 2**20):
    '''Store all that is missing; how many rows were computed.'''
    settings = GradientSettings(dim=64, batch_tokens=batch_tokens, target_span=False)
    fingerprint = rep.gradient_fingerprint(proxy, encoder, settings, 0)
    present = frozenset(store.present(fingerprint, 64))
    found = rep.compute_gradients(
        short + long, [], proxy, encoder, settings, 0, present=present
    )
    batches = with_room_for(num_bytes, found.batches)
    assert not rep.store_gradients(store, fingerprint, None, batches)
    return len(present), len(store.present(fingerprint, 64))

try:
    extract(4096)
except ConfigError as error:
    print(error)
print(*extract(512))
"""


def test_a11_an_extraction_that_runs_out_of_memory_goes_on_with_smaller_batches(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", EXTRACT, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said, counts = ended.stdout.strip().rsplit("\n", 1)
    assert said.startswith("gradients.batch_tokens: memory ran out at 4096 (")
    assert "can't allocate memory: you tried to allocate" in said
    assert said.endswith("). Halve it and run again; what is stored stays")
    stored, in_the_end = map(int, counts.split())
    assert 0 < stored < in_the_end == 120, "what was stored before is not computed again"


def test_a11_memory_that_runs_out_is_told_with_the_setting_to_halve():
    no_room = r"train\.batch_size: memory ran out at 16 \(.*\)\. Halve it, and more, and run again"
    with (
        pytest.raises(ConfigError, match=no_room),
        memory_bounded_by("train.batch_size", 16, ", and more,"),
    ):
        torch.empty(2**60)  # 4 EiB
    with pytest.raises(RuntimeError, match="shapes"), memory_bounded_by("train.batch_size", 16):
        torch.ones(2, 3) @ torch.ones(2, 3)

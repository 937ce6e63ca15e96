"""What must not matter does not: batch shape, interruption, order of lines, repetition."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evoselect_pipeline.commands.select import Request, select_rows
from evoselect_pipeline.config import GradientSettings, LoraSettings, ModelSettings, TrainSettings
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.training.lora import last_checkpoint, train_adapter
from evoselect_pipeline.training.models import load_encoder, load_proxy
from evoselect_pipeline_tests.integration.process import REPOSITORY, finish

MODEL, LORA = ModelSettings(), LoraSettings()
SEED = 3

pytestmark = pytest.mark.slow


def candidates(count: int) -> list[Sample]:
    return PlaygroundGenerator("stories", "weak").generate(targets(), count, SEED)


def targets() -> list[Sample]:
    return task_rows("stories", num_targets=6, num_validation=1, num_test=1).targets


def train(folder, **settings):
    """Train on 64 rows; return the report and the adapter's tensors."""
    rows, _ = load_encoder(MODEL).encode(candidates(64))
    report = train_adapter(
        MODEL,
        None,
        rows,
        lora=LORA,
        train=TrainSettings(**{"steps": 8, "batch_size": 8, "warmup": 2, **settings}),
        seed=SEED,
        adapter_seed=SEED,
        work_dir=folder / "work",
        out_dir=folder / "adapter",
    )
    return report, load_file(folder / "adapter/adapter_model.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return float(sum((one[name] - other[name]).square().sum() for name in one)) ** 0.5


def test_accumulated_rows_train_like_a_batch_of_them(tmp_path):
    _, start = train(tmp_path / "start", steps=1, learning_rate=1e-30)
    whole, weights = train(tmp_path / "whole", batch_size=8, accumulation=1)
    for batch_size in (1, 4):
        folder = tmp_path / str(batch_size)
        report, others = train(folder, batch_size=batch_size, accumulation=8 // batch_size)
        assert report.num_steps == whole.num_steps
        for (step, loss), (other_step, other_loss) in zip(whole.losses, report.losses, strict=True):
            assert step == other_step
            assert other_loss == pytest.approx(loss, rel=1e-4)
        # Adam turns rounding errors of vanishing gradients into whole steps, in single entries.
        assert distance(weights, others) < 0.01 * distance(weights, start)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from evoselect_pipeline.training import lora
from evoselect_pipeline_tests.invariants.test_equivalence import train
torch.set_num_threads(1)
kill_at, go_on = int(sys.argv[2]), lora.Reporter.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    go_on(self, args, state, control, **kwargs)
lora.Reporter.on_step_end = on_step_end
train(Path(sys.argv[1]), **json.loads(sys.argv[3]))
"""


def test_equal_adapters_are_equal_files_whichever_process_writes_them(tmp_path):
    code = (
        "import sys; from pathlib import Path;"
        "from evoselect_pipeline_tests.invariants.test_equivalence import train;"
        "train(Path(sys.argv[1]), steps=1)"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / seed],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        contents = [(tmp_path / seed / "adapter" / file).read_bytes() for seed in ("1", "2")]
        assert contents[0] == contents[1], file


def train_and_kill(folder, step: int, **settings) -> None:
    """Train in a process that is killed after a step, before what the step would save."""
    command = [sys.executable, "-c", KILLED, str(folder), str(step), json.dumps(settings)]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL


def test_training_killed_between_checkpoints_ends_bit_for_bit_like_an_undisturbed_one(tmp_path):
    settings = {"steps": 10, "checkpoint_steps": 3}
    report, weights = train(tmp_path / "whole", **settings)
    for step in (5, 8):
        train_and_kill(tmp_path / "killed", step, **settings)
    assert last_checkpoint(tmp_path / "killed/work") == str(tmp_path / "killed/work/checkpoint-6")
    resumed, others = train(tmp_path / "killed", **settings)
    assert resumed == report
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_checkpoint_whose_last_file_was_cut_off_is_not_resumed_from(tmp_path):
    settings = {"steps": 6, "checkpoint_steps": 2}
    report, weights = train(tmp_path / "whole", **settings)
    train_and_kill(tmp_path / "cut", 5, **settings)
    state = tmp_path / "cut/work/checkpoint-4/trainer_state.json"
    state.write_text(state.read_text()[:100])
    assert last_checkpoint(tmp_path / "cut/work") == str(tmp_path / "cut/work/checkpoint-2")
    resumed, others = train(tmp_path / "cut", **settings)
    assert resumed == report
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_extraction_goes_on_where_it_was_interrupted_with_the_same_bits():
    from evoselect_pipeline.rounds.representation import compute_gradients

    samples, settings = candidates(40), GradientSettings(dim=32, batch_tokens=256)
    proxy, encoder = load_proxy(MODEL, None, LORA, SEED), load_encoder(MODEL)

    def batches(present=frozenset()):
        return list(
            compute_gradients(
                samples, targets(), proxy, encoder, settings, SEED, present=present
            ).batches
        )

    whole = batches()
    done = len(whole) // 2
    present = frozenset(sample_id for batch in whole[:done] for sample_id in batch.sample_ids)
    rest = batches(present)
    assert [batch.sample_ids for batch in rest] == [batch.sample_ids for batch in whole[done:]]
    for batch, other in zip(rest, whole[done:], strict=True):
        assert np.array_equal(batch.vectors, other.vectors)
        assert np.array_equal(batch.coordinates, other.coordinates)


def write(path, samples: list[Sample]) -> None:
    rows = ({"prompt": s.prompt, "completion": s.completion, "n": len(s.prompt)} for s in samples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("method", ["evoselect", "random", "round_robin"])
def test_the_same_rows_in_any_order_give_the_same_file(tmp_path, method):
    samples = candidates(60)
    write(tmp_path / "targets.jsonl", targets())
    outputs = []
    for name, rows in (("a", samples), ("b", samples), ("c", samples[::-1])):
        write(tmp_path / f"{name}.jsonl", rows)
        out = tmp_path / f"out_{name}.jsonl"
        request = Request(
            *(tmp_path / f"{name}.jsonl", tmp_path / "targets.jsonl", out),
            *(12, "playground", method, SEED, 2048, ("gradients.dim=128",)),
        )
        select_rows(request, "json")
        outputs.append(out.read_bytes())
    assert len(outputs[0].splitlines()) == 12
    assert outputs[0] == outputs[1]
    assert outputs[0] == outputs[2]


def test_two_processes_write_the_same_bytes(tmp_path):
    write(tmp_path / "targets.jsonl", targets())
    write(tmp_path / "rows.jsonl", candidates(60))
    for out in ("a.jsonl", "b.jsonl"):
        ended = finish(
            *("select", "--candidates", "rows.jsonl", "--target", "targets.jsonl"),
            *("--out", out, "--budget", 12, "--seed", SEED, "--set", "gradients.dim=128"),
            cwd=tmp_path,
        )
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()

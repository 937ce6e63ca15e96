"""Training that ends early, whatever ended it, goes on from a whole checkpoint to the same end."""

import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evoselect_pipeline.errors import NumericsError
from evoselect_pipeline.training import lora
from evoselect_pipeline.training.lora import CHECKPOINT_FILES, last_checkpoint
from evoselect_pipeline_tests.invariants.test_equivalence import REPOSITORY, train

STEPS = {"steps": 6, "checkpoint_steps": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The report and the tensors of a training that nothing disturbed."""
    return train(tmp_path_factory.mktemp("whole"), **STEPS)


def assert_ends_like(undisturbed, folder: Path, **settings) -> None:
    """Go on with a training, and hold that it ends as if nothing had happened."""
    report, weights = train(folder, **STEPS | settings)
    assert report == undisturbed[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in undisturbed[1].items())
    assert not (folder / "work").exists()


def at_step(monkeypatch, step: int, act) -> None:
    """Do something when a step has ended, before what the step would save."""
    go_on = lora.Reporter.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            act()
        go_on(self, args, state, control, **kwargs)

    monkeypatch.setattr(lora.Reporter, "on_step_end", on_step_end)


TERMINATED = """
import os, signal, sys
from pathlib import Path
import torch
from evoselect_pipeline.training import lora
from evoselect_pipeline_tests.faults.test_training_that_ends_early import STEPS
from evoselect_pipeline_tests.invariants.test_equivalence import train
torch.set_num_threads(1)
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
lora.Reporter.on_step_end = on_step_end
train(Path(sys.argv[1]), **STEPS)
"""


def test_a5_training_that_is_terminated_goes_on_from_its_last_checkpoint(tmp_path, undisturbed):
    command = [sys.executable, "-c", TERMINATED, tmp_path]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGTERM
    assert last_checkpoint(tmp_path / "work") == str(tmp_path / "work/checkpoint-4")
    assert_ends_like(undisturbed, tmp_path)


def test_a5_training_that_is_interrupted_leaves_no_half_checkpoint(
    tmp_path, monkeypatch, undisturbed
):
    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        at_step(patched, 5, interrupt)
        train(tmp_path, **STEPS)
    for checkpoint in (tmp_path / "work").iterdir():
        assert not [name for name in CHECKPOINT_FILES if not (checkpoint / name).is_file()]
    assert_ends_like(undisturbed, tmp_path)


@pytest.fixture
def file_size_limit(monkeypatch):
    """Set the size that no file may exceed, as if the disk were full from there on."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize(
    ("broken", "said"),
    [("adapter_model.safetensors", "File too large"), ("optimizer.pt", "iostream error")],
)
def test_b2_a_disk_that_fills_up_leaves_the_checkpoint_before(
    tmp_path, monkeypatch, undisturbed, file_size_limit, broken, said
):
    def fill_up():
        whole = (tmp_path / "work/checkpoint-2" / broken).stat().st_size
        file_size_limit(whole - 1)

    with monkeypatch.context() as patched, pytest.raises(Exception, match=said):
        at_step(patched, 4, fill_up)
        train(tmp_path, **STEPS)
    file_size_limit(resource.RLIM_INFINITY)
    assert not (tmp_path / "adapter").exists()
    assert last_checkpoint(tmp_path / "work") == str(tmp_path / "work/checkpoint-2")
    assert_ends_like(undisturbed, tmp_path)


def test_b9_an_old_checkpoint_that_cannot_be_removed_stops_nothing(
    tmp_path, monkeypatch, undisturbed
):
    refused, unlink = [], os.unlink

    def refuse_once(path, **kwargs):
        if str(path).endswith("optimizer.pt") and not refused:
            refused.append(path)
            raise PermissionError(1, "not now", path)
        unlink(path, **kwargs)

    monkeypatch.setattr("os.unlink", refuse_once)
    assert_ends_like(undisturbed, tmp_path)
    assert refused


def test_d1_a_loss_that_is_not_a_number_ends_training_before_the_update(
    tmp_path, monkeypatch, undisturbed
):
    compute = lora.FiniteTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        return loss * math.nan if self.state.global_step == 3 else loss

    with monkeypatch.context() as patched:
        patched.setattr(lora.FiniteTrainer, "compute_loss", compute_loss)
        with pytest.raises(NumericsError, match="the training loss is nan at step 3"):
            train(tmp_path, **STEPS)
    assert not (tmp_path / "adapter").exists()
    kept = load_file(tmp_path / "work/checkpoint-2/adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert_ends_like(undisturbed, tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_d2_a_gradient_that_is_not_finite_ends_training_though_the_loss_is(
    tmp_path, monkeypatch, value
):
    step = lora.FiniteTrainer.training_step

    def training_step(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 3:
            learned = [p for p in self.model.parameters() if p.grad is not None]
            learned[-1].grad.view(-1)[0] = value
        return loss

    monkeypatch.setattr(lora.FiniteTrainer, "training_step", training_step)
    with pytest.raises(NumericsError, match=r"the gradient of .*lora_.* is not finite at step 3"):
        train(tmp_path, **STEPS)
    assert not (tmp_path / "adapter").exists()

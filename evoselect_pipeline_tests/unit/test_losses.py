"""Law: answer losses are those that come with the gradients, whatever rows are padded together."""

import numpy as np
import pytest
import torch

from evoselect_pipeline.config import GradientSettings, LoraSettings, ModelSettings
from evoselect_pipeline.core.gradients import concatenate, extract_gradients
from evoselect_pipeline.core.losses import answer_losses
from evoselect_pipeline.playground.tasks import task_rows
from evoselect_pipeline.rounds.representation import make_extractor
from evoselect_pipeline.training.model_files import PLAYGROUND
from evoselect_pipeline.training.models import load_base, load_encoder, load_proxy

SETTINGS = ModelSettings(name=PLAYGROUND)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(SETTINGS)


@pytest.fixture(scope="module")
def rows(encoder):
    """Rows of three tasks, so that lengths differ."""
    samples = [s for task in ("stories", "compose", "lookup") for s in task_rows(task).targets[:8]]
    encoded, unusable = encoder.encode(samples)
    assert not unusable and len({len(row.input_ids) for row in encoded}) > 5
    return encoded


@pytest.fixture(scope="module")
def model():
    return load_base(SETTINGS)


def test_losses_equal_those_of_the_gradients(model, encoder, rows):
    proxy = load_proxy(SETTINGS, None, LoraSettings(rank=2), 0)
    settings = GradientSettings(dim=16, prompt_weight=0.0)
    extractor = make_extractor(proxy, encoder, settings, seed=0)
    batch = concatenate(list(extract_gradients(extractor, rows, batch_tokens=600)))
    expected = dict(zip(batch.sample_ids, batch.losses, strict=True))
    losses = answer_losses(model, rows, encoder.pad_id, batch_tokens=600)
    np.testing.assert_allclose(losses, [expected[row.sample_id] for row in rows], rtol=1e-4)
    assert losses.dtype == np.float64 and np.ptp(losses) > 0.1


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
def test_losses_do_not_depend_on_batches_or_order(model, encoder, rows, batch_tokens):
    losses = answer_losses(model, rows, encoder.pad_id, batch_tokens=600)
    other = answer_losses(model, rows[::-1], encoder.pad_id, batch_tokens=batch_tokens)
    np.testing.assert_allclose(other[::-1], losses, rtol=1e-4)


def test_a_row_asked_for_twice_has_one_loss(model, encoder, rows):
    losses = answer_losses(model, [*rows[:2], rows[0]], encoder.pad_id, batch_tokens=600)
    assert losses[0] == losses[2] > 0


def test_no_rows_have_no_losses(model, encoder):
    assert answer_losses(model, [], encoder.pad_id, batch_tokens=600).shape == (0,)


def test_progress_counts_rows_up_to_all_of_them(model, encoder, rows):
    seen = []
    answer_losses(
        model, rows, encoder.pad_id, batch_tokens=300, on_rows=lambda *now: seen.append(now)
    )
    done = [count for count, _ in seen]
    assert done == sorted(done) and seen[-1] == (len(rows), len(rows)) and len(seen) > 1


def test_the_model_gets_no_gradients_and_leaves_training_mode(model, encoder, rows):
    model.train()
    answer_losses(model, rows[:2], encoder.pad_id, batch_tokens=600)
    assert not model.training and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())

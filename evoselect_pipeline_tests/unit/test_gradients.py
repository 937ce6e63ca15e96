"""Law: hook gradients are the explicit per-sample LoRA gradients, whatever the company of a row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel

from evoselect_pipeline.config import LoraSettings, ModelSettings
from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.core.features import join_span
from evoselect_pipeline.core.forward import CausalPass
from evoselect_pipeline.core.gradients import (
    GradientExtractor,
    concatenate,
    extract_gradients,
    find_target_span,
)
from evoselect_pipeline.core.representations import LayerGradients
from evoselect_pipeline.core.sketch import PermutedFold, fold
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.training.models import load_base, load_proxy, with_adapter

LORA = LoraSettings(rank=4, alpha=8.0)
SEED = 3
DIM, SKETCH_SEED = 64, 9


def rows_of_many_lengths(count=13):
    draw = np.random.default_rng(0)
    rows = []
    for number in range(count):
        num_prompt, num_answer = int(draw.integers(1, 20)), int(draw.integers(1, 9))
        ids = tuple(int(i) for i in draw.integers(1, 97, num_prompt + num_answer))
        rows.append(Encoded(f"{number:032x}", ids, num_prompt))
    return rows


@pytest.fixture(scope="module")
def settings(tiny_llama_dir):
    return ModelSettings(name=str(tiny_llama_dir))


@pytest.fixture(scope="module")
def trained_adapter(settings, tmp_path_factory):
    """An adapter with B not zero, so that both factors have gradients."""
    model = with_adapter(load_base(settings), None, LORA, SEED, trainable=True)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draw))
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(folder))
    return folder


def explicit_features(settings, adapter, sketch, row, prompt_weight=0.0):
    """One row alone, autograd through the unmerged adapter, projected with the same sketch."""
    model: PeftModel = with_adapter(load_base(settings), adapter, LORA, SEED, trainable=True)
    model.eval()
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids).logits[0, :-1]
    labels = torch.tensor(row.labels)[1:]
    loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100)
    represented = loss
    if prompt_weight and row.num_prompt > 1:
        asked = slice(0, row.num_prompt - 1)
        prompt_loss = torch.nn.functional.cross_entropy(logits[asked], ids[0, 1 : row.num_prompt])
        represented = loss + prompt_weight * prompt_loss
    represented.backward()
    total, square = torch.zeros(sketch.width), 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        block = name.removeprefix("base_model.model.").replace(".default.weight", "")
        block = block.replace(".lora_A", ".down").replace(".lora_B", ".up")
        if float(parameter.grad.abs().max()) == 0.0:
            continue
        piece = parameter.grad.T if block.endswith(".up") else parameter.grad
        total += sketch(block, piece.reshape(1, -1))[0]
        square += float(parameter.grad.square().sum())
    total = fold(total[None], DIM)[0]
    return (total / total.norm()).numpy(), square**0.5, float(loss.detach())


def extractor_of(proxy, prompt_weight=0.0):
    causal = CausalPass(proxy.model, pad_id=0, prompt_weight=prompt_weight)
    measure = LayerGradients(proxy.model, proxy.factors)
    return GradientExtractor(causal, measure, DIM, SKETCH_SEED)


def features_of(settings, adapter, rows, batch_tokens, prompt_weight=0.0):
    extractor = extractor_of(load_proxy(settings, adapter, LORA, SEED), prompt_weight)
    found = {}
    for batch in extract_gradients(extractor, rows, batch_tokens=batch_tokens):
        for place, sample_id in enumerate(batch.sample_ids):
            found[sample_id] = (
                batch.vectors[place],
                float(batch.norms[place]),
                float(batch.losses[place]),
                int(batch.num_tokens[place]),
            )
    return found


@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["fresh", "trained"])
def test_hook_gradients_equal_explicit_gradients(settings, trained_adapter, kind, prompt_weight):
    adapter = trained_adapter if kind == "trained" else None
    rows = rows_of_many_lengths()
    found = features_of(settings, adapter, rows, 200, prompt_weight)
    sketch = PermutedFold(SKETCH_SEED)
    for row in rows:
        vector, norm, loss = explicit_features(settings, adapter, sketch, row, prompt_weight)
        got_vector, got_norm, got_loss, num_tokens = found[row.sample_id]
        assert np.linalg.norm(got_vector - vector) < 1e-4  # both have unit length
        assert got_norm == pytest.approx(norm, rel=1e-4)
        assert got_loss == pytest.approx(loss, rel=1e-5)
        assert num_tokens == len(row.input_ids) - row.num_prompt


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_a_row_does_not_depend_on_batch_order_or_padding(settings, trained_adapter, batch_tokens):
    rows = rows_of_many_lengths()
    alone = features_of(settings, trained_adapter, rows, batch_tokens=200)
    other = features_of(settings, trained_adapter, rows[::-1], batch_tokens=batch_tokens)
    for sample_id, (vector, norm, loss, _) in alone.items():
        assert np.linalg.norm(other[sample_id][0] - vector) < 1e-4
        assert other[sample_id][1] == pytest.approx(norm, rel=1e-4)
        assert other[sample_id][2] == pytest.approx(loss, rel=1e-5)


def test_a_resumed_extraction_gives_the_same_bits(settings):
    rows = rows_of_many_lengths(40)
    extractor = extractor_of(load_proxy(settings, None, LORA, SEED))
    whole = {
        sample_id: batch.vectors[place].tobytes()
        for batch in extract_gradients(extractor, rows, batch_tokens=120)
        for place, sample_id in enumerate(batch.sample_ids)
    }
    some = frozenset(list(whole)[: len(whole) // 2])
    for batch in extract_gradients(extractor, rows, batch_tokens=120, present=some):
        assert not some.issuperset(batch.sample_ids)
        for place, sample_id in enumerate(batch.sample_ids):
            assert batch.vectors[place].tobytes() == whole[sample_id]


def test_the_proxy_itself_gets_no_gradients(settings):
    proxy = load_proxy(settings, None, LORA, SEED)
    extractor_of(proxy)(rows_of_many_lengths(3))
    assert not proxy.model.training
    assert all(parameter.grad is None for parameter in proxy.model.parameters())


def test_a_model_without_adapted_layers_is_refused(settings):
    with pytest.raises(ConfigError, match="no adapted layers"):
        LayerGradients(load_base(settings), {})


def test_rows_are_placed_among_the_targets_as_exactly_as_the_wide_sketch_places_them(settings):
    rows = rows_of_many_lengths(20)
    extractor = extractor_of(load_proxy(settings, None, LORA, SEED))
    targets = [*rows[:4], replace(rows[0], sample_id="f" * 32)]  # one of them twice
    span = find_target_span(extractor, targets, batch_tokens=100)
    batch = concatenate(list(extract_gradients(extractor, rows, span=span, batch_tokens=120)))
    joined = join_span(batch.vectors, batch.coordinates, span.folded)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-6)
    wide = np.concatenate([extractor.wide([row])[0].numpy() for row in rows])
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    place = {sample_id: n for n, sample_id in enumerate(batch.sample_ids)}
    joined = joined[[place[row.sample_id] for row in rows]]
    np.testing.assert_allclose(joined @ joined[:4].T, wide @ wide[:4].T, atol=1e-4)
    # Between other rows only the part outside the span is estimated.
    sketched = batch.vectors[[place[row.sample_id] for row in rows]][4:]
    exact, found, rough = (v @ v.T for v in (wide[4:], joined[4:], sketched))
    assert np.abs(found - exact).mean() < np.abs(rough - exact).mean()

"""Law: hook gradients are the explicit per-sample LoRA gradients, whatever the company of a row."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from evoselect_pipeline.config import LoraSettings, ModelSettings
from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.core.gradients import GradientExtractor, extract_gradients
from evoselect_pipeline.core.sketch import PermutedFold
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.training.models import load_base, load_proxy, with_adapter

LORA = LoraSettings(rank=4, alpha=8.0)
SEED = 3


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
    total, square = torch.zeros(sketch.dim), 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        block = name.removeprefix("base_model.model.").replace(".default.weight", "")
        block = block.replace(".lora_A", ".down").replace(".lora_B", ".up")
        if float(parameter.grad.abs().max()) == 0.0:
            continue
        total += sketch(block, parameter.grad.reshape(1, -1))[0]
        square += float(parameter.grad.square().sum())
    return (total / total.norm()).numpy(), square**0.5, float(loss.detach())


def features_of(settings, adapter, rows, batch_tokens, prompt_weight=0.0):
    proxy = load_proxy(settings, adapter, LORA, SEED)
    sketch = PermutedFold(64, seed=9)
    extractor = GradientExtractor(proxy.model, proxy.factors, sketch, 0, prompt_weight)
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
    sketch = PermutedFold(64, seed=9)
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
    proxy = load_proxy(settings, None, LORA, SEED)
    extractor = GradientExtractor(proxy.model, proxy.factors, PermutedFold(64, seed=9), pad_id=0)
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
    extractor = GradientExtractor(proxy.model, proxy.factors, PermutedFold(16, seed=0), pad_id=0)
    extractor(rows_of_many_lengths(3))
    assert not proxy.model.training
    assert all(parameter.grad is None for parameter in proxy.model.parameters())


def test_a_model_without_adapted_layers_is_refused(settings):
    with pytest.raises(ConfigError, match="no adapted layers"):
        GradientExtractor(load_base(settings), {}, PermutedFold(16, seed=0), pad_id=0)

"""Laws: each representation is what its formula says, and no architecture is silently wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from evoselect_pipeline.config import GradientSettings, LoraSettings, ModelSettings
from evoselect_pipeline.core import forward
from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.core.forward import CausalPass
from evoselect_pipeline.core.gradients import GradientExtractor
from evoselect_pipeline.core.representations import (
    HeadGradients,
    LayerGradients,
    PooledStates,
    top_blocks,
    two_sided,
)
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.rounds.representation import make_extractor
from evoselect_pipeline.training.models import load_base, load_proxy, with_adapter

VOCABULARY, LORA, SEED = 61, LoraSettings(rank=2, alpha=4.0), 5
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "llama": LlamaConfig(**SHAPE),
    "llama tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma2, capped logits": Gemma2Config(**SHAPE, final_logit_softcapping=2.0),
    "gemma3, sliding window": Gemma3TextConfig(**SHAPE, sliding_window=4),
    "gpt2, Conv1D": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4),
    "mixtral, fused experts": MixtralConfig(**SHAPE, num_local_experts=4),
}
ATTENTION = LORA.model_copy(update={"targets": ("q_proj", "k_proj", "v_proj", "o_proj")})


def rows_of_many_lengths(count=5):
    draw = np.random.default_rng(1)
    rows = []
    for number in range(count):
        num_prompt, num_answer = int(draw.integers(1, 9)), int(draw.integers(1, 6))
        ids = tuple(int(i) for i in draw.integers(1, VOCABULARY, num_prompt + num_answer))
        rows.append(Encoded(f"{number:032x}", ids, num_prompt))
    return rows


@pytest.fixture(scope="module", params=ARCHITECTURES)
def adapted(request, tmp_path_factory):
    """A model, which layers are adapted, and an adapter with B not zero."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(ARCHITECTURES[request.param]).save_pretrained(folder)
    settings = ModelSettings(name=str(folder))
    lora = ATTENTION if "experts" in request.param else LORA
    model = with_adapter(load_base(settings), None, lora, SEED, trainable=True)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(folder))
    return settings, lora, folder


def gradients_by_autograd(settings, lora, adapter, row):
    """The row alone, through the unmerged adapter: gradients by parameter name, and the loss."""
    model = with_adapter(load_base(settings), adapter, lora, SEED, trainable=True).eval()
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
    targets = torch.tensor(row.labels)[1:]
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return grads, float(loss.detach())


def test_inner_products_and_norms_are_those_of_autograd_in_every_architecture(adapted):
    rows, (settings, lora, adapter) = rows_of_many_lengths(), adapted
    extractor = make_extractor(
        load_proxy(settings, adapter, lora, SEED),
        Padding,
        GradientSettings(dim=4096, prompt_weight=0.0),
        seed=0,
    )
    wide, norms, losses = extractor.wide(rows)
    exact = [gradients_by_autograd(settings, lora, adapter, row) for row in rows]
    flat = torch.stack([torch.cat([g.flatten() for g in grads.values()]) for grads, _ in exact])
    assert flat.shape[1] < 20_000  # few collisions in the wide sketch
    torch.testing.assert_close(norms, flat.norm(dim=1), rtol=2e-3, atol=0)
    torch.testing.assert_close(losses, torch.tensor([loss for _, loss in exact]))
    cosines, found = (torch.nn.functional.normalize(m) for m in (flat, wide))
    torch.testing.assert_close(found @ found.T, cosines @ cosines.T, atol=0.05, rtol=0)


class Padding:
    pad_id = 0


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    AutoModelForCausalLM.from_config(ARCHITECTURES["llama"]).save_pretrained(folder)
    return ModelSettings(name=str(folder))


def test_two_sides_see_the_whole_weight_gradient(llama):
    rows, proxy = rows_of_many_lengths(), load_proxy(llama, None, LORA, SEED)
    watches = two_sided(proxy.factors, 14 * 9, SEED)
    pieces = {}
    LayerGradients(proxy.model, watches)(
        CausalPass(proxy.model, 0), rows, lambda name, piece: pieces.update({name: piece})
    )
    model = load_base(llama)
    for number, row in enumerate(rows):
        model.zero_grad()
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels)[1:]
        torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100).backward()
        for name, watch in watches.items():
            whole = model.get_submodule(name).weight.grad
            expected = watch.left_ao @ whole @ watch.right_bi.T
            found = pieces[f"{name}.sides"][number].view(3, 3)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
def test_the_heads_closed_form_is_its_gradient(llama, prompt_weight):
    rows, model = rows_of_many_lengths(), load_base(llama)
    causal = CausalPass(model, 0, prompt_weight)
    measure, pieces = HeadGradients(causal.weight_VH, 20, SEED), []
    losses = measure(causal, rows, lambda name, piece: pieces.append(piece))
    model.lm_head.requires_grad_(True)
    for number, row in enumerate(rows):
        model.zero_grad()
        ids = torch.tensor([row.input_ids])
        logits = model(input_ids=ids).logits[0, :-1]
        labels, prompt = torch.tensor(row.labels)[1:], slice(0, row.num_prompt - 1)
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100)
        assert float(losses[number]) == pytest.approx(float(loss.detach()), rel=1e-4)
        if prompt_weight and row.num_prompt > 1:
            asked = torch.nn.functional.cross_entropy(logits[prompt], ids[0, 1 : row.num_prompt])
            loss = loss + prompt_weight * asked
        loss.backward()
        expected = measure.left_Va.T @ model.lm_head.weight.grad @ measure.right_Hb
        torch.testing.assert_close(pieces[0][number].view(4, 5), expected, rtol=1e-3, atol=1e-6)


def test_a_long_batch_is_taken_in_parts_that_change_neither_losses_nor_slopes(llama, monkeypatch):
    causal, rows = CausalPass(load_base(llama), 0, 0.5), rows_of_many_lengths()
    ids = causal.pad(rows)
    hidden, tokens = causal.hidden(ids), causal.tokens(rows, ids)
    whole = causal.losses_and_slope(hidden, tokens)
    monkeypatch.setattr(forward, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(forward, "LEAST_TOKENS", 3)
    sizes = [len(part.ids) for part, _, _ in causal.errors_of(hidden, tokens, whole[0].clone())]
    assert len(sizes) > 3 and max(sizes) == 3 and sum(sizes) == len(tokens.ids)
    torch.testing.assert_close(causal.losses_and_slope(hidden, tokens), whole)


def test_pooled_states_are_the_mean_over_a_rows_own_tokens(llama):
    rows, model = rows_of_many_lengths(), load_base(llama).eval()
    pieces = []
    PooledStates()(CausalPass(model, 0), rows, lambda name, piece: pieces.append(piece))
    for number, row in enumerate(rows):
        with torch.no_grad():
            states = model.model(input_ids=torch.tensor([row.input_ids])).last_hidden_state[0]
        torch.testing.assert_close(pieces[0][number], states.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("representation", ["lora", "two_sided", "lm_head", "hidden"])
def test_every_representation_fills_a_batch_of_unit_vectors(llama, representation):
    settings = GradientSettings(representation=representation, dim=64, top_layers=0.5)
    extractor = make_extractor(load_proxy(llama, None, LORA, SEED), Padding, settings, seed=0)
    batch = extractor(rows_of_many_lengths())
    assert batch.vectors.shape == (5, 64) and batch.coordinates.shape == (5, 0)
    np.testing.assert_allclose(np.linalg.norm(batch.vectors, axis=1), 1, rtol=1e-5)
    assert (batch.losses > 1).all() and (batch.norms > 0).all()


def test_the_top_share_of_the_blocks_is_kept():
    names = [f"model.layers.{n}.self_attn.q_proj" for n in range(4)] + ["model.project"]
    assert top_blocks(names, 0.5) == [*names[2:4], "model.project"]
    assert top_blocks(names, 0.01) == names[3:]
    assert top_blocks(names, 1.0) == names


def test_layers_below_the_watched_ones_need_no_backward_pass(llama):
    proxy = load_proxy(llama, None, LORA, SEED)
    top = {name: proxy.factors[name] for name in top_blocks(proxy.factors, 0.5)}
    seen = []
    proxy.model.model.layers[0].register_forward_hook(
        lambda module, inputs, output: seen.append(output.requires_grad)
    )
    causal = CausalPass(proxy.model, 0)
    seen.clear()
    GradientExtractor(causal, LayerGradients(proxy.model, top), 16, 0)(rows_of_many_lengths())
    assert seen == [False]


def test_too_narrow_a_sketch_for_two_sides_is_refused(llama):
    factors = load_proxy(llama, None, LORA, SEED).factors
    with pytest.raises(ConfigError, match="too narrow for 14 layers"):
        two_sided(factors, 13, SEED)


def test_a_layer_that_takes_no_part_in_the_pass_is_named(llama):
    targets = ("q_proj", "lm_head")
    proxy = load_proxy(llama, None, LORA.model_copy(update={"targets": targets}), SEED)
    extractor = make_extractor(proxy, Padding, GradientSettings(dim=16), seed=0)
    with pytest.raises(ConfigError, match="lm_head takes 2 dimensions"):
        extractor(rows_of_many_lengths())


def test_fused_experts_are_refused_and_attention_alone_is_not(tmp_path):
    AutoModelForCausalLM.from_config(ARCHITECTURES["mixtral, fused experts"]).save_pretrained(
        tmp_path
    )
    settings = ModelSettings(name=str(tmp_path))
    with pytest.raises(ConfigError, match="MixtralExperts, gradient features need linear layers"):
        load_proxy(settings, None, LORA, SEED)


def test_adapted_embeddings_are_refused(llama):
    lora = LORA.model_copy(update={"targets": ("embed_tokens", "q_proj")})
    with pytest.raises(ConfigError, match="embed_tokens is a Embedding"):
        load_proxy(llama, None, lora, SEED)


def test_logits_made_in_an_unknown_way_are_refused(llama):
    model = load_base(llama)
    forward = model.forward

    def doubled(**inputs):
        output = forward(**inputs)
        output.logits = 2 * output.logits
        return output

    model.forward = doubled
    with pytest.raises(ConfigError, match="its logits are not its output embedding"):
        CausalPass(model, 0)


def test_quantised_weights_are_refused_before_they_are_loaded(tmp_path, llama):
    config = json.loads((Path(llama.name) / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="has quantised weights"):
        load_base(ModelSettings(name=str(tmp_path)))

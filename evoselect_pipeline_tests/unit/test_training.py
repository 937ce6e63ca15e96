"""Law: training starts where the proxy's gradients were taken, and never ends in broken weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from evoselect_pipeline.config import LoraSettings, ModelSettings, TrainSettings
from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.errors import ArtifactError, ConfigError, DataError, NumericsError
from evoselect_pipeline.training.lora import (
    CHECKPOINT_FILES,
    Reporter,
    last_checkpoint,
    seal,
    train_adapter,
)
from evoselect_pipeline.training.models import (
    base_fingerprint,
    load_base,
    load_merged,
    load_proxy,
    with_adapter,
)

LORA = LoraSettings(rank=2)
MODEL = ModelSettings()


def rows(count=12):
    draw = np.random.default_rng(0)
    return [
        Encoded(f"{n:032x}", tuple(int(t) for t in draw.integers(8, 90, 10)), 6)
        for n in range(count)
    ]


def train(tmp_path, name="adapter", adapter=None, **settings):
    wanted = {"steps": 6, "batch_size": 4, "warmup": 0, **settings}
    report = train_adapter(
        MODEL,
        adapter,
        rows(),
        lora=LORA,
        train=TrainSettings(**wanted),
        seed=1,
        adapter_seed=0,
        work_dir=tmp_path / "work",
        out_dir=tmp_path / name,
    )
    return report, load_file(tmp_path / name / "adapter_model.safetensors")


def test_the_loss_falls_and_the_same_seed_gives_the_same_adapter(tmp_path):
    report, first = train(tmp_path, steps=20)
    _, again = train(tmp_path, "again", steps=20)
    assert report.num_steps == 20
    assert report.losses[-1][1] < report.losses[0][1]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not (tmp_path / "work").exists()


def test_training_starts_from_the_factors_that_the_proxy_differentiates(tmp_path):
    proxy = load_proxy(MODEL, None, LORA, seed=0)
    _, trained = train(tmp_path, steps=1, learning_rate=1e-30)
    for name, factor in proxy.factors.items():
        down = trained[f"base_model.model.{name}.lora_A.weight"]
        assert torch.equal(down, factor.down_ri)


def test_a_further_round_goes_on_from_the_adapter_it_is_given(tmp_path):
    _, first = train(tmp_path)
    _, second = train(tmp_path, "second", adapter=tmp_path / "adapter", learning_rate=1e-30)
    assert all(torch.allclose(first[name], second[name], atol=1e-7) for name in first)


def test_a_loss_that_is_not_finite_ends_training_and_saves_nothing(tmp_path):
    with pytest.raises(NumericsError, match=r"not finite|loss is"):
        train(tmp_path, steps=30, learning_rate=1e30, max_grad_norm=1e30)
    assert not (tmp_path / "adapter").exists()


def test_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(DataError, match="no rows to train on"):
        train_adapter(
            MODEL,
            None,
            [],
            lora=LORA,
            train=TrainSettings(),
            seed=0,
            adapter_seed=0,
            work_dir=tmp_path / "work",
            out_dir=tmp_path / "out",
        )


def test_a_gradient_whose_length_overflows_is_refused_for_it_was_clipped_to_nothing():
    state = SimpleNamespace(global_step=3)
    Reporter(None).on_log(None, state, None, logs={"loss": 1.0, "grad_norm": 7.0})
    with pytest.raises(NumericsError, match="no finite length at step 3"):
        Reporter(None).on_log(None, state, None, logs={"loss": 1.0, "grad_norm": float("inf")})


def checkpoint(work_dir, step):
    """A folder as training leaves one, its files sealed."""
    folder = work_dir / f"checkpoint-{step}"
    folder.mkdir()
    for name in CHECKPOINT_FILES:
        (folder / name).write_text("{}")
    seal(folder)
    return folder


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_checkpoint_that_lost_a_file_or_a_bit_is_not_resumed_from(name, tmp_path):
    checkpoint(tmp_path, 5)
    whole = checkpoint(tmp_path, 40)
    (checkpoint(tmp_path, 300) / name).unlink()
    (checkpoint(tmp_path, 1000) / name).write_text("{|")
    (checkpoint(tmp_path, 2000) / "sha256.json").unlink()  # killed before it was whole
    assert last_checkpoint(tmp_path) == str(whole)
    assert last_checkpoint(tmp_path / "nothing") is None


def test_an_adapter_of_another_model_is_refused(tmp_path):
    with_adapter(load_base(MODEL), None, LORA, 0).save_pretrained(str(tmp_path / "adapter"))
    other = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=6,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    with pytest.raises(ArtifactError, match="does not fit the base model"):
        load_merged(ModelSettings(name=str(tmp_path / "other")), tmp_path / "adapter", LORA)


def test_merging_changes_no_logits(tmp_path):
    train(tmp_path, steps=10)
    ids = torch.tensor([rows(1)[0].input_ids])
    merged = load_merged(MODEL, tmp_path / "adapter", LORA)
    adapted = with_adapter(load_base(MODEL), tmp_path / "adapter", LORA, 0).eval()
    base = load_base(MODEL)
    with torch.inference_mode():
        expected = adapted(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=0)
        assert not torch.allclose(base(input_ids=ids).logits, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (ModelSettings(name="./no/such/folder"), "cannot load the model"),
        (ModelSettings(name="no-such-owner/no-such-model"), "cannot load the model"),
    ],
)
def test_a_model_that_is_not_there_is_named(settings, complaint, monkeypatch):
    # What the environment said when the library was imported; else this waits for the network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=complaint):
        load_base(settings)


def test_layers_that_do_not_exist_cannot_be_adapted():
    with pytest.raises(ConfigError, match=r"lora.targets"):
        with_adapter(load_base(MODEL), None, LoraSettings(targets=("nowhere",)), 0)


def test_the_fingerprint_follows_the_weights(tmp_path):
    first = base_fingerprint(MODEL)
    assert base_fingerprint(ModelSettings(max_length=99)) == first
    load_base(MODEL).save_pretrained(tmp_path / "copy")
    assert base_fingerprint(ModelSettings(name=str(tmp_path / "copy"))) != first

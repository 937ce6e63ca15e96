"""Law: a model loads as configured or is refused in one message; its code never runs unasked."""

import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from evoselect_pipeline.config import LoraSettings, ModelSettings, TrainSettings
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR
from evoselect_pipeline.training.lora import train_adapter
from evoselect_pipeline.training.models import (
    base_fingerprint,
    check_model,
    load_base,
    load_encoder,
    load_merged,
    load_proxy,
    load_trainable,
    trainable_fingerprint,
)

needs_4_bit = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes (the extra `qlora`) is not installed"
)
LORA = LoraSettings(rank=2)
UNASKED = r"code of its own.*model\.trust_remote_code"
NF4 = ModelSettings(quantization="nf4")
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({ran!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def change(path: Path, **values) -> None:
    """Set keys of a JSON file; None takes one away."""
    held = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))


@pytest.fixture
def model_dir(tmp_path):
    shutil.copytree(BASE_MODEL_DIR, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def own_code(model_dir, monkeypatch):
    """A model folder with its own code, which leaves a file behind when it is run."""
    cache = str(model_dir.parent / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setattr("sys.path", [*sys.path])  # the cache goes there
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    (model_dir / "own.py").write_text(CODE.format(ran=str(model_dir / "ran")))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change(model_dir / "config.json", model_type="own_llama", auto_map=auto_map)
    return model_dir


def train(tmp_path, model, name="adapter", **settings):
    samples = [sample_from_pair(f"{n} + 1 {'and so on ' * (n % 3)}=", str(n + 1)) for n in range(8)]
    rows, _ = load_encoder(model).encode(samples)
    wanted = {"steps": 6, "batch_size": 4, "warmup": 0, **settings}
    report = train_adapter(
        model,
        None,
        rows,
        lora=LORA,
        train=TrainSettings(**wanted),
        seed=1,
        adapter_seed=0,
        work_dir=tmp_path / "work",
        out_dir=tmp_path / name,
    )
    return report, load_file(tmp_path / name / "adapter_model.safetensors")


def test_code_of_a_model_does_not_run_unasked(own_code):
    for load in (check_model, load_base):
        with pytest.raises(ConfigError, match=UNASKED):
            load(ModelSettings(name=str(own_code)))
    assert not (own_code / "ran").exists()


def test_code_of_a_tokenizer_does_not_run_unasked(own_code):
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    change(own_code / "tokenizer_config.json", **own)
    with pytest.raises(ConfigError, match=UNASKED):
        load_encoder(ModelSettings(name=str(own_code)))
    assert not (own_code / "ran").exists()


def test_code_of_a_trusted_folder_runs_and_counts_as_part_of_the_model(own_code):
    settings = ModelSettings(name=str(own_code), trust_remote_code=True)
    check_model(settings)
    model = load_base(settings)
    assert type(model).__name__ == "OwnModel"
    assert (own_code / "ran").exists()
    shipped = load_base(ModelSettings())
    weights = zip(model.parameters(), shipped.parameters(), strict=True)
    assert all(torch.equal(own, theirs) for own, theirs in weights)
    other = own_code.parent / "other"
    shutil.copytree(own_code, other)
    (other / "own.py").write_text("# changed\n")
    changed = ModelSettings(name=str(other), trust_remote_code=True)
    assert base_fingerprint(changed) != base_fingerprint(settings)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_no_revision_pins_does_not_run(own_code, file):
    elsewhere = {"AutoConfig": "someone/else--own.OwnConfig"}
    change(own_code / file, auto_map=elsewhere)
    for load in (check_model, load_base, load_encoder):
        with pytest.raises(ConfigError, match="another repository"):
            load(ModelSettings(name=str(own_code), trust_remote_code=True))
    assert not (own_code / "ran").exists()


def test_weights_that_may_run_code_are_refused(model_dir):
    torch.save(load_file(model_dir / "model.safetensors"), model_dir / "pytorch_model.bin")
    (model_dir / "model.safetensors").unlink()
    settings = ModelSettings(name=str(model_dir))
    for load in (check_model, load_base, base_fingerprint):
        with pytest.raises(ConfigError, match=r"no \*\.safetensors.*save_pretrained"):
            load(settings)


def test_weights_in_several_files_are_one_model(tmp_path):
    model = load_base(ModelSettings())
    model.save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    sharded = load_base(ModelSettings(name=str(tmp_path / "sharded")))
    weights = zip(sharded.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_a_base_model_without_a_template_takes_one_from_a_file(model_dir, tmp_path):
    own = tmp_path / "chat.jinja"
    shutil.move(model_dir / "chat_template.jinja", own)
    with pytest.raises(ConfigError, match=r"no chat template.*model\.chat_template"):
        check_model(ModelSettings(name=str(model_dir)))
    settings = ModelSettings(name=str(model_dir), chat_template=own)
    sample = sample_from_pair("2 + 2 =", "4")
    assert load_encoder(settings).encode([sample]) == load_encoder(ModelSettings()).encode([sample])
    before = base_fingerprint(settings)
    own.write_text(own.read_text() + " ")
    assert base_fingerprint(settings) != before


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"model\.chat_template .*chat\.jinja: cannot be read"),
        (b"\xff\xfe", r"model\.chat_template .*chat\.jinja: cannot be read"),
        (b"{% for", r"chat template fails.*model\.chat_template"),
        (b"", r"no chat template"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "chat.jinja").write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        check_model(ModelSettings(chat_template=tmp_path / "chat.jinja"))


def test_without_a_padding_token_training_comes_to_the_same_adapter(model_dir, tmp_path):
    change(model_dir / "tokenizer_config.json", pad_token=None)
    padless = ModelSettings(name=str(model_dir))
    tokenizer = load_encoder(padless).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    _, expected = train(tmp_path, ModelSettings())
    _, found = train(tmp_path, padless, "padless")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0)


class GatedHub(BaseHTTPRequestHandler):
    """A hub that lets nobody in who has not accepted the terms."""

    def do_GET(self):
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to this model is restricted")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_): ...


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Name another hub: what the environment says is read once, when the library is imported."""

    def name(endpoint: str, *, offline: bool = False) -> None:
        constants = "huggingface_hub.constants"
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", offline)

    return name


@pytest.mark.parametrize("offline", [True, False])
def test_e13_a_hub_that_cannot_be_reached_is_told(hub, offline, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client tries again, ever more slowly
    hub("http://127.0.0.1:9", offline=offline)
    settings = ModelSettings(name="owner/no-such-model")
    for load in (check_model, load_encoder, base_fingerprint):
        with pytest.raises(ConfigError, match=r"owner/no-such-model.*download it before"):
            load(settings)


def test_e13_a_gated_model_is_told_with_what_opens_it(hub):
    with ThreadingHTTPServer(("127.0.0.1", 0), GatedHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ConfigError, match=r"accept its terms and set HF_TOKEN.*gated"):
            check_model(ModelSettings(name="owner/gated-model"))
        server.shutdown()


def test_quantisation_changes_what_an_adapter_is_trained_on_and_nothing_else():
    plain = ModelSettings()
    assert base_fingerprint(NF4) == base_fingerprint(plain) == trainable_fingerprint(plain)
    assert trainable_fingerprint(NF4) != trainable_fingerprint(plain)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_4_bits_without_the_extra_are_refused_at_once(tmp_path):
    for load in (check_model, load_trainable):
        with pytest.raises(ConfigError, match=r"model\.quantization.*evoselect-pipeline\[qlora\]"):
            load(NF4)
    load_proxy(NF4, None, LORA, seed=0)  # gradients and evaluation need no such thing


@needs_4_bit
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_trained_on_4_bits_merges_into_the_unquantised_base(tmp_path, dtype):
    settings = ModelSettings(quantization="nf4", dtype=dtype)
    check_model(settings)
    base = load_trainable(settings)
    layer = base.get_submodule("model.layers.0.mlp.up_proj")
    assert layer.weight.dtype == torch.uint8
    report, first = train(tmp_path, settings, steps=30, learning_rate=1e-2)
    assert report.losses[-1][1] < report.losses[0][1]
    _, again = train(tmp_path, settings, "again", steps=30, learning_rate=1e-2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    merged = load_merged(settings, tmp_path / "adapter", LORA)
    assert type(merged) is LlamaForCausalLM
    assert {parameter.dtype for parameter in merged.parameters()} == {getattr(torch, dtype)}


@needs_4_bit
def test_training_on_4_bits_starts_from_the_factors_that_the_proxy_differentiates(tmp_path):
    proxy = load_proxy(NF4, None, LORA, seed=0)
    _, trained = train(tmp_path, NF4, steps=1, learning_rate=1e-30)
    for name, factor in proxy.factors.items():
        down = trained[f"base_model.model.{name}.lora_A.weight"]
        assert torch.equal(down, factor.down_ri)

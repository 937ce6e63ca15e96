"""Load base models, tokenizers and adapters through the ordinary transformers and peft calls."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from evoselect_pipeline.core.encoding import Encoder
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.core.representations import LoraFactors
from evoselect_pipeline.errors import ArtifactError, ConfigError
from evoselect_pipeline.training.model_files import (
    loading,
    model_path,
    read_config,
    read_template,
    refuse_foreign_code,
    weight_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evoselect_pipeline.config import LoraSettings, ModelSettings

# peft 0.21 asks transformers 5.23 for an attribute by its old name, each time a model is wrapped.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


@dataclass(frozen=True)
class Proxy:
    """The frozen model whose gradients represent rows, and the adapter to differentiate."""

    model: PreTrainedModel
    factors: dict[str, LoraFactors]
    fingerprint: str


def device() -> torch.device:
    """The device models run on: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_model(settings: ModelSettings) -> Encoder:
    """Look at everything about a model that can be looked at without reading its weights.

    Returns
    -------
    Encoder
        What was loaded for it.

    Raises
    ------
    ConfigError
        If a later load of the model or its tokenizer would fail, as far as this can be known.
    """
    read_config(settings)
    encoder = load_encoder(settings)
    if settings.quantization != "none":
        _refuse_without_4_bit()
    return encoder


def load_base(settings: ModelSettings, *, attention: str | None = None) -> PreTrainedModel:
    """Load a causal LM unquantised, weights from safetensors only.

    Parameters
    ----------
    settings : ModelSettings
        Name or folder and revision.
    attention : str, optional
        As transformers names it; what suits the model and the machine if not given.
    """
    return _load_weights(settings, attn_implementation=attention).to(device())  # type: ignore[arg-type]


def load_trainable(settings: ModelSettings) -> PreTrainedModel:
    """Load the base that an adapter is trained on: in 4 bits if `quantization` says so.

    Everywhere else the base is in `dtype`: no adapter can be merged into 4 bits without rounding
    it, and what serves in the end is the merged model.
    """
    if settings.quantization == "none":
        return load_base(settings)
    _refuse_without_4_bit()
    in_4_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
    )
    model = _load_weights(settings, quantization_config=in_4_bits)
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def load_encoder(settings: ModelSettings) -> Encoder:
    """Load a model's tokenizer and wrap it in the one encoder."""
    path = model_path(settings.name)
    refuse_foreign_code(settings)
    with loading("tokenizer", settings):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    if settings.chat_template is not None:
        tokenizer.chat_template = read_template(settings.chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # batches are padded by position, not by id
    return Encoder(tokenizer, settings.max_length, _stop_ids(path, settings.revision))


def _load_weights(settings: ModelSettings, **how: Any) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    config = read_config(settings)
    with loading("model", settings):
        return AutoModelForCausalLM.from_pretrained(
            model_path(settings.name),
            config=config,
            revision=settings.revision,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            **how,
        )


def _stop_ids(path: str, revision: str | None) -> list[int]:
    """The tokens that end an answer by the model's own generation settings, if it has any."""
    try:
        stops = GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id
    except OSError:
        return []
    return [stops] if isinstance(stops, int) else list(stops or ())


def _refuse_without_4_bit() -> None:
    """Refuse a machine that cannot quantise; trying it on one block is the only sure test."""
    try:
        from bitsandbytes.functional import quantize_4bit  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError(
            "model.quantization: 4 bits need bitsandbytes; install it with"
            " `pip install 'evoselect-pipeline[qlora]'`, or set it to none"
        ) from None
    try:
        quantize_4bit(torch.ones(64, device=device()), quant_type="nf4")
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        raise ConfigError(
            f"model.quantization: bitsandbytes cannot quantise on this machine's {device().type}:"
            f" {error}; use a GPU that it supports, or set it to none"
        ) from error


def with_adapter(
    model: PreTrainedModel,
    adapter: Path | None,
    lora: LoraSettings,
    seed: int,
    *,
    trainable: bool = False,
) -> PeftModel:
    """Put an adapter on a base model: a stored one, or a fresh one that changes nothing yet.

    A fresh adapter is drawn from the seed, so that the proxy differentiates the very parameters
    that training will start from.

    Raises
    ------
    ArtifactError
        If the stored adapter was made for another model, or is not safetensors.
    """
    if adapter is None:
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                return get_peft_model(model, config)
            except ValueError as error:
                raise ConfigError(f"lora.targets {lora.targets!r}: {error}") from error
    if not (adapter / "adapter_model.safetensors").is_file():  # peft would look for a .bin
        raise ArtifactError(
            f"{adapter}: no adapter_model.safetensors; other files of weights may run code when"
            " they are read. Make the round's lora_checkpoint again"
        )
    with warnings.catch_warnings():
        # peft only warns when an adapter does not fit the model, and goes on with a wrong one.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
        except (UserWarning, RuntimeError) as error:
            raise ArtifactError(f"{adapter} does not fit the base model: {error}") from error


def load_proxy(
    settings: ModelSettings, adapter: Path | None, lora: LoraSettings, seed: int
) -> Proxy:
    """Load the proxy with its adapter merged, keeping the factors to differentiate.

    Raises
    ------
    ConfigError
        If an adapted layer is not linear.
    """
    base = load_base(settings, attention=_exact_attention())
    adapted = with_adapter(base, adapter, lora, seed).eval()
    factors = {
        name.removeprefix("base_model.model."): _factors(name, layer)
        for name, layer in adapted.named_modules()
        if isinstance(layer, LoraLayer)
    }
    return Proxy(adapted.merge_and_unload(), factors, _factors_digest(settings, factors))


def _exact_attention() -> str | None:
    """On a GPU fused kernels make a row's gradient depend on its batch; on a CPU they do not."""
    return "eager" if device().type == "cuda" else None


def _factors(name: str, layer: LoraLayer) -> LoraFactors:
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if "default" not in layer.lora_A or weight is None or weight.dim() != 2:
        raise ConfigError(
            f"lora.targets: {name} is a {type(base).__name__}, gradient features need linear"
            " layers; name some, as q_proj, k_proj, v_proj and o_proj, instead of 'all-linear'"
            " (the fused experts of a mixture are none)"
        )
    # peft keeps adapters in float32 whatever the model is in.
    up_ro = _weight(layer.lora_B["default"]).T.contiguous().to(weight.dtype)
    return LoraFactors(
        down_ri=_weight(layer.lora_A["default"]).to(weight.dtype),
        up_ro=up_ro,
        scale=float(layer.scaling["default"]),
        fresh=not up_ro.any(),
    )


def _weight(module: torch.nn.Module) -> torch.Tensor:
    return module.get_parameter("weight").detach().clone()


def load_merged(
    settings: ModelSettings, adapter: Path | None, lora: LoraSettings
) -> PreTrainedModel:
    """Load the student with its adapter merged into the weights, for evaluation."""
    model = load_base(settings)
    if adapter is None:
        return model.eval()
    return with_adapter(model, adapter, lora, seed=0).eval().merge_and_unload()


def _factors_digest(settings: ModelSettings, factors: dict[str, LoraFactors]) -> str:
    """Identify a proxy by its base model and the exact numbers of its adapter."""
    numbers = hashlib.sha256()
    for name, factor in sorted(factors.items()):
        numbers.update(repr(factor.scale).encode())
        for tensor in (factor.down_ri, factor.up_ro):
            numbers.update(name.encode())
            numbers.update(tensor.float().cpu().numpy().tobytes())
    return digest(base_fingerprint(settings), numbers.hexdigest())


def base_fingerprint(settings: ModelSettings) -> str:
    """Identify a base model: by the sha256 of its files in a folder, by commit on the hub.

    A chat template of the user's own decides what the model is asked, so it counts as well.
    """
    folder = Path(model_path(settings.name))
    if folder.is_dir():
        weights = _folder_digest(folder, settings.trust_remote_code)
    else:
        weights = _hub_digest(settings)  # type: ignore[arg-type]
    asked = [] if settings.chat_template is None else [read_template(settings.chat_template)]
    return digest(weights, settings.dtype, *asked)


def trainable_fingerprint(settings: ModelSettings) -> str:
    """Identify what an adapter is trained on: the base, as `quantization` leaves it."""
    base = base_fingerprint(settings)
    return base if settings.quantization == "none" else digest(base, settings.quantization)


@cache
def _folder_digest(folder: Path, runs_code: bool) -> str:
    code = folder.rglob("*.py") if runs_code else ()
    files = sorted([*weight_files(folder), *folder.glob("*.json"), *code])
    return digest([(str(file.relative_to(folder)), _sha256(file)) for file in files])


@cache
def _hub_digest(settings: ModelSettings) -> str:
    with loading("model", settings):
        config = cached_file(settings.name, "config.json", revision=settings.revision)
    # A hub snapshot lies in a folder named by its commit.
    return digest(settings.name, Path(str(config)).parent.name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

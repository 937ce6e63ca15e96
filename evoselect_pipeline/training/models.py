"""Load base models, tokenizers and adapters through the ordinary transformers and peft calls."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from evoselect_pipeline.core.encoding import Encoder
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.core.representations import LoraFactors
from evoselect_pipeline.errors import ArtifactError, ConfigError, DataError
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evoselect_pipeline.config import LoraSettings, ModelSettings

# peft 0.21 asks transformers 5.23 for an attribute by its old name, each time a model is wrapped.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)

PLAYGROUND = "playground"  # the model name that stands for the model shipped with the package


@dataclass(frozen=True)
class Proxy:
    """The frozen model whose gradients represent rows, and the adapter to differentiate."""

    model: PreTrainedModel
    factors: dict[str, LoraFactors]
    fingerprint: str


def device() -> torch.device:
    """The device models run on: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_path(name: str) -> str:
    """The folder or hub name behind a configured model name."""
    return str(BASE_MODEL_DIR) if name == PLAYGROUND else name


def load_base(settings: ModelSettings, *, attention: str | None = None) -> PreTrainedModel:
    """Load a causal LM, weights from safetensors only.

    Parameters
    ----------
    settings : ModelSettings
        Name or folder and revision.
    attention : str, optional
        As transformers names it; what suits the model and the machine if not given.
    """
    transformers_logging.disable_progress_bar()
    path = model_path(settings.name)
    try:
        config = AutoConfig.from_pretrained(path, revision=settings.revision)
        if getattr(config, "quantization_config", None):
            raise ConfigError(
                f"{settings.name!r} has quantised weights, into which no adapter can be merged;"
                " name the model that it was made from"
            )
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            revision=settings.revision,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(_cannot_load("model", settings, error)) from error
    return model.to(device())  # type: ignore[arg-type]


def load_encoder(settings: ModelSettings) -> Encoder:
    """Load a model's tokenizer and wrap it in the one encoder."""
    path = model_path(settings.name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=settings.revision)
    except (OSError, ValueError) as error:
        raise ConfigError(_cannot_load("tokenizer", settings, error)) from error
    return Encoder(tokenizer, settings.max_length, _stop_ids(path, settings.revision))


def _stop_ids(path: str, revision: str | None) -> list[int]:
    """The tokens that end an answer by the model's own generation settings, if it has any."""
    try:
        stops = GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id
    except OSError:
        return []
    return [stops] if isinstance(stops, int) else list(stops or ())


def _cannot_load(what: str, settings: ModelSettings, error: Exception) -> str:
    return (
        f"cannot load the {what} of {settings.name!r} (revision {settings.revision}): expected a"
        f" folder with safetensors weights or a hub name that can be reached. {error}"
    )


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
        If the stored adapter was made for another model.
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
        for tensor in (factor.down_ri, factor.up_ro):
            numbers.update(name.encode())
            numbers.update(tensor.float().cpu().numpy().tobytes())
    return digest(base_fingerprint(settings), numbers.hexdigest())


def base_fingerprint(settings: ModelSettings) -> str:
    """Identify a base model: by the sha256 of its files in a folder, by commit on the hub."""
    return digest(_weights_digest(settings.name, settings.revision), settings.dtype)


@cache
def _weights_digest(name: str, revision: str | None) -> str:
    folder = Path(model_path(name))
    if not folder.is_dir():
        from transformers.utils.hub import cached_file

        config = cached_file(name, "config.json", revision=revision)
        # A hub snapshot lies in a folder named by its commit.
        return digest(name, Path(str(config)).parent.name)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    if not any(file.suffix == ".safetensors" for file in files):
        raise DataError(f"{folder}: no *.safetensors weights in the model folder")
    return digest([(file.name, _sha256(file)) for file in files])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What a model's folder or hub repository says and holds, looked at before weights are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from evoselect_pipeline.errors import ConfigError, where_looked
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR

if TYPE_CHECKING:
    from evoselect_pipeline.config import ModelSettings

PLAYGROUND = "playground"  # the model name that stands for the model shipped with the package


def model_path(name: str) -> str:
    """The folder or hub name behind a configured model name."""
    return str(BASE_MODEL_DIR) if name == PLAYGROUND else name


def read_config(settings: ModelSettings) -> PreTrainedConfig:
    """Read a model's configuration.

    Raises
    ------
    ConfigError
        If it cannot be read, brings code that may not run, is quantised, or has no safe weights.
    """
    path = model_path(settings.name)
    refuse_foreign_code(settings)
    with loading("model", settings):
        config = AutoConfig.from_pretrained(
            path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            f"{settings.name!r} has quantised weights, into which no adapter can be merged;"
            " name the model that it was made from"
        )
    if Path(path).is_dir():
        weight_files(Path(path))
    return config


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder: safetensors, one or several."""
    found = list(folder.glob("*.safetensors"))
    if not found:
        raise ConfigError(
            f"{folder}: no *.safetensors weights; other files of weights, such as"
            " pytorch_model.bin, may run code when they are read. Convert them where you trust"
            " them: load the model with transformers and call save_pretrained"
        )
    return found


def read_template(path: Path) -> str:
    """Read a chat template of the user's own."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"model.chat_template {path}: cannot be read: {error}; name a Jinja file"
            f"{where_looked(path)}"
        ) from None


def refuse_foreign_code(settings: ModelSettings) -> None:
    """Refuse code of a third repository: neither revision nor folder says which version runs."""
    if not settings.trust_remote_code:
        return
    path, revision = model_path(settings.name), settings.revision
    with loading("code", settings):
        model, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
        tokenizer = get_tokenizer_config(path, revision=revision)
    places = json.dumps([model.get("auto_map"), tokenizer.get("auto_map")])
    if "--" in places:  # as transformers marks another repository
        raise ConfigError(
            f"{settings.name!r} runs code from another repository, whose version nothing pins:"
            f" {places}; copy model and code into one folder and name that"
        )


@contextmanager
def loading(what: str, settings: ModelSettings) -> Iterator[None]:
    """Turn what transformers raises into one message that says what to do."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        if "trust_remote_code=True" in str(error):
            why = (
                "it brings code of its own, which is not run. Read that code, then set"
                " model.trust_remote_code, and on the hub model.revision to the commit that you"
                " have read"
            )
        else:
            why = (
                "expected a folder with safetensors weights or a hub name that can be reached; for"
                " a gated model accept its terms and set HF_TOKEN; offline, download it before."
                f" {error}"
            )
        raise ConfigError(
            f"cannot load the {what} of {settings.name!r} (revision {settings.revision}): {why}"
        ) from error

"""Configuration files and `--set`: from YAML to a checked `LineConfig`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import evoselect_pipeline
from evoselect_pipeline.config import LineConfig, spelled_out
from evoselect_pipeline.core.private_text import without_secrets
from evoselect_pipeline.errors import ConfigError

# A folder of further lines, `<line>/defs.yaml`, for who does not want to edit the package's own.
VARIABLE = "EVOSELECT_LINES"
PACKAGED_LINES = Path(evoselect_pipeline.__file__).parent / "defs"


def own_line_files() -> list[Path]:
    """The `defs.yaml` of every line in the folder that `EVOSELECT_LINES` names, if it is set."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise ConfigError(f"{VARIABLE}={folder}: no such folder; it holds <line>/defs.yaml")
    return sorted(Path(folder).glob("*/defs.yaml"))


def file_of_line(line: str) -> Path:
    """The `defs.yaml` of a line that Dagster loads."""
    found = [*sorted(PACKAGED_LINES.glob("*/defs.yaml")), *own_line_files()]
    files = {load_config(file).line: file for file in found}
    if line not in files:
        raise ConfigError(
            f"line {line!r}: none of that name among {', '.join(files)} in {PACKAGED_LINES} and"
            f" ${VARIABLE}; name its file with --config"
        )
    return files[line]


def parse_config(data: Any, where: str, overrides: Sequence[str] = ()) -> LineConfig:
    """Check a decoded configuration.

    Parameters
    ----------
    data : mapping
        The tree itself, or a `defs.yaml` that holds it under `attributes`.
    where : str
        File name for messages.
    overrides : sequence of str
        `key.path=value` pairs that win over the file; values are read as YAML.

    Raises
    ------
    ConfigError
        Naming the key, what was found, and for an unknown key the nearest known one.
    """
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected keys and values, found {type(data).__name__}")
    if "attributes" in data and "type" in data:
        return parse_config(data["attributes"], where, overrides)
    data = dict(data)
    for override in overrides:
        _override(data, override)
    try:
        return LineConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> LineConfig:
    """Read a configuration file in YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    return parse_config(_decoded(text, f"{path}: is"), str(path), overrides)


def _decoded(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    # PyYAML lets errors of the conversions through, as of 2001-99-99 or `!!bool x`.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{what} not valid YAML: {error}") from None


def _override(data: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected KEY=VALUE, as in selection.ratio=0.1")
    value = _decoded(text, f"--set {override!r}: the value is")
    *parents, last = key.split(".")
    for parent in parents:
        child = spelled_out(data.get(parent))
        data[parent] = dict(child) if isinstance(child, dict) else {}
        data = data[parent]
    data[last] = value


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        if len(path) > 1 and path[0] in ("task", "generator"):
            del path[1]  # pydantic names the kind it took the value for
        key = ".".join(path)
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            near = difflib.get_close_matches(path[-1], _known_keys(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            if near == path[-1:]:
                hint = " here; it belongs into another part"
            lines.append(f"{where}: unknown key {key!r}{hint}")
        else:
            shown = without_secrets(repr(item["input"]))
            found = "" if isinstance(item["input"], dict) else f", found {shown}"
            lines.append(f"{where}: {key or 'config'}: {item['msg']}{found}")
    return "\n".join(lines)


@cache
def _known_keys() -> list[str]:
    """Every key of the tree, for naming the nearest one."""
    schema = LineConfig.model_json_schema()
    keys = set(schema["properties"])
    for definition in schema["$defs"].values():
        keys |= set(definition.get("properties", ()))
    return sorted(keys)

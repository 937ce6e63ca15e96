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
from evoselect_pipeline.config import LineConfig, kind_of, kinds_apart, spelled_out
from evoselect_pipeline.core.private_text import without_secrets
from evoselect_pipeline.errors import ConfigError, cannot_be_read

# A folder of further lines, `<line>/defs.yaml`, for who does not want to edit the package's own.
VARIABLE = "EVOSELECT_LINES"
PACKAGED_LINES = Path(evoselect_pipeline.__file__).parent / "defs"
KINDRED = ("task", "generator")  # parts whose kind decides about their keys
AS_PATH, AS_DATASET = "lax-or-strict[", "HubRows"  # what pydantic calls the two forms of `Rows`


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
        Naming the key, what was found, and for an unknown key what may be meant.
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
        raise ConfigError(_explain(error, data, where)) from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> LineConfig:
    """Read a configuration file in YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(cannot_be_read(path, error)) from None
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


def _explain(error: ValidationError, data: dict, where: str) -> str:
    # With the wrong kind, every key of the right one is unknown: the cause comes first.
    kinds = {part: str(kind_of(data.get(part, {}))) for part in KINDRED}
    are_known = all(section in _sections() for section in kinds.items())
    apart = kinds_apart(*kinds.values()) if are_known else ""
    items = error.errors()
    lines = [f"{where}: {apart}"] if apart and any(item["loc"] for item in items) else []
    for item in items:
        path = [str(part) for part in item["loc"]]
        if path and path[-1].startswith(AS_PATH) and isinstance(item["input"], dict):
            continue  # it is a dataset, whose own mistake is told, too
        # pydantic names the kind it took the value for
        kind = path.pop(1) if len(path) > 1 and path[0] in KINDRED else ""
        path = [part for part in path if not part.startswith((AS_PATH, AS_DATASET))] or path
        key = ".".join(path)
        shown = without_secrets(repr(item["input"]))
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            hint = _hint(path, kind, spelled_out(data.get(path[0])))
            lines.append(f"{where}: unknown key {key!r}{hint}")
        elif item["type"] == "union_tag_invalid":
            found = item.get("ctx", {})["tag"]
            known = _kinds_of(key)
            near = _nearest(found, known)
            lines.append(
                f"{where}: {key}.kind: expected one of {', '.join(known)}, found"
                f" {without_secrets(repr(found))}{near}"
            )
        elif item["type"] == "union_tag_not_found":
            known = ", ".join(_kinds_of(key))
            lines.append(
                f"{where}: {key}: expected keys and values, and as its kind one of {known};"
                f" found {shown}"
            )
        else:
            found = "" if isinstance(item["input"], dict) else f", found {shown}"
            place = f"{where}: {key}" if key else where
            lines.append(f"{place}: {item['msg'].removeprefix('Value error, ')}{found}")
    return "\n".join(lines)


def _hint(path: Sequence[str], kind: str, given: Any) -> str:
    """What may be meant by a key that its section does not know; `given` is its outermost one."""
    *parents, key = path
    place = ".".join(parents)
    sections = _sections()
    if place in KINDRED:
        having = [other for other in _kinds_of(place) if key in sections[place, other]]
        if having and isinstance(given, dict) and "kind" not in given:
            return f"; `{place}.kind: {' or '.join(having)}` is missing"
        if having:
            return f" of kind {kind}; `{place}.kind: {' or '.join(having)}` has it"
    elsewhere = [other or "the top level" for (other, _), keys in sections.items() if key in keys]
    if elsewhere:
        return f" here; it belongs into {' or '.join(dict.fromkeys(elsewhere))}"
    known = sections[place, kind if place in KINDRED else ""]
    return (
        _nearest(key, known) or f"; the keys of {place or 'the top level'} are {', '.join(known)}"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _kinds_of(part: str) -> list[str]:
    return [kind for place, kind in _sections() if place == part]


@cache
def _sections() -> dict[tuple[str, str], list[str]]:
    """The keys of every section, by its place in the tree and, for `KINDRED`, its kind."""
    schema = LineConfig.model_json_schema()
    found: dict[tuple[str, str], list[str]] = {}

    def look(node: dict[str, Any], place: str) -> None:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        for option in (*node.get("anyOf", ()), *node.get("oneOf", ())):
            look(option, place)
        if keys := node.get("properties"):
            found[place, keys.get("kind", {}).get("const", "")] = list(keys)
            for key, child in keys.items():
                look(child, f"{place}.{key}" if place else key)

    look(schema, "")
    return found

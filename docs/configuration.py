"""Write docs/configuration.md, the reference of all keys: `python docs/configuration.py`.

Everything in it comes from the schema of `LineConfig`: types, defaults and descriptions are written
once, beside the fields themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evoselect_pipeline.config import LineConfig

PAGE = Path(__file__).with_suffix(".md")
INTRO = """\
# Configuration

Every key of a line's configuration, written by `python docs/configuration.py` from the schema that
checks it. The keys stand at the top of a file for `--config`, or under `attributes` in a line's
`defs.yaml`; `--set selection.ratio=0.1` sets one on the command line and wins over the file. A key
that is not here is refused, and the nearest one named. *none* means that the key may be left out,
or be `null`. Where a mapping's `kind` alone may stand in its place, as in `engine: ray`, the type
says so.
"""
WHOLE = "The whole line"
Schema = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A mapping of the tree: where it was met first, its heading, and its schema."""

    path: str
    heading: str
    schema: Schema

    @property
    def link(self) -> str:
        """Where GitHub puts the heading."""
        return "#" + re.sub(r"[^\w\- ]", "", self.heading.lower()).replace(" ", "-")

    def key(self, name: str) -> str:
        """The full path of one of its keys."""
        return f"{self.path}.{name}" if self.path else name


def page() -> str:
    """The whole page."""
    parts, definitions = all_parts()
    tables = (table(part, parts, definitions) for part in parts.values())
    return INTRO + "".join(f"\n{text}" for text in tables)


def all_parts() -> tuple[dict[str, Part], Schema]:
    """Every mapping of the tree by the name of its definition, and all definitions."""
    schema = LineConfig.model_json_schema()
    definitions = schema.get("$defs", {})
    parts = {"LineConfig": Part("", WHOLE, schema)}
    find_parts(parts["LineConfig"], definitions, parts)
    return parts, definitions


def all_keys() -> set[str]:
    """Every key by its full path, those of all kinds together."""
    parts, _ = all_parts()
    return {part.key(name) for part in parts.values() for name in part.schema["properties"]}


def find_parts(whole: Part, definitions: Schema, parts: dict[str, Part]) -> None:
    """Add the mappings below one, in the order of its keys; of a shared one, the first place."""
    for name, found in whole.schema["properties"].items():
        path = whole.key(name)
        for definition in references(found):
            schema = definitions[definition]
            if definition in parts or "properties" not in schema:
                continue
            kind = schema["properties"].get("kind", {}).get("const")
            heading = f"`{path}` of kind `{kind}`" if kind else f"`{path}`"
            parts[definition] = Part(path, heading, schema)
            find_parts(parts[definition], definitions, parts)


def references(found: Schema) -> Iterator[str]:
    """The definitions that a value may be one of, or a list or mapping of."""
    if "$ref" in found:
        yield found["$ref"].rpartition("/")[2]
    nested = [*found.get("anyOf", ()), *found.get("oneOf", ()), *found.get("prefixItems", ())]
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            nested.append(found[key])
    for choice in nested:
        yield from references(choice)


def table(part: Part, parts: dict[str, Part], definitions: Schema) -> str:
    """A heading, what the mapping is for, and a line for every key."""
    lines = [f"## {part.heading}", "", first_paragraph(part.schema), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, found in keys_of(part):
        cells = (
            f"`{part.key(name)}`",
            in_words(found, parts, definitions),
            default(found, required=name in part.schema.get("required", ())),
            meaning(found, definitions),
        )
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def keys_of(part: Part) -> list[tuple[str, Schema]]:
    """The keys in the order of the fields, `kind` before all others."""
    return sorted(part.schema["properties"].items(), key=lambda item: item[0] != "kind")


def in_words(found: Schema, parts: dict[str, Part], definitions: Schema) -> str:
    """A value's type for people."""

    def words(part: Schema) -> str:
        return in_words(part, parts, definitions)

    if "$ref" in found:
        name = found["$ref"].rpartition("/")[2]
        return linked(parts[name]) if name in parts else words(definitions[name])
    if choices := found.get("anyOf") or found.get("oneOf"):
        told = [words(choice) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(told)) + ", or none" * (len(told) < len(choices))
    if "const" in found:
        return as_code(found["const"])
    if "enum" in found:
        return "one of " + ", ".join(map(as_code, found["enum"]))
    match found.get("type"):
        case "boolean":
            return "true or false"
        case "integer" | "number" as kind:
            return bounded("whole number" if kind == "integer" else "number", found)
        case "string":
            return "path" if "path" in found.get("format", "") else "text"
        case "array" if "prefixItems" in found:
            return "list of " + ", then ".join(map(words, found["prefixItems"]))
        case "array":
            return f"list of {words(found.get('items', {}))}"
        case "object":
            return "mapping"
    return "anything"


def linked(part: Part) -> str:
    """A link to a mapping's own keys."""
    kind = part.schema["properties"].get("kind", {}).get("const")
    return f"[kind `{kind}`]({part.link})" if kind else f"[keys of `{part.path}`]({part.link})"


def bounded(noun: str, found: Schema) -> str:
    """A number with its limits."""
    limits = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    told = [f"{word} {found[key]:g}" for key, word in limits.items() if key in found]
    return " ".join([noun, " and ".join(told)]).strip()


def default(found: Schema, *, required: bool) -> str:
    """What holds where the key is left out; a mapping's keys have their own."""
    if required:
        return "**required**"
    value = found.get("default")
    if isinstance(value, dict):
        if "kind" in value:
            return as_code(value["kind"])
        return "" if value else "none"
    if "default" not in found:
        return ""
    return "none" if value is None else as_code(value)


def meaning(found: Schema, definitions: Schema) -> str:
    """A key's description, or that of the one mapping that it holds."""
    own = [definitions[name] for name in references(found)]
    told = found.get("description") or (first_paragraph(own[0]) if len(own) == 1 else "")
    return " ".join(told.split())


def first_paragraph(schema: Schema) -> str:
    """What a definition says of itself."""
    return " ".join(schema.get("description", "").partition("\n\n")[0].split())


def as_code(value: Any) -> str:
    """A value as it stands in YAML."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""The configuration's keys and defaults are what the committed snapshot says.

Users' files name these keys, and defaults decide what `evoselect run` computes. After a deliberate
change: `python evoselect_pipeline_tests/test_config_schema.py` writes the snapshot anew.
"""

import json
from pathlib import Path
from typing import Any

from evoselect_pipeline.config import LineConfig

SNAPSHOT = Path(__file__).parent / "snapshots/config_schema.json"
REQUIRED = "<required>"


def described() -> dict[str, dict[str, Any]]:
    """Keys and defaults of every part of the tree; descriptions and bounds may change freely."""
    schema = LineConfig.model_json_schema()
    parts = {"LineConfig": schema, **schema["$defs"]}
    return {
        name: {key: default_of(found) for key, found in sorted(part["properties"].items())}
        for name, part in sorted(parts.items())
    }


def default_of(found: dict[str, Any]) -> Any:
    # A nested part's own defaults stand under its own name.
    if "$ref" in found:
        return {"part": found["$ref"].rpartition("/")[2]}
    return found.get("default", REQUIRED)


def test_keys_and_defaults_equal_the_snapshot():
    assert described() == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    SNAPSHOT.parent.mkdir(exist_ok=True)
    SNAPSHOT.write_text(json.dumps(described(), indent=1) + "\n", encoding="utf-8")

"""The real `evoselect` in a process of its own, on rounds small enough for tests."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
IS_LONG = os.environ.get("EVOSELECT_LONG") == "1"

TINY = {
    "generator.num_candidates": 200,
    "train.steps": 5,
    "gradients.dim": 64,
    "task.num_targets": 8,
    "task.num_validation": 10,
    "task.num_test": 20,
    "evaluation.max_new_tokens": 4,
    "promotion.tolerance": 2,  # whatever five steps do to the accuracy, the adapter is promoted
}


def overrides(**changes: Any) -> list[str]:
    """`--set` options of a tiny round; `train__steps=9` changes `train.steps`."""
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def write_line(folder: Path, line: str, **changes: Any) -> Path:
    """A tiny line of the user's own in a folder for `EVOSELECT_LINES`; returns its file."""
    tree: dict[str, Any] = {"line": line}
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    for key, value in settings.items():
        *parents, name = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    file = folder / line / "defs.yaml"
    file.parent.mkdir(parents=True)
    component = "evoselect_pipeline.components.EvolutionLine"
    file.write_text(yaml.safe_dump({"type": component, "attributes": tree}))
    return file


def environment(fault: str = "") -> dict[str, str]:
    """The variables that a command is started with."""
    variables = {
        **os.environ,
        "EVOSELECT_FAULT": fault,
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    # Dagster's own commands must not find the instance of a test in this process.
    variables.pop("DAGSTER_HOME", None)
    return variables


def start(
    *arguments: object, cwd: Path = REPOSITORY, program: str = "evoselect"
) -> subprocess.Popen:
    """Start a command of the virtual environment."""
    return subprocess.Popen(
        [BIN / program, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*arguments: object, **options: Any) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    child = start(*arguments, **options)
    out, err = child.communicate(timeout=300)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def manifests(home: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every published artifact's manifest, by its path in the home."""
    return {
        str(path.parent.relative_to(home / "lines")): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted((home / "lines").rglob("manifest.json"))
        if not any(part.startswith(".") for part in path.relative_to(home).parts)
    }

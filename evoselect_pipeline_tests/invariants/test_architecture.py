"""The code keeps its shape: a pure core, one way of dependence, files that fit in a head."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "evoselect_pipeline"
TESTS = REPOSITORY / "evoselect_pipeline_tests"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 400

# A folder may use those of its own rank and of lower ranks.
RANKS = {
    "addresses": 0,
    "errors": 0,
    "progress": 0,
    "templates": 0,
    "user_code": 0,
    "core": 1,
    "playground": 2,
    "report": 2,
    "stores": 2,
    "config_rows": 2,
    "config": 3,
    "config_file": 3,
    "generation": 3,
    "training": 3,
    "evaluation": 3,
    "rounds": 4,
    "bench": 5,
    "components": 5,
    "commands": 5,
    "definitions": 6,
    "defs": 6,
    "cli": 6,
    "cli_options": 6,
    "bench_cli": 6,
}
IMPURE = {"dagster", "mlflow", "lancedb"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            if node.module == PACKAGE.name:
                yield from ((node.lineno, f"{PACKAGE.name}.{alias.name}") for alias in node.names)


def place_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_the_core_knows_no_orchestrator_tracker_or_database():
    found = [
        f"{path.name}:{line}: {name}"
        for path in (PACKAGE / "core").glob("*.py")
        for line, name in imports(path)
        if name.split(".")[0] in IMPURE
    ]
    assert not found


def test_dependence_goes_one_way():
    found = []
    for path in MODULES:
        if path.name == "__init__.py" and path.parent == PACKAGE:
            continue
        for line, name in imports(path):
            parts = name.split(".")
            if parts[0] == PACKAGE.name and len(parts) > 1:
                used, user = RANKS.get(parts[1], 0), RANKS[place_of(path)]
                if used > user:
                    found.append(f"{path.relative_to(REPOSITORY)}:{line}: {name}")
    assert not found


def test_no_stage_of_a_round_knows_dagster():
    users = {
        place_of(path)
        for path in MODULES
        for _, name in imports(path)
        if name.split(".")[0] == "dagster"
    }
    # `stores` creates the home's Dagster instance, beside the other databases.
    assert users <= {"components", "defs", "definitions", "commands", "stores"}


@pytest.mark.parametrize("folder", [PACKAGE, TESTS], ids=lambda folder: folder.name)
def test_no_file_is_too_long(folder):
    lengths = {
        str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines())
        for path in folder.rglob("*.py")
    }
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}


def test_every_fault_point_is_tried_by_a_test():
    tests = "".join(path.read_text(encoding="utf-8") for path in (TESTS / "faults").glob("*.py"))
    points = [
        point
        for path in MODULES
        for point in re.findall(r'\bfault\(f?"([^"]+)"\)', path.read_text(encoding="utf-8"))
    ]
    assert len(points) > 10
    for point in points:
        # A name in braces is filled in when the point is passed.
        pattern = re.sub(r"\\\{\w+\\\}", "[a-z]+", re.escape(point))
        assert re.search(rf'"{pattern}[:"]', tests), f"{point} is never tried"

"""The page on operations leaves out no case and no fault point, and names tests that exist."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "evoselect_pipeline"
PAGE = (TESTS.parent / "docs/operations.md").read_text(encoding="utf-8")
CASES = {"A": 11, "B": 9, "C": 10, "D": 18, "E": 13, "F": 17, "G": 14}
PROMISES = [f"P{number}" for number in range(1, 11)]
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
ROW = re.compile(r"^\| (\w+) \|(.*)\|$", re.MULTILINE)
POINT = re.compile(r"^\| `([\w:{}]+)` \| `([\w/.]+)::(\w+)` \| .+ \|$", re.MULTILINE)
LEAST_REASON = 20  # characters of what stands where there is no test


def section(title: str) -> str:
    """A section of the page, down to the next one of its rank."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[tuple[str, list[str]]]:
    """The rows of a section's tables, by their first cell; heads and rules are none."""
    found = ROW.findall(section(title))
    return [(name, rest.split(" | ")) for name, rest in found if re.fullmatch(r"[A-Z]\d+", name)]


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def points(path: Path) -> Iterator[tuple[str, str, str]]:
    """Each fault point of a file: its name, with braces for what is filled in, file, function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for outer in ast.walk(tree):
        if not isinstance(outer, ast.FunctionDef):
            continue
        for node in ast.walk(outer):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fault":
                name = ast.unparse(node.args[0]).removeprefix("f").strip("'")
                yield name, str(path.relative_to(PACKAGE)), outer.name


def test_every_case_has_one_row():
    told = [name for name, _ in rows("Fault cases")]
    wanted = [f"{letter}{n}" for letter, most in CASES.items() for n in range(1, most + 1)]
    assert len(wanted) == 92
    assert Counter(told) == Counter(wanted)


def test_every_promise_is_held_by_a_test():
    told = dict(rows("Promises"))
    assert list(told) == PROMISES
    assert all(NAMED.search(cells[-1]) for cells in told.values())


def test_every_case_has_a_test_or_a_reason():
    for name, cells in rows("Fault cases"):
        assert len(cells) == 3, f"{name}: a case has what happens, what you see, and its test"
        assert NAMED.search(cells[-1]) or len(cells[-1].strip()) >= LEAST_REASON, name


@pytest.mark.parametrize(
    ("path", "name"), sorted({found for found in NAMED.findall(PAGE) if "test_" in found[0]})
)
def test_a_test_that_the_page_names_exists(path, name):
    assert name in functions(TESTS / path)


def test_the_list_of_fault_points_is_complete():
    told = POINT.findall(section("Fault points"))
    assert len(told) == len(set(told))
    assert set(told) == {point for path in PACKAGE.rglob("*.py") for point in points(path)}

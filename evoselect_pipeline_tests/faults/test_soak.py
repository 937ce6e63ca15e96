"""Fifty rounds in one process: memory, handles, disk and time of a round stay flat.

What a round leaves behind is its own; what grows with the number of rounds is measured and bounded.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from evoselect_pipeline_tests.integration.process import IS_LONG, finish, overrides, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not IS_LONG, reason="takes half an hour; set EVOSELECT_LONG=1"),
]

NUM_ROUNDS = 50
SETTLED = 10  # rounds until caches are warm
# More a round, after these. Objects do not pile up: after glibc's `malloc_trim` nine rounds in one
# process held what three did. What grows is what the allocator keeps for itself.
MOST_MEMORY_MB = 4.0
MOST_HANDLES = 0.2
MOST_SLOWER = 0.5  # share by which the last ten rounds may be slower than the first ten settled
PARTS = ("lines", "lance", "mlflow.db", "mlflow_artifacts", "dagster")


def disk_mb(path: Path) -> float:
    return sum(map(size, [path] if path.is_file() else path.rglob("*"))) / 2**20


def size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # the run that is watched has just moved it to its place
        return 0


def memory_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """What the process has worked; unlike the time it took, it does not tell of the neighbours."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def growth(values: list[float]) -> float:
    """Slope of a straight line through the settled rounds, in units a round."""
    settled = values[SETTLED:]
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0])


@pytest.fixture(scope="module")
def soaked(tmp_path_factory):
    """The home after all rounds, and what was measured when each of them ended."""
    home = tmp_path_factory.mktemp("soak") / "home"
    child = start("run", "--home", home, "--rounds", NUM_ROUNDS, "--format", "json", *overrides())
    measured, worked = [], 0.0
    for number in range(NUM_ROUNDS):
        while not (home / f"lines/playground/{number:04d}/round_report/manifest.json").exists():
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.02)
        before, worked = worked, cpu_seconds(child.pid)
        measured.append(
            {"cpu_seconds": worked - before, "memory_mb": memory_mb(child.pid)}
            | {"handles": len(os.listdir(f"/proc/{child.pid}/fd"))}
            | {f"{part}_mb": disk_mb(home / part) for part in PARTS}
        )
        print(json.dumps({key: round(value, 2) for key, value in measured[-1].items()}), flush=True)
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    return home, {key: [entry[key] for entry in measured] for key in measured[0]}


def test_memory_and_handles_do_not_grow_with_the_rounds(soaked):
    measured = soaked[1]
    assert growth(measured["memory_mb"]) < MOST_MEMORY_MB
    assert growth(measured["handles"]) < MOST_HANDLES


def test_a_late_round_is_as_much_work_as_an_early_one(soaked):
    seconds = soaked[1]["cpu_seconds"]
    early, late = np.median(seconds[SETTLED : SETTLED + 10]), np.median(seconds[-10:])
    assert late < (1 + MOST_SLOWER) * early


def test_the_disk_grows_by_the_same_for_every_round(soaked):
    for part in PARTS:
        values = soaked[1][f"{part}_mb"]
        half = NUM_ROUNDS // 2
        first, second = values[half] - values[SETTLED], values[-1] - values[half]
        assert second / (NUM_ROUNDS - 1 - half) < 1.5 * first / (half - SETTLED) + 0.1, part


def test_nothing_is_wrong_with_a_home_of_many_rounds(soaked):
    ended = finish("check", "--strict", "--home", soaked[0], *overrides())
    assert ended.returncode == 0, ended.stdout + ended.stderr

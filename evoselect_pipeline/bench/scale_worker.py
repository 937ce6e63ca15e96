"""One measurement of `bench scale`, in a process of its own: its peak memory is nobody else's.

Called as `python -m evoselect_pipeline.bench.scale_worker TASK`, a `Task` as JSON. Writes a JSON
line for each repeat, and one with facts at the end.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from evoselect_pipeline.bench.memory import status_kib
from evoselect_pipeline.core.capped import integer_quotas
from evoselect_pipeline.core.evolve_weights import evolve_weights
from evoselect_pipeline.core.evoselect import HELD_PER_ROW, Alignment
from evoselect_pipeline.core.explain import explain_rejections, make_picks, nearest_targets, serves
from evoselect_pipeline.core.selection import Candidates, Selection, SelectionProblem, Targets
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.core.streaming import (
    CHUNK_ROWS,
    StreamedChoice,
    capped_quota_streamed,
    choose_streamed,
    cost_blocks,
    reserve_quotas,
    stream_reserve,
)

REACH = 1.0  # a row must point towards its target at all
DEDUP_COSINE = 0.95
MAX_REPEAT_SECONDS = 60.0  # no further repeat of a measurement starts after this
MAX_PIVOTS = 10**8
GATHERED_ROWS = 1024  # the system maps more pages around each that is touched
SETTINGS = EvoSelectSettings(rounding="capped", reach=REACH, dedup_cosine=DEDUP_COSINE)
Facts = dict[str, Any]
Account = Callable[[], Facts]  # what was found, told outside of the measured time


@dataclass(frozen=True)
class Task:
    """What to measure, on which files; vectors [n, D] and targets [M, D] are .npy."""

    what: str
    vectors: str
    targets: str
    num_rows: int
    repeats: int
    out: str

    def to_json(self) -> str:
        """The argument that the worker reads."""
        return json.dumps(asdict(self))


class MappedRows:
    """Rows of a .npy file, mapped anew for every look.

    A chunk's pages leave the process with the chunk, so the process's peak is what it uses above
    the mapped vectors; in one lasting map they would stay resident and hide it.
    """

    def __init__(self, path: str) -> None:
        whole = np.load(path, mmap_mode="r")
        self._map = (path, whole.dtype, "r", whole.offset, whole.shape)

    def __len__(self) -> int:
        return self._map[-1][0]

    def __getitem__(self, index: Any, /) -> np.ndarray:
        if not isinstance(index, np.ndarray):
            return np.memmap(*self._map)[index]
        parts = range(0, len(index), GATHERED_ROWS)
        return np.concatenate([np.memmap(*self._map)[index[i : i + GATHERED_ROWS]] for i in parts])


def similarity_pass(vectors: MappedRows, targets: Targets) -> None:
    """X @ Y^T in chunks, each thrown away: the yardstick."""
    towards = np.ascontiguousarray(targets.gradients.T)
    for start in range(0, len(vectors), CHUNK_ROWS):
        _ = np.asarray(vectors[start : start + CHUNK_ROWS], dtype=np.float32) @ towards


def capped(vectors: MappedRows, targets: Targets, task: Task) -> Account:
    """The exact choice, streamed in one pass."""
    plan = choose_streamed(vectors, targets, task.num_rows)
    return lambda: {"cost": plan.total_cost, "num_chosen": len(plan.rows)}


def decisions(vectors: MappedRows, targets: Targets, task: Task) -> Account:
    """Copies refused in stages, reasons, and a decision per row written to a Parquet file."""
    found = capped_quota_streamed(
        vectors,
        lambda rows: _problem(vectors, targets, rows),
        targets,
        Budget(rows=task.num_rows),
        reach=REACH,
        dedup_cosine=DEDUP_COSINE,
    )
    _write_decisions(found, targets, task.out)
    chosen = found.cost[found.choice.rows, found.choice.targets]
    return lambda: {
        "cost": float(chosen.sum()),
        "num_chosen": len(chosen),
        "num_passes": found.num_passes,
        "num_held": len(found.reserve.rows),
    }


def staged(vectors: MappedRows, targets: Targets, task: Task) -> Account:
    """EvoSelect's weights and choice, on the rows that a transport of four times as many holds."""
    quotas = reserve_quotas(targets, task.num_rows, HELD_PER_ROW)
    reserve = stream_reserve(vectors, targets, quotas)
    problem = _problem(vectors, targets, reserve.rows)
    selection = select(problem, Budget(rows=task.num_rows), 0, "evoselect", SETTINGS)
    return lambda: {**_told(selection), "num_held": len(reserve.rows)}


def shipped(vectors: MappedRows, targets: Targets, task: Task) -> Account:
    """`select` as it is shipped: every row read into memory, weighed or not, and told why."""
    problem = _problem(vectors, targets, np.arange(len(vectors)))
    selection = select(problem, Budget(rows=task.num_rows), 0)
    return lambda: {**_told(selection), "num_held": selection.diagnostics["num_weighed"]}


def pot_emd(vectors: MappedRows, targets: Targets, task: Task) -> Account:
    """POT's exact solver on the whole dense problem; a spare target takes the unused rows."""
    from ot.lp import emd2

    cost = np.zeros((len(vectors), len(targets) + 1))
    for start, block in cost_blocks(vectors, targets.gradients):
        cost[start : start + len(block), :-1] = block
    quotas = integer_quotas(targets.weights, task.num_rows)
    demand = np.append(quotas, len(vectors) - task.num_rows).astype(np.float64)
    value = emd2(np.ones(len(vectors)), demand, cost, numItermax=MAX_PIVOTS)
    return lambda: {"cost": float(np.asarray(value)), "num_chosen": task.num_rows}


def evolve(vectors: MappedRows, targets: Targets, task: Task) -> Account:
    """EvoSelect's weights of all rows, in memory; the account then chooses by them."""
    problem, budget = _problem(vectors, targets, np.arange(len(vectors))), Budget(task.num_rows)
    evolution = evolve_weights(problem, budget, SETTINGS)

    def account() -> Facts:
        ids = problem.candidates.sample_ids
        alignment = Alignment(np.arange(len(ids)), ids, targets.sample_ids, evolution)
        selection = select(problem, budget, 0, "evoselect", SETTINGS, alignment)
        return {**_told(selection), "num_updates": len(evolution.trace)}

    return account


MEASURES: dict[str, Callable[[MappedRows, Targets, Task], Account]] = {
    "capped_transport": capped,
    "capped_with_decisions": decisions,
    "staged_evoselect": staged,
    "select": shipped,
    "pot_emd": pot_emd,
    "evolve_weights": evolve,
}
YARDSTICK = "similarity_pass"


def measure(task: Task) -> None:
    """Repeat the task, each time after one similarity pass, and write what was found."""
    vectors = MappedRows(task.vectors)
    target_vectors = np.load(task.targets)
    names = tuple(f"target-{j:04d}" for j in range(len(target_vectors)))
    targets = Targets(names, target_vectors, np.zeros(len(names)), ("",) * len(names))
    _import_lazy_ones()
    before = peak_mb()
    similarity_pass(vectors, targets)  # the file enters the page cache, and BLAS its buffers
    account: Account = dict
    started = time.perf_counter()
    for _ in range(task.repeats):
        yardstick, _ = _timed(lambda: similarity_pass(vectors, targets))
        seconds = yardstick
        if task.what != YARDSTICK:
            seconds, account = _timed(lambda: MEASURES[task.what](vectors, targets, task))
        print(json.dumps({"seconds": seconds, "similarity_pass": yardstick}), flush=True)
        if time.perf_counter() - started > MAX_REPEAT_SECONDS:
            break
    memory = {"peak_mb": peak_mb(), "peak_before_mb": before}
    print(json.dumps(memory | account()), flush=True)


def peak_mb() -> float:
    """The most memory this process has had resident, its libraries included."""
    if Path("/proc/self/status").is_file():
        return status_kib("VmHWM") / 1e3
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = work()
    return time.perf_counter() - started, value


def _import_lazy_ones() -> None:
    """Import what the measured code imports on first use: that is no part of its time."""
    for name in ("ot.bregman", "ot.lp", "polars", "scipy.stats"):
        import_module(name)


def _told(selection: Selection) -> Facts:
    chosen = sorted(int(sample_id) for sample_id in selection.selected_ids)
    cost = sum(pick.cost for pick in selection.picks)
    return {"cost": cost, "num_chosen": len(chosen), "chosen": chosen}


def _problem(vectors: MappedRows, targets: Targets, rows: np.ndarray) -> SelectionProblem:
    ids = tuple(f"{row:08d}" for row in rows)
    ones = np.ones(len(rows))
    gradients = np.array(vectors[rows], dtype=np.float32)
    sources = ("synthetic",) * len(rows)
    return SelectionProblem(Candidates(ids, gradients, ones, ones, ones, sources, ids), targets)


def _write_decisions(found: StreamedChoice, targets: Targets, path: str) -> None:
    """A line per row: stage, nearest target and cosine; reasons for the rows of the reserve."""
    import polars as pl

    choice, problem, reserve = found.choice, found.problem, found.reserve
    sentences = [serves(targets, j) for j in choice.targets]
    picks = make_picks(problem, choice, found.cost, sentences)
    rejections = explain_rejections(
        problem, choice, nearest_targets(found.cost), REACH, DEDUP_COSINE
    )
    stage = np.where(reserve.nearest_cosine < 1.0 - REACH, "beyond_reach", "not_needed")
    told = pl.DataFrame(
        [(int(p.sample_id), "chosen", p.reason) for p in picks]
        + [(int(r.sample_id), r.stage, r.reason) for r in rejections],
        schema={"row": pl.UInt32, "stage_told": pl.String, "reason": pl.String},
        orient="row",
    )
    pl.DataFrame(
        {
            "row": np.arange(len(stage), dtype=np.uint32),
            "stage": stage,
            "target": reserve.nearest_target,
            "cosine": reserve.nearest_cosine,
        }
    ).join(told, on="row", how="left", maintain_order="left").with_columns(
        pl.coalesce("stage_told", "stage").alias("stage")
    ).drop("stage_told").write_parquet(path)


if __name__ == "__main__":
    measure(Task(**json.loads(sys.argv[1])))

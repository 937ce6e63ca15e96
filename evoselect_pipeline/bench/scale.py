"""`bench scale`: what exact transport costs as the pool grows, against one similarity pass.

Synthetic vectors are written to a temporary folder, and every measurement maps them in a process
of its own, on one thread. Each repeat times one similarity pass and then the work, so that ratios
are of neighbours in time; figures are medians.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evoselect_pipeline.bench.adaptation import machine
from evoselect_pipeline.bench.report import Table, told
from evoselect_pipeline.bench.scale_worker import MEASURES, YARDSTICK, Task
from evoselect_pipeline.errors import ConfigError, EvoselectError
from evoselect_pipeline.progress import progress

MAIN = "capped_transport"  # whose growth is the report's exponent
DTYPES = ("float32", "float16")
MOST_ROWS = 10**8
# Bytes per entry of [N, M] that the two in-memory measures hold at their peak, as measured.
BYTES_PER_ENTRY = {"pot_emd": 46, "evolve_weights": 84}
NUM_CLUSTERS = 400
TARGET_CLUSTERS = 80
COPY_SHARE = 0.05
COPY_NOISE = 0.1  # length of what a copy differs by: a cosine of 0.995
GENERATED_ROWS = 16_384
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
# POT imports each of these that it finds, for hundreds of MB that no measurement uses.
POT_BACKENDS = ("PYTORCH", "JAX", "TENSORFLOW", "CUPY")


@dataclass(frozen=True)
class ScaleRequest:
    """Sizes of the problems, and how they are measured."""

    sizes: tuple[int, ...]
    num_targets: int = 256
    dim: int = 512
    num_rows: int = 1024
    dtype: str = "float32"
    seed: int = 0
    repeats: int = 5
    max_memory_gb: float = 4.0


def check_request(request: ScaleRequest) -> None:
    """Refuse sizes that make no problem, or one that this machine has no room for."""
    for n in request.sizes:
        if not request.num_rows < n <= MOST_ROWS:
            raise ConfigError(
                f"--n {n}: expected more candidates than the {request.num_rows} rows to choose"
                f" (--k), and at most {MOST_ROWS}"
            )
    if not request.sizes or len(set(request.sizes)) < len(request.sizes):
        raise ConfigError(f"--n {list(request.sizes)}: expected sizes that all differ")
    if request.dtype not in DTYPES:
        raise ConfigError(f"--dtype {request.dtype!r}: expected one of {', '.join(DTYPES)}")
    folder = tempfile.gettempdir()
    needed, free = max(request.sizes) * _row_bytes(request), shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise ConfigError(
            f"--n {max(request.sizes)}: its vectors take {needed / 1e9:.1f} GB and {folder} has"
            f" {free / 1e9:.1f} GB left; lower --n or --dim, or point TMPDIR elsewhere"
        )


def run_scale(request: ScaleRequest) -> dict[str, Any]:
    """Measure everything at every size; the report, as `--format json` prints it.

    Raises
    ------
    EvoselectError
        If a measurement fails; the message ends with what its process said last.
    """
    results, skipped = [], []
    for n in request.sizes:
        with tempfile.TemporaryDirectory(prefix="evoselect_scale_") as folder:
            vectors, targets = write_problem(request, n, Path(folder))
            for what in (YARDSTICK, *MEASURES):
                needed = BYTES_PER_ENTRY.get(what, 0) * n * request.num_targets / 1e9
                if needed > request.max_memory_gb:
                    skipped.append({"n": n, "what": what, "needs_gb": round(needed, 1)})
                    continue
                out = str(Path(folder) / "decisions.parquet")
                task = Task(what, vectors, targets, request.num_rows, request.repeats, out)
                results.append({"n": n, "what": what, **_measured(task, f"{what}, {n} rows")})
    overlaps = _staged_overlaps(results)
    exponents = {what: exponent(results, what) for what in (YARDSTICK, *MEASURES)}
    return {
        "results": results,
        "exponent": exponents[MAIN],
        "exponents": exponents,
        "largest_cost_difference": _largest_cost_difference(results),
        "staged_overlaps": overlaps,
        "skipped": skipped,
        "run": {**asdict(request), "threads": 1, "copy_share": COPY_SHARE},
        "versions": machine(),
    }


def write_problem(request: ScaleRequest, n: int, folder: Path) -> tuple[str, str]:
    """Write vectors [n, D] and targets [M, D] of unit rows to .npy files, a chunk at a time.

    Rows lie around cluster centres, some clusters far larger than others, each at a strength of
    its own; targets lie around every fifth centre. `COPY_SHARE` of the rows nearly repeat the
    row before. The same sizes and seed give the same files.
    """
    rng = np.random.default_rng(request.seed)
    centres = _unit(rng.standard_normal((NUM_CLUSTERS, request.dim), dtype=np.float32))
    shares = rng.pareto(1.2, NUM_CLUSTERS) + 0.05
    paths = str(folder / "vectors.npy"), str(folder / "targets.npy")
    aimed_at = rng.choice(TARGET_CLUSTERS, request.num_targets) * (NUM_CLUSTERS // TARGET_CLUSTERS)
    np.save(paths[1], _around(rng, centres[aimed_at]))
    shape = (n, request.dim)
    vectors = np.lib.format.open_memmap(paths[0], "w+", dtype=request.dtype, shape=shape)
    for start in range(0, n, GENERATED_ROWS):
        size = min(GENERATED_ROWS, n - start)
        rows = _around(rng, centres[rng.choice(NUM_CLUSTERS, size, p=shares / shares.sum())])
        copies = 1 + np.flatnonzero(rng.random(size - 1) < COPY_SHARE)
        noise = rng.standard_normal((len(copies), request.dim), dtype=np.float32)
        rows[copies] = _unit(rows[copies - 1] + COPY_NOISE * _unit(noise))
        vectors[start : start + size] = rows
        progress(f"writing {n} rows", start + size, n)
    vectors.flush()
    return paths


def exponent(results: Sequence[dict[str, Any]], what: str) -> float | None:
    """Slope of log seconds over log n by least squares; None with fewer than two sizes."""
    points = [(row["n"], row["seconds"]) for row in results if row["what"] == what]
    if len(points) < 2:
        return None
    sizes, seconds = np.log(np.array(points, dtype=np.float64)).T
    return round(float(np.polyfit(sizes, seconds, 1)[0]), 3)


def scale_table(report: dict[str, Any]) -> Table:
    """The figures, one line for each size and measurement."""
    columns = ["n", "what", "seconds", "ratio", "peak MB", "above start", "mean cost", "pairs"]
    rows = []
    for row in report["results"]:
        cost = row.get("cost")
        each = "" if cost is None else f"{cost / row['num_chosen']:.6f}"
        sizes = f"{row['peak_mb']:.0f}", f"{row['peak_mb'] - row['peak_before_mb']:.0f}"
        timed = f"{row['seconds']:.3f}", f"{row['ratio_to_similarity_pass']:.2f}"
        what = row["what"].replace("_", " ")  # may be folded there
        rows.append([f"{row['n']}", what, *timed, *sizes, each, f"{row['repeats']}"])
    run = report["run"]
    problem = f"{run['num_targets']} targets, width {run['dim']} {run['dtype']}"
    return Table(f"{problem}, {run['num_rows']} rows chosen, one thread", columns, rows)


def scale_notes(report: dict[str, Any]) -> list[str]:
    """What the table does not say."""
    notes = []
    grown = [f"{what} {value:.2f}" for what, value in report["exponents"].items() if value]
    if grown:
        notes.append(f"seconds grow with n to the power of: {', '.join(grown)}")
    difference = report["largest_cost_difference"]
    if difference is not None:
        notes.append(
            f"cost of {MAIN} against POT's exact solver: {difference:.1e} relative at most"
        )
    for n, share in report["staged_overlaps"].items():
        notes.append(f"n {n}: {share:.1%} of staged_evoselect's rows are those of all weights")
    for row in report["skipped"]:
        size = f"about {row['needs_gb']} GB"
        notes.append(f"{row['what']} at n {row['n']} was left out: it takes {size} (--max-memory)")
    notes.append(
        "ratio: to one similarity pass just before, median of the pairs. peak MB: the whole"
        " process, without the mapped vectors; above start: less what it had before any work."
    )
    notes.append(f"Seed {report['run']['seed']}. Measured on {told(report['versions'])}.")
    return notes


def _measured(task: Task, name: str) -> dict[str, Any]:
    """Run the worker and sum up its repeats."""
    repeats: list[dict[str, float]] = []
    facts: dict[str, Any] = {}
    progress(name, 0, task.repeats)
    with tempfile.TemporaryFile("w+") as said, _worker(task, said) as worker:
        for line in worker.stdout or ():
            facts = json.loads(line)
            if "seconds" in facts:
                repeats.append(facts)
                progress(name, min(len(repeats), task.repeats - 1), task.repeats)
        if worker.wait() != 0:
            said.seek(0)
            last = said.read().strip().splitlines()[-1:] or ["nothing"]
            raise EvoselectError(
                f"bench scale: {name}: its process ended with {worker.returncode} and said"
                f" {last[0]!r}; if memory ran out, lower --max-memory or --n"
            )
    progress(name, task.repeats, task.repeats)
    ratios = [row["seconds"] / row["similarity_pass"] for row in repeats]
    return {
        "seconds": round(statistics.median(row["seconds"] for row in repeats), 4),
        "ratio_to_similarity_pass": round(statistics.median(ratios), 3),
        "repeats": len(repeats),
        **facts,
    }


def _worker(task: Task, said: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}
    environment |= {f"POT_BACKEND_DISABLE_{name}": "1" for name in POT_BACKENDS}
    return subprocess.Popen(
        [sys.executable, "-m", "evoselect_pipeline.bench.scale_worker", task.to_json()],
        stdout=subprocess.PIPE,
        stderr=said,
        env=environment,
        text=True,
    )


def _largest_cost_difference(results: Sequence[dict[str, Any]]) -> float | None:
    """Between the streamed transport and POT's exact solver, relative, over all sizes."""
    costs = {(row["n"], row["what"]): row["cost"] for row in results if "cost" in row}
    pairs = [(costs[n, MAIN], cost) for (n, what), cost in costs.items() if what == "pot_emd"]
    return max((abs(ours - pots) / abs(pots) for ours, pots in pairs), default=None)


def _staged_overlaps(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By n, the share of the staged choice that the choice by the weights of all rows makes too."""
    chosen = {(row["n"], row["what"]): set(row.pop("chosen")) for row in results if "chosen" in row}
    return {
        str(n): round(len(rows & chosen[n, "staged_evoselect"]) / len(rows), 4)
        for (n, what), rows in chosen.items()
        if what == "evolve_weights"
    }


def _around(rng: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """Unit rows at random strengths around the centres [n, D]."""
    strength = rng.uniform(0.2, 1.2, (len(centres), 1)).astype(np.float32)
    noise = rng.standard_normal(centres.shape, dtype=np.float32)
    return _unit(strength * centres + noise * np.float32(0.8 / np.sqrt(centres.shape[1])))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _row_bytes(request: ScaleRequest) -> int:
    return request.dim * np.dtype(request.dtype).itemsize

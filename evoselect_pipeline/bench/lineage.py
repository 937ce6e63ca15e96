"""How long lineage takes to answer in a home of many rounds: filled with made-up rows, then asked.

The home is what rounds leave behind for lineage, written through the same stores; no model is run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evoselect_pipeline.bench.report import Table
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.gradients import GradientBatch
from evoselect_pipeline.core.records import Sample, sample_from_pair
from evoselect_pipeline.progress import progress
from evoselect_pipeline.rounds.line import FACTS, PROMOTED, Line, write_json
from evoselect_pipeline.rounds.lineage import rows_behind, story
from evoselect_pipeline.stores.artifacts import publish
from evoselect_pipeline.stores.home import Home

DIM = 64
FINGERPRINT = "0" * 32


@dataclass(frozen=True)
class LineageRequest:
    """How many rounds of how many rows, every fifth of them chosen; how many rows are asked for."""

    num_rounds: int
    num_rows: int
    num_asked: int
    seed: int


def measure_lineage(request: LineageRequest) -> dict[str, Any]:
    """Fill a home in a temporary folder and ask it for rows' stories and adapters' rows."""
    rng = np.random.default_rng(request.seed)
    with tempfile.TemporaryDirectory(prefix="evoselect-lineage-") as folder:
        line = Line(LineConfig(line="bench"), Home(Path(folder)))
        asked = []
        for number in range(request.num_rounds):
            asked.append(_write_round(line, number, request.num_rows, rng))
            progress("rounds written", number + 1, request.num_rounds)
        rows = [asked[i] for i in np.linspace(0, len(asked) - 1, request.num_asked).astype(int)]
        last = request.num_rounds - 1
        questions: list[tuple[str, Sequence[Callable[[], object]]]] = [
            ("a chosen row's whole story", [lambda r=r: story(line, r[0][:12]) for r in rows]),
            ("a rejected row's whole story", [lambda r=r: story(line, r[1][:12]) for r in rows]),
            ("every row behind the last adapter", [lambda: rows_behind(line, last)] * 3),
        ]
        return {
            "num_decisions": request.num_rounds * request.num_rows,
            "num_rounds": request.num_rounds,
            "seed": request.seed,
            "results": [
                {"question": name, "seconds": [_seconds(ask) for ask in asks]}
                for name, asks in questions
            ],
        }


def lineage_table(report: dict[str, Any]) -> Table:
    """Median and longest of each question's answers."""
    rows = [
        [
            row["question"],
            str(len(row["seconds"])),
            f"{np.median(row['seconds']):.2f}",
            f"{max(row['seconds']):.2f}",
        ]
        for row in report["results"]
    ]
    title = f"Lineage among {report['num_decisions']:,} decisions"
    return Table(title, ("question", "asked", "median s", "longest s"), rows)


def _seconds(ask: Callable[[], object]) -> float:
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


def _write_round(
    line: Line, number: int, num_rows: int, rng: np.random.Generator
) -> tuple[str, str]:
    """Leave what a round leaves; return the ids of a chosen row and of a rejected one."""
    samples = [_sample(number, row) for row in range(num_rows)]
    ids = [sample.sample_id for sample in samples]
    chosen = ids[::5]
    line.store.put_samples(samples, line.name, number)
    line.store.put_gradients(FINGERPRINT, _gradients(ids, rng))
    selected = [row % 5 == 0 for row in range(num_rows)]
    frame = {
        "sample_id": ids,
        "selected": selected,
        "stage": ["selected" if is_in else "not_needed" for is_in in selected],
        "reason": ["a sentence about as long as those of a real round, in some sixty characters"]
        * num_rows,
    }
    line.store.put_decisions(line.name, number, pl.DataFrame(frame))
    scores = {"sample_id": ids, "weight": rng.random(num_rows), "energy": rng.random(num_rows)}
    line.store.put_scores(line.name, number, pl.DataFrame(scores))
    before = number - 1 if number else None
    picks = [
        {"rank": rank, "sample_id": i, "target_id": ids[0], "reason": "the first within its reach"}
        for rank, i in enumerate(chosen)
    ]
    represented = {"fingerprint": FINGERPRINT, "dim": DIM}
    _leave(line, number, "incoming_adapter", {"trained_in_round": before})
    _leave(line, number, "projected_gradients", represented, **{"ids.json": ids})
    _leave(line, number, "selected_subset", {}, **{"picks.json": picks})
    _leave(line, number, "lora_checkpoint", {})
    _leave(line, number, "evaluation", {"after_validation": 0.5, "after_test": 0.5})
    _leave(line, number, PROMOTED, {"promoted": True})
    return chosen[0], ids[1]


def _leave(line: Line, number: int, stage: str, facts: dict[str, Any], **files: Any) -> None:
    with publish(line.stage_dir(number, stage), inputs={}) as folder:
        for name, value in {FACTS: facts, **files}.items():
            write_json(folder / name, value)


def _sample(number: int, row: int) -> Sample:
    return sample_from_pair(
        f"round {number}, row {row}: a prompt of about a hundred characters, as short tasks have",
        f"answer {row}",
        source="bench",
        prompt_id=f"prompt-{row % 100}",
    )


def _gradients(ids: Sequence[str], rng: np.random.Generator) -> GradientBatch:
    vectors_nD = rng.standard_normal((len(ids), DIM)).astype(np.float32)
    vectors_nD /= np.linalg.norm(vectors_nD, axis=1, keepdims=True)
    ones = np.ones(len(ids), np.float32)
    num_tokens = np.full(len(ids), 64, np.int32)
    return GradientBatch(
        tuple(ids), vectors_nD, ones, ones, num_tokens, np.zeros((len(ids), 0), np.float32)
    )

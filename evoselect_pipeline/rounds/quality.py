"""Whose answers are plausible: candidates judged by a proxy that has begun to learn the task."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.core.quality import plausibility, relative_surprise
from evoselect_pipeline.core.selection import SelectionProblem
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.core.settings import Budget
from evoselect_pipeline.progress import progress

FOLDS: tuple[int, ...] = (0, 1)
MIN_TEACHING = 32  # rows; fewer teach a judge nothing


@dataclass(frozen=True)
class Judgement:
    """Plausibility of the candidates' answers [N], and how often the judges were taught for it."""

    quality: np.ndarray
    num_lessons: int


def answer_quality(
    problem: SelectionProblem,
    budget: Budget,
    encoded: Mapping[str, Encoded],
    config: LineConfig,
    *,
    adapter: Path | None,
    seed: int,
    work_dir: Path,
) -> Judgement:
    """Plausibility of every candidate's answer, (0, 1] [N]; see `core.quality`.

    The judge is the proxy with the adapter that enters the round. It is taught by the rows that
    selection would choose as far as quality is known, judges all rows, and is taught again by the
    better choice, in `passes` passes: selection and judgement are interleaved. LESS (Xia et al.
    2024) warms its proxy up in the same way before it takes gradients. No row is judged by a proxy
    that was trained on it (as in confident learning, Northcutt et al. 2021): rows fall into two
    folds by their id, and the judge of each fold is taught by the other alone. An adapter that
    enters has not seen this round's rows, and the first pass is its judgement as it is.

    Parameters
    ----------
    encoded : mapping of str to Encoded
        Candidates and targets by sample id.
    adapter : Path or None
        The adapter that enters the round.
    work_dir : Path
        Folder for the judges; removed at the end.
    """
    quality = np.ones(len(problem.candidates))
    teaching = reference = _chosen(problem, budget, seed, config)
    start = adapter if config.proxy is None else None
    asking = _Asking(problem, encoded, reference, config)
    try:
        if start or not config.quality.warm_up_steps:
            quality = asking.all_of(start)
        judges = dict.fromkeys(FOLDS, start)
        num_lessons = 0
        for number in range(_num_lessons(config, start)):
            if number or start:  # else nothing is known yet: the reference is that choice
                teaching = _chosen(problem.with_quality(quality), budget, seed, config)
            if min(np.count_nonzero(teaching & ~asking.in_fold(f)) for f in FOLDS) < MIN_TEACHING:
                break
            for fold in FOLDS:
                rows = asking.rows_of(teaching & ~asking.in_fold(fold))
                folder = work_dir / f"judge-{fold}-{number}"
                judges[fold] = _taught(judges[fold], rows, config, seed, folder)
            quality, num_lessons = asking.each_of(judges), number + 1
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return Judgement(quality, num_lessons)


def _chosen(problem: SelectionProblem, budget: Budget, seed: int, config: LineConfig) -> np.ndarray:
    """Boolean [N]: what selection chooses with the quality known so far."""
    settings = config.selection.evoselect
    chosen = set(select(problem, budget, seed, "evoselect", settings).selected_ids)
    return np.array([sample_id in chosen for sample_id in problem.candidates.sample_ids])


def _num_lessons(config: LineConfig, start: Path | None) -> int:
    if not config.quality.warm_up_steps:
        return 0
    return config.quality.passes - (start is not None)


class _Asking:
    """Put rows before a judge and read its answers beside those about the targets."""

    def __init__(
        self,
        problem: SelectionProblem,
        encoded: Mapping[str, Encoded],
        reference: np.ndarray,
        config: LineConfig,
    ) -> None:
        ids, vectors = problem.candidates.sample_ids, problem.targets.gradients
        self.rows = [encoded[sample_id] for sample_id in ids]
        self.targets = [encoded[sample_id] for sample_id in problem.targets.sample_ids]
        self.cosines = problem.candidates.gradients @ vectors.T
        self.target_cosines = vectors @ vectors.T
        self.reference = reference
        self.fold = np.array([int(sample_id[:8], 16) % len(FOLDS) for sample_id in ids])
        self.config = config

    def in_fold(self, fold: int) -> np.ndarray:
        return self.fold == fold

    def rows_of(self, where: np.ndarray) -> list[Encoded]:
        return [self.rows[place] for place in np.flatnonzero(where)]

    def all_of(self, judge: Path | None) -> np.ndarray:
        """Quality of all rows by one judge."""
        return self._quality(judge, np.ones(len(self.rows), dtype=bool))

    def each_of(self, judges: Mapping[int, Path | None]) -> np.ndarray:
        """Quality of each fold's rows by its own judge."""
        quality = np.ones(len(self.rows))
        for fold, judge in judges.items():
            here = self.in_fold(fold)
            quality[here] = self._quality(judge, here)
        return quality

    def _quality(self, judge: Path | None, here: np.ndarray) -> np.ndarray:
        rows = self.rows_of(here)
        surprise = _surprise([*rows, *self.targets], self.config, judge)
        own, of_targets = relative_surprise(
            surprise[: len(rows)],
            surprise[len(rows) :],
            self.cosines[here],
            self.target_cosines,
        )
        return plausibility(own, of_targets, own[self.reference[here]])


def _taught(
    judge: Path | None, rows: Sequence[Encoded], config: LineConfig, seed: int, folder: Path
) -> Path:
    """A judge that has been taught by some rows for a few steps."""
    from evoselect_pipeline.training.lora import train_adapter

    update = {"steps": config.quality.warm_up_steps, "epochs": None}
    train_adapter(
        config.proxy or config.model,
        judge,
        rows,
        lora=config.lora,
        train=config.train.model_copy(update=update),
        seed=seed,
        adapter_seed=config.seed,
        work_dir=folder / "checkpoints",
        out_dir=folder / "adapter",
        on_step=partial(progress, "steps of the judge"),
    )
    return folder / "adapter"


def _surprise(rows: Sequence[Encoded], config: LineConfig, adapter: Path | None) -> np.ndarray:
    """Negative log-likelihood of each row's whole answer under the proxy, in nats."""
    from evoselect_pipeline.core.losses import answer_losses
    from evoselect_pipeline.training.memory import memory_bounded_by
    from evoselect_pipeline.training.models import load_encoder, load_merged

    proxy, batch_tokens = config.proxy or config.model, config.gradients.batch_tokens
    model, pad_id = load_merged(proxy, adapter, config.lora), load_encoder(proxy).pad_id
    told = partial(progress, "judged answers")
    with memory_bounded_by("gradients.batch_tokens", batch_tokens):
        losses = answer_losses(model, rows, pad_id, batch_tokens=batch_tokens, on_rows=told)
    return losses * np.array([row.num_trained for row in rows])

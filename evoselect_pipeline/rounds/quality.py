"""Whose answers are plausible: candidates judged by a proxy that has begun to learn the task."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.core.quality import plausibility
from evoselect_pipeline.core.selection import SelectionProblem
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.core.settings import Budget
from evoselect_pipeline.progress import progress

FOLDS = (0, 1)
MIN_WARM_UP_ROWS = 32  # in a fold; fewer teach a proxy nothing


def answer_quality(
    problem: SelectionProblem,
    budget: Budget,
    encoded: Mapping[str, Encoded],
    config: LineConfig,
    *,
    adapter: Path | None,
    seed: int,
    work_dir: Path,
) -> np.ndarray:
    """Plausibility of every candidate's answer, (0, 1] [N]; see `quality.plausibility`.

    The judge is the proxy with the adapter that enters the round: it has learned the task in
    earlier rounds, and this round's rows are new to it. Without such an adapter the proxy knows
    nothing and is warmed up first, as LESS (Xia et al. 2024) does before it takes gradients, on
    rows that selection would choose without regard to quality; and cross-fitted, so that no row is
    judged by a proxy trained on it (as in confident learning, Northcutt et al. 2021): rows fall
    into two folds by their id, and each fold is judged by a proxy trained on the other.

    Parameters
    ----------
    encoded : mapping of str to Encoded
        Candidates and targets by sample id.
    adapter : Path or None
        The adapter that enters the round.
    work_dir : Path
        Folder for the warmed-up adapters; removed at the end.
    """
    candidates, settings = problem.candidates, config.selection.evoselect
    chosen = set(select(problem, budget, seed, "evoselect", settings).selected_ids)
    is_reference = np.array([sample_id in chosen for sample_id in candidates.sample_ids])
    fold = np.array([int(sample_id[:8], 16) % len(FOLDS) for sample_id in candidates.sample_ids])
    fewest = min(np.count_nonzero(is_reference & (fold == one)) for one in FOLDS)
    rows = [encoded[sample_id] for sample_id in candidates.sample_ids]
    targets = [encoded[sample_id] for sample_id in problem.targets.sample_ids]
    judge = adapter if config.proxy is None else None
    if judge or not config.quality.warm_up_steps or fewest < MIN_WARM_UP_ROWS:
        surprise = _surprise([*rows, *targets], config, judge)
        own, of_targets = surprise[: len(rows)], surprise[len(rows) :]
        return plausibility(own, of_targets, own[is_reference])
    quality = np.ones(len(candidates))
    for judged in FOLDS:
        here = fold == judged
        teaching = [rows[n] for n in np.flatnonzero(is_reference & ~here)]
        asked = [rows[n] for n in np.flatnonzero(here)]
        try:
            judge = _warmed_up(teaching, config, seed, work_dir)
            surprise = _surprise([*asked, *targets], config, judge)
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)
        own, of_targets = surprise[: len(asked)], surprise[len(asked) :]
        quality[here] = plausibility(own, of_targets, own[is_reference[here]])
    return quality


def _warmed_up(rows: Sequence[Encoded], config: LineConfig, seed: int, work_dir: Path) -> Path:
    """An adapter of the proxy that has seen the task for a few steps."""
    from evoselect_pipeline.training.lora import train_adapter

    update = {"steps": config.quality.warm_up_steps, "epochs": None}
    train_adapter(
        config.proxy or config.model,
        None,
        rows,
        lora=config.lora,
        train=config.train.model_copy(update=update),
        seed=seed,
        adapter_seed=config.seed,
        work_dir=work_dir / "checkpoints",
        out_dir=work_dir / "adapter",
        on_step=partial(progress, "warm-up steps"),
    )
    return work_dir / "adapter"


def _surprise(rows: Sequence[Encoded], config: LineConfig, adapter: Path | None) -> np.ndarray:
    """Negative log-likelihood of each row's whole answer under the proxy, in nats."""
    from evoselect_pipeline.core.losses import answer_losses
    from evoselect_pipeline.training.models import load_encoder, load_merged

    proxy = config.proxy or config.model
    losses = answer_losses(
        load_merged(proxy, adapter, config.lora),
        rows,
        load_encoder(proxy).pad_id,
        batch_tokens=config.gradients.batch_tokens,
        on_rows=partial(progress, "judged answers"),
    )
    return losses * np.array([row.num_trained for row in rows])

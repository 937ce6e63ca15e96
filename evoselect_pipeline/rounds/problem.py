"""What a round's selection works on: features read back, and how plausible each answer is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.features import Features, join_span, selection_problem
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.core.selection import SelectionProblem
from evoselect_pipeline.rounds import quality
from evoselect_pipeline.rounds.data import selected_before, split_rows
from evoselect_pipeline.rounds.line import (
    CHECKPOINTS,
    FACTS,
    Entering,
    Line,
    entered,
    made_from,
    read_facts,
    read_json,
    write_json,
)
from evoselect_pipeline.rounds.verdicts import gradients_finite, require
from evoselect_pipeline.stores.artifacts import Artifact, find, open_artifact, publish

QUALITY_FILE = "quality.npz"
SPAN_FILE = "span.npy"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
OFF = "none"


def problem_settings(config: LineConfig) -> dict[str, Any]:
    """The keys that decide a selection problem beside its rows, for `selection_problem`."""
    return {
        "near_text": config.selection.near_text,
        "centre": config.gradients.centre,
        "subtask_weights": config.selection.subtask_weights,
    }


def load_problem(line: Line, round_number: int) -> SelectionProblem:
    """Read a round's features back as a selection problem, all answers taken to be right."""
    represented = line.artifact(round_number, "projected_gradients")
    candidate_ids = read_json(represented.path / "ids.json")
    history_ids = read_json(represented.path / "history.json")
    targets = split_rows(line, "targets")
    return selection_problem(
        line.store.get_samples(candidate_ids),
        read_features(line, represented, candidate_ids),
        targets,
        read_features(line, represented, [target.sample_id for target in targets]),
        read_features(line, represented, history_ids).vectors if history_ids else None,
        history_ids=history_ids,
        trained=line.store.get_samples(selected_before(line, round_number)),
        **problem_settings(line.config),
    )


def read_features(line: Line, represented: Artifact, ids: Sequence[str]) -> Features:
    """Stored features of some rows, in the span of the targets where there is one.

    `represented` is a round's artifact of `projected_gradients`.
    """
    facts = read_facts(represented)
    found = line.store.read_gradients(ids, facts["fingerprint"], facts["dim"])
    if facts["span"] is None:
        return found
    folded = np.load(represented.path / SPAN_FILE, allow_pickle=False)
    coordinates = line.store.read_coordinates(ids, facts["span"], len(folded))
    return found._replace(vectors=join_span(found.vectors, coordinates, folded))


def judged_problem(line: Line, round_number: int) -> SelectionProblem:
    """A round's selection problem with the plausibility that `answer_quality` found."""
    judged = line.artifact(round_number, "answer_quality")
    # Its rows stand in the order of the features' ids, whose digest is among its inputs.
    with np.load(judged.path / QUALITY_FILE, allow_pickle=False) as kept:
        return load_problem(line, round_number).with_quality(kept["quality"])


def judges_answers(config: LineConfig) -> bool:
    """Whether a round's answers are judged: `evoselect` alone heeds their plausibility."""
    return config.quality.prior != OFF and config.selection.method == "evoselect"


def answer_quality(line: Line, round_number: int) -> Artifact:
    """Judge how plausible each candidate's answer is, by a proxy that has begun to learn the task.

    It starts from the adapter that enters the round. Where nothing would heed the judgement, every
    answer counts as plausible.
    """
    require(gradients_finite, line, round_number)
    start = entered(line, round_number)
    inputs = _inputs(line, round_number, start)
    directory = line.stage_dir(round_number, "answer_quality")
    if found := find(directory, inputs):
        return found
    problem = load_problem(line, round_number)
    plausible_N, facts = np.ones(len(problem.candidates)), {"judge": OFF}
    if judges_answers(line.config):
        plausible_N, facts = _judged(line, round_number, problem, start, digest(inputs))
    with publish(directory, inputs=inputs) as folder:
        np.savez(
            folder / QUALITY_FILE,
            allow_pickle=False,
            sample_ids=np.array(problem.candidates.sample_ids),
            quality=plausible_N,
        )
        write_json(folder / FACTS, {"prior": line.config.quality.prior, **facts})
    return open_artifact(directory)


def _inputs(line: Line, round_number: int, start: Entering) -> dict[str, Any]:
    """Everything that decides the judgement; next to nothing where none is made."""
    represented = line.artifact(round_number, "projected_gradients")
    config = line.config
    if not judges_answers(config):
        settings = {"prior": config.quality.prior, "method": config.selection.method}
        return made_from(line, settings, projected_gradients=represented.digest)
    from evoselect_pipeline.training.models import trainable_fingerprint

    # The warm-up has its own number of steps, and one stopped half way is not gone on with.
    warm_up = config.train.model_dump(exclude={"steps", "epochs", "checkpoint_steps"})
    settings = {
        "quality": config.quality.model_dump(),
        "selection": config.selection.model_dump(mode="json"),
        "centre": config.gradients.centre,
        "lora": config.lora.model_dump(mode="json"),
        "train": warm_up,
    }
    return made_from(
        line,
        settings,
        base=trainable_fingerprint(config.proxy or config.model),
        start=start.digest,
        projected_gradients=represented.digest,
    )


def _judged(
    line: Line, round_number: int, problem: SelectionProblem, start: Entering, name: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Plausibility [N] of the candidates' answers, and what is to be said of it."""
    from evoselect_pipeline.training.models import load_encoder

    config = line.config
    candidates = line.store.get_samples(problem.candidates.sample_ids)
    encoder = load_encoder(config.proxy or config.model)
    rows, _ = encoder.encode([*candidates, *split_rows(line, "targets")])
    work_dir = line.home.round_dir(line.name, round_number) / f"{CHECKPOINTS}judge-{name}"
    # What a killed run left there is not gone on with: it may know the rows that it is to judge.
    shutil.rmtree(work_dir, ignore_errors=True)
    judgement = quality.answer_quality(
        problem,
        config.selection.budget(len(problem.candidates)),
        {row.sample_id: row for row in rows},
        config,
        adapter=start.path,
        seed=line.round_seed(round_number, "select"),
        work_dir=work_dir,
    )
    plausible_N, floor = judgement.quality, config.selection.evoselect.quality_floor
    levels = np.quantile(plausible_N, QUANTILES).tolist()
    return plausible_N, {
        "judge": _judge_of(config, start, judgement.num_lessons),
        "num_lessons": judgement.num_lessons,
        "num_judged": len(plausible_N),
        "median": float(np.median(plausible_N)),
        "share_below_floor": float(np.mean(plausible_N < floor)),
        "floor": floor,
        "quantiles": list(zip(QUANTILES, levels, strict=True)),
    }


def _judge_of(config: LineConfig, start: Entering, num_lessons: int) -> str:
    """Who was asked."""
    if config.proxy is None and start.path is not None:
        return f"adapter of round {start.trained_in}"
    if num_lessons:
        return "warm-up"
    return "nobody: too few rows to teach a judge" if config.quality.warm_up_steps else "bare proxy"

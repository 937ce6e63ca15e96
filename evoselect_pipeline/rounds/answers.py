"""What adapters answer to a line's evaluation rows and canaries: decoded once, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_rows import Columns, FileTask
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.evaluation.metrics import load_metric
from evoselect_pipeline.progress import progress
from evoselect_pipeline.rounds.data import published_target_set, split_rows
from evoselect_pipeline.rounds.line import (
    Entering,
    Line,
    made_from,
    read_json,
    write_json,
)
from evoselect_pipeline.stores.artifacts import Artifact, find, open_artifact, publish
from evoselect_pipeline.stores.home import round_key
from evoselect_pipeline.stores.rows import read_prompts

EVALUATED = ("validation", "test")
CANARIES = "canaries"


def scored_rows(line: Line, contender: Entering) -> Artifact:
    """Decode the evaluation rows with one adapter, once: later rounds read what was found."""
    metric = load_metric(line.config.task.metric)
    target_set = published_target_set(line).digest
    inputs = _inputs(line, contender, {"metric": metric.fingerprint}, target_set=target_set)
    rows = {split: split_rows(line, split) for split in EVALUATED}
    return _answered(line, contender, inputs, rows, metric.score)


def answered_canaries(line: Line, contender: Entering, canaries: Sequence[Sample]) -> Artifact:
    """Decode the canary prompts with one adapter, once."""
    asked = digest([sample.sample_id for sample in canaries])
    inputs = _inputs(line, contender, {}, canaries=asked)
    return _answered(line, contender, inputs, {CANARIES: canaries}, _not_scored)


def canary_rows(config: LineConfig) -> list[Sample]:
    """The prompts whose answers are watched; none where the configuration names none."""
    named, task = config.evaluation.canaries, config.task
    if named is None:
        return []
    rows = read_prompts(named, task.columns if isinstance(task, FileTask) else Columns())
    return list({row.sample_id: row for row in rows}.values())


def changed_answers(
    canaries: Sequence[Sample], before: Artifact, after: Artifact
) -> list[dict[str, str]]:
    """The canaries that two adapters answer otherwise, with both answers."""
    one, other = (_predictions(artifact, CANARIES) for artifact in (before, after))
    return [
        {
            "sample_id": row.sample_id,
            "prompt": row.prompt,
            "before": b["answer"],
            "after": a["answer"],
        }
        for row, b, a in zip(canaries, one, other, strict=True)
        if b["answer"] != a["answer"]
    ]


def scores(artifact: Artifact, split: str) -> list[float]:
    """How right each answer is."""
    return [prediction["score"] for prediction in _predictions(artifact, split)]


def lengths(artifact: Artifact, split: str) -> dict[str, float]:
    """The answers' mean number of tokens, and the share of them that was cut off.

    Empty where an earlier version has decoded them, which counted neither.
    """
    found = _predictions(artifact, split)
    if "num_tokens" not in found[0]:
        return {}
    return {
        "answer_tokens": float(np.mean([prediction["num_tokens"] for prediction in found])),
        "truncated": float(np.mean([prediction["truncated"] for prediction in found])),
    }


def _predictions(artifact: Artifact, kind: str) -> list[dict[str, Any]]:
    return read_json(artifact.path / f"{kind}.json")


def _whose(contender: Entering) -> str:
    number = contender.trained_in
    return "base model" if number is None else f"round {round_key(number)}"


def _not_scored(answer: str, row: Sample) -> float:
    return 0.0


def _inputs(
    line: Line, contender: Entering, scored_by: Mapping[str, str], **asked: str
) -> dict[str, Any]:
    from evoselect_pipeline.training.models import base_fingerprint, load_encoder

    decoding = line.config.evaluation.model_dump(exclude={CANARIES})
    return made_from(
        line,
        {**decoding, **scored_by},
        encoder=load_encoder(line.config.model).fingerprint,
        base=base_fingerprint(line.config.model),
        adapter=contender.digest,
        **asked,
    )


def _answered(
    line: Line,
    contender: Entering,
    inputs: Mapping[str, Any],
    rows: Mapping[str, Sequence[Sample]],
    score: Callable[[str, Sample], float],
) -> Artifact:
    """Predictions of one adapter, a file for each kind of rows."""
    from evoselect_pipeline.evaluation.answers import scored_answers
    from evoselect_pipeline.training.memory import memory_bounded_by
    from evoselect_pipeline.training.models import load_encoder, load_merged

    config = line.config
    # Only the place: what else decides the answers is among the inputs.
    named = config.model.model_dump(include={"name", "revision", "dtype", "max_length"})
    place = digest(contender.digest, named, *([CANARIES] if CANARIES in rows else []))
    directory = line.home.line_dir(line.name) / "evaluations" / place
    if found := find(directory, inputs):
        return found
    model, encoder = (
        load_merged(config.model, contender.path, config.lora),
        load_encoder(config.model),
    )
    with publish(directory, inputs=inputs) as folder:
        for kind, samples in rows.items():
            told = partial(progress, f"{kind} answers, {_whose(contender)}")
            with memory_bounded_by("evaluation.batch_size", config.evaluation.batch_size):
                predictions = scored_answers(
                    model,
                    encoder,
                    samples,
                    score,
                    max_new_tokens=config.evaluation.max_new_tokens,
                    batch_size=config.evaluation.batch_size,
                    on_rows=told,
                )
            write_json(folder / f"{kind}.json", [asdict(p) for p in predictions])
    return open_artifact(directory)

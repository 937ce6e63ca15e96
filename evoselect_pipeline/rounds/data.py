"""What a round begins with: the trusted rows, the adapter that enters, what was chosen before."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from evoselect_pipeline.config import LineConfig, ModelSettings
from evoselect_pipeline.config_rows import SPLITS, FileTask
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.core.selection import target_weights
from evoselect_pipeline.core.text_keys import evaluation_keys, prompt_key
from evoselect_pipeline.errors import ArtifactError, DataError
from evoselect_pipeline.evaluation.metrics import load_metric
from evoselect_pipeline.playground.tasks import TaskRows, task_rows
from evoselect_pipeline.rounds.file_task import file_task_rows
from evoselect_pipeline.rounds.line import (
    FACTS,
    Line,
    adapter_named,
    entering,
    made_from,
    read_facts,
    read_json,
    write_json,
)
from evoselect_pipeline.stores.artifacts import (
    Artifact,
    find,
    is_published,
    open_artifact,
    publish,
)
from evoselect_pipeline.stores.jsonl import read_samples, write_samples


def load_task(config: LineConfig) -> TaskRows:
    """Read or draw a task's rows and refuse splits that share a prompt.

    Raises
    ------
    DataError
        If a split is empty, a prompt stands in two of them, the task's metric cannot score a row
        that is to be answered, or a subtask has a weight and no target row.
    """
    task = config.task
    if isinstance(task, FileTask):
        rows = file_task_rows(task)
    else:
        rows = task_rows(
            task.name,
            num_targets=task.num_targets,
            num_validation=task.num_validation,
            num_test=task.num_test,
        )
    keys = {split: evaluation_keys(getattr(rows, split)) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        shared = keys[one].keys() & keys[other].keys()
        if shared:
            row = next(s for s in getattr(rows, other) if prompt_key(s) in shared)
            raise DataError(
                f"{one} and {other} share {len(shared)} prompts, for example {row.prompt[:80]!r};"
                " a row may serve one purpose only, so take it out of one of them"
            )
    target_weights([row.subtask for row in rows.targets], config.selection.subtask_weights)
    load_metric(task.metric).check([*rows.validation, *rows.test])
    return rows


def refuse_other_rows(line: Line, rows: TaskRows) -> None:
    """Hold a line that has a finished round to the rows that it began with.

    A row that was a target would else be tested on, and scores of two rounds mean two things.

    Raises
    ------
    DataError
        If a split has other rows than the published one.
    """
    if line.next_round() == 0:
        return
    for split in SPLITS:
        published = {row.sample_id for row in split_rows(line, split)}
        if published != {row.sample_id for row in getattr(rows, split)}:
            raise DataError(
                f"the {split} rows of line {line.name!r} are others than those of its"
                f" {line.next_round()} finished rounds; give the new rows a line of their own"
                " (--set line=NAME), or restore the files that task names"
            )


def target_set(line: Line) -> Artifact:
    """Publish the task's target, validation and test rows; those of a begun line stay.

    Raises
    ------
    DataError
        If the rows cannot be used, or the line has finished rounds on others.
    """
    rows = load_task(line.config)
    refuse_other_rows(line, rows)
    ids = {split: [(s.sample_id, s.subtask) for s in getattr(rows, split)] for split in SPLITS}
    inputs = made_from(line, {}, rows=digest(ids))  # wherever the rows were read
    directory = _target_dir(line)
    if found := find(directory, inputs):
        return found
    with publish(directory, inputs=inputs) as folder:
        for split in SPLITS:
            write_samples(folder / f"{split}.jsonl", getattr(rows, split))
        write_json(
            folder / FACTS,
            {f"num_{split}": len(ids[split]) for split in SPLITS}
            | {"num_subtasks": len({s.subtask for s in rows.targets})},
        )
    return open_artifact(directory)


def published_target_set(line: Line) -> Artifact:
    """The target set that the line works on; the user's rows are read only where there is none.

    To read them again is what `target_set` is for, whose rows are then those of all later stages.
    """
    directory = _target_dir(line)
    return open_artifact(directory) if is_published(directory) else target_set(line)


def split_rows(line: Line, split: str) -> list[Sample]:
    """The rows of one split, as published."""
    return read_samples(open_artifact(_target_dir(line)).path / f"{split}.jsonl")


def _target_dir(line: Line) -> Path:
    return line.home.line_dir(line.name) / "target_set"


def refuse_other_base(model: ModelSettings, trained: Artifact) -> None:
    """Hold an adapter to the base model, and the chat template, that it was trained on.

    An adapter on another base loads without a word and answers nonsense.

    Raises
    ------
    ArtifactError
        With both fingerprints, and the way out.
    """
    from evoselect_pipeline.training.models import load_encoder, trainable_fingerprint

    named = f"model {model.name!r} (revision {model.revision}, {model.dtype})"
    way_out = (
        "give the configuration that the line was run with, or restore the model's files;"
        " `evoselect promote --round base` starts anew from the bare model"
    )
    found, expected = trainable_fingerprint(model), trained.inputs["base"]
    if found != expected:
        raise ArtifactError(
            f"{named} has the fingerprint {found}, but the adapter of {trained.path.parent.name}"
            f" was trained on {expected}: {way_out}"
        )
    # Adapters of earlier versions did not note it.
    template = read_facts(trained).get("chat_template")
    if template is not None and template != load_encoder(model).template_fingerprint:
        raise ArtifactError(
            f"{named} has another chat template than the one with which the adapter of"
            f" {trained.path.parent.name} was trained: {way_out}"
        )


def incoming_adapter(line: Line, round_number: int) -> Artifact:
    """Publish which adapter the round starts from; refuse if the round before is not done."""
    adapter = entering(line, round_number)
    if adapter.trained_in is not None:
        refuse_other_base(line.config.model, line.artifact(adapter.trained_in, "lora_checkpoint"))
    inputs = made_from(line, {}, adapter=adapter.digest)
    directory = line.stage_dir(round_number, "incoming_adapter")
    if found := find(directory, inputs):
        return found
    with publish(directory, inputs=inputs) as folder:
        write_json(
            folder / FACTS,
            {
                "adapter": adapter_named(adapter.trained_in),
                "trained_in_round": adapter.trained_in,
                "adapter_digest": adapter.digest,
            },
        )
    return open_artifact(directory)


def selected_before(line: Line, round_number: int, last: int | None = None) -> list[str]:
    """Ids that earlier rounds trained on, oldest first; of the `last` rounds if given."""
    first = 0 if last is None else max(0, round_number - last)
    ids: list[str] = []
    for earlier in range(first, round_number):
        picks = read_json(line.artifact(earlier, "selected_subset").path / "picks.json")
        ids.extend(pick["sample_id"] for pick in picks)
    return list(dict.fromkeys(ids))

"""The last stages of a round: train the adapter, evaluate it, decide about promotion."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np

from evoselect_pipeline.core.metrics import bootstrap_interval, paired_bootstrap
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.progress import progress
from evoselect_pipeline.rounds.answers import (
    CANARIES,
    EVALUATED,
    answered_canaries,
    canary_rows,
    changed_answers,
    lengths,
    scored_rows,
    scores,
)
from evoselect_pipeline.rounds.line import (
    CHECKPOINTS,
    EXTRACTION,
    FACTS,
    PROMOTED,
    Entering,
    Line,
    entered,
    made_from,
    read_json,
    write_json,
)
from evoselect_pipeline.rounds.verdicts import (
    WHEN,
    answers_not_drifting,
    require,
    training_rows_end_with_eos,
)
from evoselect_pipeline.stores.artifacts import (
    Artifact,
    find,
    open_artifact,
    publish,
    sweep_temporary,
)

CANARIES_FILE = "canaries.json"  # those that are answered otherwise than before


def lora_checkpoint(line: Line, round_number: int) -> Artifact:
    """Train the incoming adapter further on the selected rows."""
    from evoselect_pipeline.training.lora import train_adapter
    from evoselect_pipeline.training.models import load_encoder, trainable_fingerprint

    config = line.config
    start = entered(line, round_number)
    require(training_rows_end_with_eos, line, round_number)
    subset = line.artifact(round_number, "selected_subset")
    settings = {"lora": config.lora.model_dump(mode="json"), "train": config.train.model_dump()}
    encoder = load_encoder(config.model)
    inputs = made_from(
        line,
        settings,
        base=trainable_fingerprint(config.model),
        encoder=encoder.fingerprint,
        start=start.digest,
        selected_subset=subset.digest,
    )
    directory = line.stage_dir(round_number, "lora_checkpoint")
    if found := find(directory, inputs):
        return found
    ids = [pick["sample_id"] for pick in read_json(subset.path / "picks.json")]
    rows, _ = encoder.encode(line.store.get_samples(ids))
    # Checkpoints of other inputs must not be resumed from, so the folder is named by the inputs.
    work_dir = directory.parent / f"{CHECKPOINTS}{digest(inputs)}"
    with publish(directory, inputs=inputs) as folder:
        report = train_adapter(
            config.model,
            start.path,
            rows,
            lora=config.lora,
            train=config.train,
            seed=line.round_seed(round_number, "train"),
            adapter_seed=config.seed,
            work_dir=work_dir,
            out_dir=folder / "adapter",
            on_step=partial(progress, "training steps"),
        )
        write_json(folder / "losses.json", report.losses)
        write_json(
            folder / FACTS,
            {
                "num_steps": report.num_steps,
                "num_rows": report.num_rows,
                "num_trained_tokens": report.num_trained_tokens,
                "first_loss": report.losses[0][1],
                "last_loss": report.losses[-1][1],
                "started_from": start.digest,
                "chat_template": encoder.template_fingerprint,
            },
        )
    return open_artifact(directory)


def evaluation(line: Line, round_number: int) -> Artifact:
    """Evaluate the base model, the adapter that entered and the one that was trained.

    Canaries, where there are some, are answered by the latter two.
    """
    trained = line.artifact(round_number, "lora_checkpoint")
    contenders = {
        "base": Entering(None, "base", None),
        "before": entered(line, round_number),
        "after": Entering(trained.path / "adapter", trained.digest, round_number),
    }
    scored = {name: scored_rows(line, contender) for name, contender in contenders.items()}
    canaries, watched = canary_rows(line.config), {}
    if canaries:
        watched = {w: answered_canaries(line, contenders[w], canaries) for w in WHEN}
    inputs = made_from(
        line,
        {},
        **{name: artifact.digest for name, artifact in scored.items()},
        **{f"{CANARIES}_{when}": artifact.digest for when, artifact in watched.items()},
    )
    directory = line.stage_dir(round_number, "evaluation")
    if found := find(directory, inputs):
        return found
    facts = _accuracies(line, scored)
    for when in WHEN:
        found = lengths(scored[when], "validation")
        facts |= {f"{when}_{name}": value for name, value in found.items()}
    with publish(directory, inputs=inputs) as folder:
        for name, artifact in scored.items():
            write_json(folder / f"{name}.json", {s: scores(artifact, s) for s in EVALUATED})
        if watched:
            changed = changed_answers(canaries, watched["before"], watched["after"])
            facts |= {"num_canaries": len(canaries), "canaries_changed": len(changed)}
            write_json(folder / CANARIES_FILE, changed)
        write_json(folder / FACTS, facts)
    return open_artifact(directory)


def _accuracies(line: Line, scored: Mapping[str, Artifact]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, artifact in scored.items():
        for split in EVALUATED:
            correct = np.array(scores(artifact, split))
            mean, low, high = bootstrap_interval(correct, seed=line.config.seed)
            facts |= {f"{name}_{split}": mean}
            if name == "after":
                facts |= {f"after_{split}_low": low, f"after_{split}_high": high}
    return facts


def promoted_adapter(line: Line, round_number: int) -> Artifact:
    """Promote the trained adapter unless it may be worse than the one that entered.

    The paired bootstrap interval of the difference on the validation rows must lie above minus the
    tolerance, and the answers must not drift; otherwise the incoming adapter stays champion. Test
    rows play no part.
    """
    _sweep(line, round_number)
    settings = line.config.promotion
    start = entered(line, round_number)
    trained = line.artifact(round_number, "lora_checkpoint")
    evaluated = line.artifact(round_number, "evaluation")
    inputs = made_from(
        line, settings.model_dump(), start=start.digest, trained=trained.digest,
        evaluation=evaluated.digest,
    )  # fmt: skip
    directory = line.stage_dir(round_number, PROMOTED)
    if found := find(directory, inputs):
        return found
    difference = paired_bootstrap(
        np.array(read_json(evaluated.path / "before.json")["validation"]),
        np.array(read_json(evaluated.path / "after.json")["validation"]),
        seed=line.config.seed,
        confidence=settings.confidence,
    )
    answers = answers_not_drifting(line, round_number)
    promoted = difference.low > -settings.tolerance and answers.passed
    with publish(directory, inputs=inputs) as folder:
        write_json(
            folder / FACTS,
            {
                "promoted": promoted,
                "champion_round": round_number if promoted else start.trained_in,
                "champion_digest": trained.digest if promoted else start.digest,
                "gain_validation": difference.mean,
                "gain_low": difference.low,
                "gain_high": difference.high,
                "tolerance": settings.tolerance,
                "drift": "" if answers.passed else answers.sentence,
            },
        )
    return open_artifact(directory)


def _sweep(line: Line, round_number: int) -> None:
    """Remove what killed runs left unfinished, and old versions of the tables.

    The line's lease keeps other writers of its folders out, and each table's lock its own.
    """
    round_dir = line.home.round_dir(line.name, round_number)
    line_dir = round_dir.parent
    for folder in (line_dir, line_dir / "evaluations", round_dir):
        sweep_temporary(folder, older_than_s=0)
    for checkpoints in round_dir.glob(f"{CHECKPOINTS}*"):
        shutil.rmtree(checkpoints, ignore_errors=True)
    for begun in round_dir.glob(f"{EXTRACTION}*"):
        begun.unlink()
    line.store.prune(timedelta(days=line.config.retention.table_days))

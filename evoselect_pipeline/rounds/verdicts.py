"""What must hold between two stages, read anew from the stores.

Dagster's blocking checks block within one run only; stages therefore ask for the same verdicts
before they start, so that nothing goes on from a bad artifact in a later run either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from evoselect_pipeline.core.gates import evaluation_keys, prompt_key
from evoselect_pipeline.core.records import make_sample
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.rounds.data import SPLITS, split_rows
from evoselect_pipeline.rounds.line import Line, read_facts, read_json

LARGEST_UNUSABLE_SHARE = 0.5


@dataclass(frozen=True)
class Verdict:
    """Whether something holds, in a sentence a person can act on, with the figures behind it."""

    passed: bool
    sentence: str
    figures: dict[str, Any]


def candidates_well_formed(line: Line, round_number: int) -> Verdict:
    """Enough candidates, each a well-formed conversation, none of them an evaluation row."""
    ids = read_json(line.artifact(round_number, "candidates").path / "ids.json")
    figures: dict[str, Any] = {"num_candidates": len(ids)}
    least = line.config.min_candidates
    if len(ids) < least:
        return Verdict(
            False,
            f"{len(ids)} usable candidates, fewer than min_candidates = {least}: generate more, or"
            " look at why rows were rejected",
            figures,
        )
    trusted = evaluation_keys(row for split in SPLITS for row in split_rows(line, split))
    for sample in line.store.get_samples(ids):
        make_sample(sample.messages)
        if prompt_key(sample) in trusted:
            return Verdict(
                False,
                f"candidate {sample.sample_id} asks what evaluation row"
                f" {trusted[prompt_key(sample)]} asks: materialize candidates again",
                figures,
            )
    return Verdict(True, f"{len(ids)} candidates, all well-formed", figures)


def gradients_finite(line: Line, round_number: int) -> Verdict:
    """Every stored feature is finite and of unit length, and most rows have one."""
    represented = line.artifact(round_number, "projected_gradients")
    facts = read_facts(represented)
    ids = read_json(represented.path / "ids.json")
    share = facts["num_unusable"] / max(1, facts["num_unusable"] + len(ids))
    figures: dict[str, Any] = {"num_rows": len(ids), "unusable_share": share}
    if not ids or share > LARGEST_UNUSABLE_SHARE:
        return Verdict(
            False,
            f"{facts['num_unusable']} rows have no usable gradient and {len(ids)} have one: look at"
            " unusable.json in the artifact for the reasons",
            figures,
        )
    stored = line.store.read_gradients(ids, facts["fingerprint"], facts["dim"])
    finite = np.isfinite(stored.vectors).all() and np.isfinite(stored.norms).all()
    figures["median_norm"] = float(np.median(stored.norms))
    figures["median_loss"] = float(np.median(stored.losses))
    if not finite or not (stored.norms > 0).all():
        sentence = "stored gradients are not finite: remove the stage's artifact"
        return Verdict(False, f"{sentence} and materialize projected_gradients again", figures)
    return Verdict(True, f"{len(ids)} gradients, all finite", figures)


def not_worse_than_before(line: Line, round_number: int) -> Verdict:
    """The trained adapter answers at least as many validation rows as the one before."""
    scores = read_facts(line.artifact(round_number, "evaluation"))
    before, after = scores["before_validation"], scores["after_validation"]
    return Verdict(
        after >= before,
        f"validation accuracy {before:.3f} before, {after:.3f} after",
        {"before": before, "after": after},
    )


def require(verdict: Callable[[Line, int], Verdict], line: Line, round_number: int) -> None:
    """Refuse to go on where a verdict is negative."""
    found = verdict(line, round_number)
    if not found.passed:
        raise DataError(f"round {round_number} of line {line.name!r}: {found.sentence}")

"""The stages of a round in their order: the architecture in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evoselect_pipeline.rounds.adaptation import evaluation, lora_checkpoint, promoted_adapter
from evoselect_pipeline.rounds.data import candidates, incoming_adapter
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.problem import answer_quality
from evoselect_pipeline.rounds.selection import (
    alignment_scores,
    projected_gradients,
    selected_subset,
)
from evoselect_pipeline.stores.artifacts import Artifact


@dataclass(frozen=True)
class Stage:
    """One stage: the function that makes its artifact, and the stages it reads."""

    run: Callable[[Line, int], Artifact]
    reads: tuple[str, ...]
    kinds: frozenset[str]
    uses_model: bool = False

    @property
    def name(self) -> str:
        """The function's name is the stage's, the artifact folder's and the asset's."""
        return self.run.__name__


def _stage(run, *reads: str, kinds: tuple[str, ...], uses_model: bool = False) -> Stage:
    return Stage(run, reads, frozenset(kinds), uses_model)


STAGES: tuple[Stage, ...] = (
    _stage(incoming_adapter, kinds=("huggingface",)),
    _stage(candidates, "incoming_adapter", "target_set", kinds=("lancedb",)),
    _stage(
        projected_gradients, "incoming_adapter", "target_set", "candidates",
        kinds=("pytorch", "lancedb"), uses_model=True,
    ),
    _stage(
        answer_quality, "incoming_adapter", "target_set", "projected_gradients",
        kinds=("pytorch", "huggingface"), uses_model=True,
    ),
    _stage(
        alignment_scores, "projected_gradients", "answer_quality", kinds=("numpy", "lancedb"),
    ),
    _stage(selected_subset, "alignment_scores", "candidates", kinds=("polars", "lancedb")),
    _stage(
        lora_checkpoint, "selected_subset", "incoming_adapter",
        kinds=("pytorch", "huggingface"), uses_model=True,
    ),
    _stage(
        evaluation, "lora_checkpoint", "incoming_adapter", "target_set",
        kinds=("pytorch", "mlflow"), uses_model=True,
    ),
    _stage(
        promoted_adapter, "evaluation", "lora_checkpoint", "incoming_adapter",
        kinds=("huggingface", "mlflow"),
    ),
)  # fmt: skip

"""The stages of a round in their order: the architecture in one table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from evoselect_pipeline.progress import working_on
from evoselect_pipeline.rounds.adaptation import evaluation, lora_checkpoint, promoted_adapter
from evoselect_pipeline.rounds.candidates import candidates
from evoselect_pipeline.rounds.costs import noted
from evoselect_pipeline.rounds.data import incoming_adapter
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.problem import answer_quality
from evoselect_pipeline.rounds.report import round_report
from evoselect_pipeline.rounds.selection import (
    alignment_scores,
    projected_gradients,
    selected_subset,
)
from evoselect_pipeline.stores.artifacts import Artifact
from evoselect_pipeline.stores.machine_load import watched


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

    def materialize(self, line: Line, round_number: int) -> Artifact:
        """Run the stage and note what it took; MLflow watches the machine where a model works."""
        with ExitStack() as watch:
            place = f"stage {STAGES.index(self) + 1} of {len(STAGES)}"
            watch.enter_context(working_on(f"{place}: {self.name}"))
            watch.enter_context(noted(line, round_number, self.name))
            if self.uses_model:
                watch.enter_context(watched(line.tracking, line.name, round_number))
            return self.run(line, round_number)


def _stage(run, *reads: str, kinds: tuple[str, ...], uses_model: bool = False) -> Stage:
    return Stage(run, reads, frozenset(kinds), uses_model)


STAGES: tuple[Stage, ...] = (
    # It does not read the targets, but comes after them: a backfill that has to make these first
    # would else make the first stage of all rounds before the second of any.
    _stage(incoming_adapter, "target_set", kinds=("huggingface",)),
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
    # What it reads of earlier stages shows in these as well: the graph draws the edges that matter.
    _stage(
        round_report, "promoted_adapter", "evaluation", "selected_subset", "alignment_scores",
        kinds=("markdown",),
    ),
)  # fmt: skip

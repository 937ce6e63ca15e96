"""Verdicts between the stages as Dagster asset checks."""

import warnings
from collections.abc import Callable

import dagster as dg

from evoselect_pipeline.components.metadata import metadata_of
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.verdicts import (
    Verdict,
    answers_as_long_as_targets,
    answers_not_drifting,
    budget_filled,
    canaries_unchanged,
    candidates_distinct,
    candidates_well_formed,
    gradients_finite,
    judge_knows_the_task,
    no_evaluation_row_among_candidates,
    not_worse_than_before,
    targets_reached,
    training_rows_end_with_eos,
    transport_converged,
    weights_not_collapsed,
    worth_promoting,
)
from evoselect_pipeline.stores.home import round_of

# Partitioned checks are marked a preview in Dagster 1.13; the pin in pyproject.toml guards them.
warnings.filterwarnings("ignore", message="Specifying a partitions_def", category=dg.PreviewWarning)

# (verdict, the asset it is about, whether a negative one stops the round)
CHECKS = (
    (candidates_well_formed, "candidates", True),
    (no_evaluation_row_among_candidates, "candidates", True),
    (candidates_distinct, "candidates", False),
    (answers_as_long_as_targets, "candidates", False),
    (gradients_finite, "projected_gradients", True),
    (transport_converged, "alignment_scores", True),
    (weights_not_collapsed, "alignment_scores", True),
    (targets_reached, "selected_subset", False),
    (budget_filled, "selected_subset", False),
    (training_rows_end_with_eos, "selected_subset", True),
    (not_worse_than_before, "evaluation", False),
    (answers_not_drifting, "evaluation", False),
    (judge_knows_the_task, "evaluation", False),
    (canaries_unchanged, "evaluation", False),
    (worth_promoting, "promoted_adapter", False),
)


def line_checks(
    config: LineConfig, partitions: dg.DynamicPartitionsDefinition
) -> list[dg.AssetChecksDefinition]:
    """The checks of one line."""
    return [_check(config, partitions, *entry) for entry in CHECKS]


def _check(
    config: LineConfig,
    partitions: dg.DynamicPartitionsDefinition,
    verdict: Callable[[Line, int], Verdict],
    asset: str,
    blocking: bool,
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=dg.AssetKey([config.line, asset]),
        name=verdict.__name__,
        description=verdict.__doc__,
        blocking=blocking,
        partitions_def=partitions,
    )
    def check(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
        found = verdict(Line(config, home.home()), round_of(context.partition_key))
        return dg.AssetCheckResult(
            passed=found.passed,
            severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN,
            description=found.sentence,
            metadata=metadata_of(found.figures),
        )

    return check

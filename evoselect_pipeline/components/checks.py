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
    candidates_well_formed,
    gradients_finite,
    not_worse_than_before,
)
from evoselect_pipeline.stores.home import round_of

# Partitioned checks are marked a preview in Dagster 1.13; the pin in pyproject.toml guards them.
warnings.filterwarnings("ignore", message="Specifying a partitions_def", category=dg.PreviewWarning)

# (verdict, the asset it is about, whether a negative one stops the round)
CHECKS = (
    (candidates_well_formed, "candidates", True),
    (gradients_finite, "projected_gradients", True),
    (not_worse_than_before, "evaluation", False),
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

"""Dagster components: what a `defs.yaml` can ask for."""

from evoselect_pipeline.components.evolution_line import EvolutionLine

__all__ = ["EvolutionLine"]

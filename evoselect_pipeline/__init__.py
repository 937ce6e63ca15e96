"""Generate, select, train, round after round: EvoSelect as a Dagster pipeline."""

__version__ = "0.1.0"

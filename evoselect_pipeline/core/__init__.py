"""The pure part: torch, numpy, scipy and POT only; no Dagster, MLflow or LanceDB."""

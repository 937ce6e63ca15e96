"""What every command starts with: the home and the line's configuration."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_file import PACKAGED_LINES, file_of_line, load_config
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.artifacts import write_text_atomic
from evoselect_pipeline.stores.home import MLFLOW_VARIABLE, Home

PLAYGROUND_CONFIG = PACKAGED_LINES / "playground/defs.yaml"


def read_line_config(
    config: Path | None, overrides: Sequence[str], line: str | None = None
) -> LineConfig:
    """The configuration that a command names; the playground's if it names none."""
    if config and line:
        raise ConfigError("give --config or --line, not both: each names a line's configuration")
    return load_config(config or (file_of_line(line) if line else PLAYGROUND_CONFIG), overrides)


def home_at(path: Path | None) -> Home:
    """The home that a command names, as it is on disk."""
    return Home(path) if path else Home.from_env()


def open_home(path: Path | None) -> Home:
    """The home that a command names, created if need be, Dagster's databases included."""
    home = home_at(path).init()
    _refuse_silent_mlflow(home)
    _init_dagster(home)
    return home


def _refuse_silent_mlflow(home: Home) -> None:
    """Say at once that the MLflow server is down; its client would try for minutes."""
    if not home.mlflow_is_served:
        return
    try:
        with urllib.request.urlopen(f"{home.mlflow_uri}/health", timeout=5):
            pass
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(
            f"the MLflow server at {home.mlflow_uri} does not answer ({error}); start it, or"
            f" mend {MLFLOW_VARIABLE}, or unset it to keep MLflow's data in the home"
        ) from None


def _init_dagster(home: Home) -> None:
    """Create Dagster's databases in this process alone.

    Processes that start at once on a fresh instance each stamp the same SQLite file with its
    version, and with two stamps in it no process can open it again.
    """
    marker = home.root / "dagster_version"
    if marker.exists():
        return
    import dagster as dg
    from filelock import FileLock

    # To open an instance is to create what it lacks.
    with (
        FileLock(home.locks_dir / "dagster.lock"),
        dg.DagsterInstance.from_config(str(home.dagster_dir)),
    ):
        write_text_atomic(marker, f"{dg.__version__}\n")


def open_line(
    config: Path | None, home: Path | None, overrides: Sequence[str], line: str | None = None
) -> Line:
    """A line in its home; the configuration is read first, so that a bad one creates nothing."""
    named = [("--config", config), ("--line", line), ("--home", home)]
    named += [("--set", override) for override in overrides]
    named_by = tuple(str(word) for option in named if option[1] for word in option)
    return Line(read_line_config(config, overrides, line), home_at(home), named_by)

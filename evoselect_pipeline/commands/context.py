"""What every command starts with: the home and the line's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import evoselect_pipeline
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_file import load_config
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.artifacts import write_text_atomic
from evoselect_pipeline.stores.home import Home

PLAYGROUND_CONFIG = Path(evoselect_pipeline.__file__).parent / "defs/playground/defs.yaml"


def read_line_config(config: Path | None, overrides: Sequence[str]) -> LineConfig:
    """The configuration that a command names; the playground's if it names none."""
    return load_config(config or PLAYGROUND_CONFIG, overrides)


def home_at(path: Path | None) -> Home:
    """The home that a command names, as it is on disk."""
    return Home(path) if path else Home.from_env()


def open_home(path: Path | None) -> Home:
    """The home that a command names, created if need be, Dagster's databases included."""
    home = home_at(path).init()
    _init_dagster(home)
    return home


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


def open_line(config: Path | None, home: Path | None, overrides: Sequence[str]) -> Line:
    """A line in its home; the configuration is read first, so that a bad one creates nothing."""
    return Line(read_line_config(config, overrides), home_at(home))

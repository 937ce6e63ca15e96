"""What every command starts with: the home and the line's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import evoselect_pipeline
from evoselect_pipeline.config import LineConfig, load_config
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.home import Home

PLAYGROUND_CONFIG = Path(evoselect_pipeline.__file__).parent / "defs/playground/defs.yaml"


def read_line_config(config: Path | None, overrides: Sequence[str]) -> LineConfig:
    """The configuration that a command names; the playground's if it names none."""
    return load_config(config or PLAYGROUND_CONFIG, overrides)


def home_at(path: Path | None) -> Home:
    """The home that a command names, as it is on disk."""
    return Home(path) if path else Home.from_env()


def open_home(path: Path | None) -> Home:
    """The home that a command names, created if need be."""
    return home_at(path).init()


def open_line(config: Path | None, home: Path | None, overrides: Sequence[str]) -> Line:
    """A line in its home; the configuration is read first, so that a bad one creates nothing."""
    return Line(read_line_config(config, overrides), home_at(home))

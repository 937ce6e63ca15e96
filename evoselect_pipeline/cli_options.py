"""Options that several commands take, in one place so that they mean the same everywhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How a report is written."""

    table = "table"
    json = "json"


ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A line's YAML; the playground if not given."),
]
LineName = Annotated[
    str | None,
    typer.Option("--line", metavar="LINE", help="A line that Dagster loads, instead of --config."),
]
HomeDir = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="Folder of all state.",
        show_default="$EVOSELECT_HOME or ./evoselect_home",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in selection.ratio=0.1."),
]
ReportFormat = Annotated[
    Format, typer.Option("--format", help="Table for people, JSON for programs.")
]

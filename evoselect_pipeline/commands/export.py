"""`evoselect export`: a round's adapter, or the merged model, as a folder for other tools."""

from __future__ import annotations

from pathlib import Path

from evoselect_pipeline.commands.console import (
    live_progress,
    print_json,
    print_table,
    stderr,
    stdout,
)
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.progress import working_on
from evoselect_pipeline.report.page import promotion_sentence
from evoselect_pipeline.rounds.export import Exported, champion_round, export_round
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.home import round_key


def export(line: Line, round_number: int | None, out: Path, *, merged: bool, format: str) -> None:
    """Export the adapter of a finished round, by default the champion's, and say what was written.

    Raises
    ------
    ConfigError
        If there is something at `out` already, or no folder to put it into.
    """
    out = out.absolute()
    _refuse_out(out)
    wanted = champion_round(line) if round_number is None else round_number
    what = "merging adapter and model" if merged else "writing the adapter"
    with live_progress(), working_on(what):
        exported = export_round(line, wanted, out, merged=merged)
    if not exported.told.promotion.promoted:
        stderr.print(f"[yellow]{promotion_sentence(exported.told.promotion)}[/yellow]")
    _report(exported, out, format)


def _refuse_out(out: Path) -> None:
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: folder {out.parent} does not exist; create it first")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ConfigError(
            f"--out {out}: there is something already, and nothing is written over; name a folder"
            " that does not exist yet"
        )


def _report(exported: Exported, out: Path, format: str) -> None:
    told, merge = exported.told, exported.merge
    summary = {
        "out": str(out),
        "round": told.round,
        "promoted": told.promotion.promoted,
        "merged": merge is not None,
        "max_logit_difference": merge.difference if merge else None,
        "lineage_digest": told.lineage_digest,
        "num_rows": told.num_rows,
    }
    if format == "json":
        print_json(summary)
        return
    if merge:
        summary["max_logit_difference"] = (
            f"{merge.difference:.3g} ({merge.tolerance:.3g} tolerated)"
        )
    what = "Merged model" if merge else "Adapter"
    head = f"{what} of round {round_key(told.round)} of line {told.line}"
    rows = [(name.replace("_", " "), value) for name, value in summary.items() if value is not None]
    print_table(head, ["", ""], rows)
    stdout.print(f"How to load it, and what it was made from: {out / 'README.md'}")

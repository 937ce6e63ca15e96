"""`evoselect lineage`: where a row came from, what was decided about it, and what it trained."""

from __future__ import annotations

from typing import Any

from evoselect_pipeline.commands.console import print_json, print_table, stdout
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.lineage import known, rows_behind, story
from evoselect_pipeline.stores.home import round_key


def show_lineage(
    sample_id: str | None,
    round_number: int | None,
    adapter: int | None,
    line: Line,
    format: str,
) -> None:
    """Show one row's story, all decisions of a round, or the rows behind a round's adapter."""
    if (sample_id is not None) + (round_number is not None) + (adapter is not None) != 1:
        raise ConfigError(
            "give one of a sample id, --round and --adapter, as in `evoselect lineage --round 0`"
        )
    if sample_id is not None:
        _show_story(story(line, sample_id), format)
    elif round_number is not None:
        _show_round(line, round_number, format)
    elif adapter is not None:
        _show_adapter(line, adapter, format)


def _show_story(told: dict[str, Any], format: str) -> None:
    if format == "json":
        print_json(told)
        return
    about = [
        ("sample", told["sample_id"]),
        *((turn["role"], turn["content"]) for turn in told["messages"]),
        ("written by", told["source"]),
        ("from prompt", told["prompt_id"]),
        ("grown from", ", ".join(told["parents"])),
        ("first seen", f"line {told['first_line']}, round {told['first_round']}"),
    ]
    print_table("The row", ["", ""], [(name, value) for name, value in about if value])
    for decision in told["decisions"]:
        head = f"Round {round_key(decision['round'])} of line {decision['line']}"
        print_table(f"{head}: {decision['stage']}", ["", ""], _rows_of(decision, told))
    if told["adapters"]:
        columns = ["round", "learned_in", "validation", "test", "promoted", "adapter"]
        rows = [
            [", ".join(a[name]) if name == "learned_in" else a[name] for name in columns]
            for a in told["adapters"]
        ]
        heads = [name.replace("_", " ") for name in columns]
        print_table("Adapters that learned from it", heads, rows)
    elif not any(decision["selected"] for decision in told["decisions"]):
        stdout.print("No adapter was trained on it.")


def _rows_of(decision: dict[str, Any], told: dict[str, Any]) -> list[tuple[str, Any]]:
    """One decision with the scores and the gradient behind it."""
    hidden = {"line", "round", "sample_id", "stage"}
    rows = [(name, value) for name, value in decision.items() if name not in hidden]
    for kind in ("scores", "gradients"):
        for record in told[kind]:
            same = record["round"] == decision["round"]
            if same and record.get("line", decision["line"]) == decision["line"]:
                known = {name for name, _ in rows} | hidden
                rows += [(name, value) for name, value in record.items() if name not in known]
    return [_told(name, value) for name, value in rows]


def _told(name: str, value: Any) -> tuple[str, Any]:
    if name == "prior":
        return "its answer", f"plausible at {value:.0%}"
    return name.replace("_", " "), value


def _show_round(line: Line, round_number: int, format: str) -> None:
    frame = line.store.read_decisions(line.name, round_number)
    if frame.is_empty():
        raise DataError(f"round {round_number} of line {line.name!r} has no decisions yet")
    if format == "json":
        print_json([known(decision) for decision in frame.to_dicts()])
        return
    chosen = frame.filter(frame["selected"]).sort("rank")
    columns = ["rank", "sample_id", "reason"]
    shown = chosen.select(columns).head(20).rows()
    print_table(f"Round {round_key(round_number)}: the first chosen rows", columns, shown)
    counts = frame.group_by("stage").len().sort("len", descending=True).rows()
    print_table("All decisions", ["decision", "rows"], counts)
    stdout.print("One row's whole story: evoselect lineage SAMPLE_ID")


def _show_adapter(line: Line, round_number: int, format: str) -> None:
    rows = rows_behind(line, round_number)
    if format == "json":
        print_json(rows.to_dicts())
        return
    columns = ["round", "rank", "sample_id", "source", "reason"]
    shown = rows.select(columns).head(20).rows()
    head = f"The adapter of round {round_key(round_number)}: the first rows it learned from"
    print_table(head, columns, shown)
    counts = rows.group_by("round", maintain_order=True).len().rows()
    print_table("All rows, by round", ["round", "rows"], counts)
    stdout.print("All of them: --format json. One row's whole story: evoselect lineage SAMPLE_ID")

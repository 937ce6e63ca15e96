"""`evoselect lineage`: where a row came from, what was decided about it, and what it trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from typing import Any

from evoselect_pipeline.commands.console import print_json, print_table, stdout
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.report.text import one_line
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.lineage import decisions_of, rows_behind, story, with_texts
from evoselect_pipeline.stores.home import round_key

SHORT_ID = 8
MOST_CHARS = 60  # of a question or an answer in a table


def show_lineage(
    sample_id: str | None,
    round_number: int | None,
    adapter: int | None,
    line: Line,
    limit: int,
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
        _show_round(line, round_number, limit, format)
    elif adapter is not None:
        _show_adapter(line, adapter, limit, format)


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


def _show_round(line: Line, round_number: int, limit: int, format: str) -> None:
    decisions = decisions_of(line, round_number)
    if format == "json":
        print_json(with_texts(line, decisions))
        return
    chosen = sorted((d for d in decisions if d["selected"]), key=lambda d: d["rank"])
    shown = with_texts(line, _first(chosen, limit))
    head = f"Round {round_key(round_number)}: {_of_all(shown, chosen)} chosen rows"
    _print_rows(head, ["rank"], shown)
    counts = Counter(decision["stage"] for decision in decisions).most_common()
    print_table("All decisions", ["decision", "rows"], counts)
    _print_hints(line, f"lineage --round {round_number}", more=len(shown) < len(chosen))


def _show_adapter(line: Line, round_number: int, limit: int, format: str) -> None:
    rows = rows_behind(line, round_number)
    if format == "json":
        print_json(with_texts(line, rows.to_dicts()))
        return
    shown = with_texts(line, _first(rows.to_dicts(), limit))
    head = f"The adapter of round {round_key(round_number)}: {_of_all(shown, rows)} rows behind it"
    _print_rows(head, ["round", "rank", "source"], shown)
    counts = rows.group_by("round", maintain_order=True).len().rows()
    print_table("All rows, by round", ["round", "rows"], counts)
    _print_hints(line, f"lineage --adapter {round_number}", more=len(shown) < len(rows))


def _first(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    return rows[:limit] if limit else rows


def _of_all(shown: Sized, rows: Sized) -> str:
    return f"{len(shown)} of {len(rows)}" if len(shown) < len(rows) else f"all {len(rows)}"


def _print_rows(head: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the beginnings of question and answer."""
    cells = [
        [
            *(row[name] for name in columns),
            row["sample_id"][:SHORT_ID],
            one_line(row["prompt"], MOST_CHARS),
            one_line(row["completion"], MOST_CHARS),
            row["reason"],
        ]
        for row in rows
    ]
    print_table(head, [*columns, "row", "question", "answer", "reason"], cells)


def _print_hints(line: Line, command: str, *, more: bool) -> None:
    hints = [("One row's whole story", line.command("lineage ROW"))]
    if more:
        hints.insert(0, ("All of them", line.command(f"{command} --limit 0")))
    hints.append(("Whole texts, every decision", line.command(f"{command} --format json")))
    for what, hint in hints:
        stdout.print(f"{what}: {hint}", markup=False, highlight=False)

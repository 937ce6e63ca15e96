"""`evoselect lineage`: where a row came from, what was decided about it, and what it trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evoselect_pipeline.commands.console import print_json, print_table, stdout
from evoselect_pipeline.commands.context import open_line
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.rounds.line import PROMOTED, Line, read_facts
from evoselect_pipeline.stores.home import round_key


def show_lineage(
    sample_id: str | None,
    round_number: int | None,
    config: Path | None,
    home: Path | None,
    format: str,
) -> None:
    """Show one row's story, or all decisions of a round."""
    if (sample_id is None) == (round_number is None):
        raise ConfigError("give either a sample id or --round, as in `evoselect lineage --round 0`")
    line = open_line(config, home, ())
    if sample_id is not None:
        _show_story(story(line, sample_id), format)
    else:
        assert round_number is not None
        _show_round(line, round_number, format)


def story(line: Line, prefix: str) -> dict[str, Any]:
    """Everything known about a row, from all rounds of all lines of the home.

    Parameters
    ----------
    prefix : str
        The row's id or its first digits.
    """
    sample_id = line.store.find_sample(prefix)
    row = line.store.sample_row(sample_id)
    decisions = line.store.decisions_of(sample_id).to_dicts()
    scores = line.store.scores_of(sample_id).to_dicts()
    chosen = [d["round"] for d in decisions if d["selected"] and d["line"] == line.name]
    return {
        **row,
        "decisions": [_known(decision) for decision in decisions],
        "scores": [_known(score) for score in scores],
        "gradients": [_gradient(line, sample_id, score["round"]) for score in scores
                      if score["line"] == line.name],
        "adapters": [adapter for number in chosen for adapter in _adapters(line, number)],
    }  # fmt: skip


def _known(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value is not None}


def _gradient(line: Line, sample_id: str, round_number: int) -> dict[str, Any]:
    facts = read_facts(line.artifact(round_number, "projected_gradients"))
    stored = line.store.read_gradients([sample_id], facts["fingerprint"], facts["dim"])
    return {
        "round": round_number,
        "norm": float(stored.norms[0]),
        "loss": float(stored.losses[0]),
        "num_tokens": int(stored.num_tokens[0]),
    }


def _adapters(line: Line, round_number: int) -> list[dict[str, Any]]:
    """The adapter that a round trained, with its scores, if the round got that far."""
    if not (line.stage_dir(round_number, PROMOTED) / "manifest.json").is_file():
        return []
    scores = read_facts(line.artifact(round_number, "evaluation"))
    return [
        {
            "round": round_number,
            "adapter": str(line.stage_dir(round_number, "lora_checkpoint") / "adapter"),
            "validation": scores["after_validation"],
            "test": scores["after_test"],
            "promoted": read_facts(line.artifact(round_number, PROMOTED))["promoted"],
        }
    ]


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
        columns = ["round", "validation", "test", "promoted", "adapter"]
        rows = [[adapter[name] for name in columns] for adapter in told["adapters"]]
        print_table("Adapters trained on it", columns, rows)
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
        print_json([_known(decision) for decision in frame.to_dicts()])
        return
    chosen = frame.filter(frame["selected"]).sort("rank")
    columns = ["rank", "sample_id", "reason"]
    shown = chosen.select(columns).head(20).rows()
    print_table(f"Round {round_key(round_number)}: the first chosen rows", columns, shown)
    counts = frame.group_by("stage").len().sort("len", descending=True).rows()
    print_table("All decisions", ["decision", "rows"], counts)
    stdout.print("One row's whole story: evoselect lineage SAMPLE_ID")

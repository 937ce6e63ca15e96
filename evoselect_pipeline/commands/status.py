"""`evoselect status`, and the summary at the end of a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from evoselect_pipeline.commands.console import print_json, print_table, stdout
from evoselect_pipeline.errors import RoundOrderError
from evoselect_pipeline.rounds.champion import champion
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.report import html_file, round_facts
from evoselect_pipeline.rounds.verdicts import budget_filled, judge_knows_the_task

LAST_ROUNDS = 5  # as many as a narrow terminal has room for
EXPLANATION = """\
Accuracy is the test rows' mean score by the task's metric. base: the model as it came; before and
after: the adapter that entered the round, and the one trained on the selected rows. An adapter is
promoted unless the validation rows say that it may be worse than the one before, or that its
answers have grown too long or do not end."""


def report(line: Line, format: str, seconds: Mapping[int, float]) -> None:
    """Write the finished rounds of a line, and its champion, as a table or as JSON."""
    rounds = [round_facts(line, number) for number in range(line.next_round())]
    for facts in rounds:
        if facts["round"] in seconds:
            facts["seconds"] = round(seconds[facts["round"]], 1)
    champion = champion_of(line, rounds)
    if format == "json":
        print_json({"rounds": rounds, "champion": champion})
        return
    if not rounds:
        _print_whose(line)
        stdout.print("Make the first:")
        stdout.print(f"  {line.command('run --rounds 1')}", markup=False, highlight=False)
        return
    columns = ["round", "base", "before", "after", "promoted", "candidates", "selected"]
    if timed := any("seconds" in facts for facts in rounds):
        columns.append("seconds")
    rows = [_row(facts, timed) for facts in rounds]
    print_table(f"Line {line.name}: accuracy on the test rows", columns, rows)
    stdout.print(EXPLANATION, style="dim")
    if headline := rounds[-1]["headline"]:
        stdout.print(f"\nRound {rounds[-1]['round']}: {headline}", markup=False, highlight=False)
    _print_rejections(rounds)
    _print_doubts(line, rounds)
    _print_champion(line, champion, rounds[-1])


def _print_champion(line: Line, champion: Mapping[str, Any], last: Mapping[str, Any]) -> None:
    if "problem" in champion:
        stdout.print(f"\nNo champion: {champion['problem']}")
        return
    gain = champion["test"] - last["base"]
    stdout.print(
        f"\nThe champion answers {champion['test']:.1%} of the test rows; the base model answers"
        f" {last['base']:.1%} ({gain:+.1%})."
    )
    stdout.print(f"Adapter:  {champion['adapter']}")
    look = f"evoselect ui --home {shlex.quote(str(line.home.root))}"
    stdout.print(f"Look:     {look}", markup=False, highlight=False)
    report_file = html_file(line, last["round"])
    stdout.print(f"Report:   {report_file}")
    explain = line.command(f"lineage --round {last['round']}")
    stdout.print(f"Explain:  {explain}", markup=False, highlight=False)


def champion_of(line: Line, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The adapter that serves: promoted or appointed, or the bare base model.

    Where it was trained again since it was promoted there is none, and `problem` says what to do.
    """
    if not rounds:
        return {}
    try:
        adapter = champion(line)
    except RoundOrderError as error:
        return {"line": line.name, "problem": str(error)}
    if adapter.trained_in is None:
        test, path = rounds[-1]["base"], "the base model"
    else:
        test, path = rounds[adapter.trained_in]["after"], str(adapter.path)
    return {"line": line.name, "round": adapter.trained_in, "adapter": path, "test": test}


def _row(facts: Mapping[str, Any], timed: bool) -> list[Any]:
    names = ("round", "base", "before", "after", "promoted", "num_candidates", "num_selected")
    row = [facts[name] for name in names]
    return [*row, facts.get("seconds")] if timed else row


def _print_rejections(rounds: Sequence[Mapping[str, Any]]) -> None:
    """Why candidates of the last rounds were left out: a row a reason, a column a round."""
    shown = rounds[-LAST_ROUNDS:]
    stages = sorted({stage for facts in shown for stage in facts["rejected"]})
    rows = [
        [stage.replace("_", " "), *(facts["rejected"].get(stage, 0) for facts in shown)]
        for stage in stages
    ]
    columns = ["reason", *(f"round {facts['round']}" for facts in shown)]
    print_table("Candidates left out, by reason", columns, rows)


def _print_doubts(line: Line, rounds: Sequence[Mapping[str, Any]]) -> None:
    """Tell which of the last rounds had few rows to choose, or a judge that knows little."""
    for facts in rounds[-LAST_ROUNDS:]:
        for verdict in (budget_filled, judge_knows_the_task):
            found = verdict(line, facts["round"])
            if not found.passed:
                text = f"Round {facts['round']}: {found.sentence}"
                stdout.print(text, style="yellow", markup=False, highlight=False)


def _print_whose(line: Line) -> None:
    """Say of which line and home there is nothing to show, and what else is there."""
    stdout.print(f"Line {line.name} has no finished round in {line.home.root}.", highlight=False)
    manifests = (line.home.root / "lines").glob("*/0000/*/manifest.json")
    others = {manifest.parents[2].name for manifest in manifests} - {line.name}
    if others:
        names = ", ".join(sorted(others))
        stdout.print(f"Lines with rounds there: {names}; name one by --line or --config.")

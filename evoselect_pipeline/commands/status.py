"""`evoselect status`, and the summary at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evoselect_pipeline.commands.console import print_json, print_table, stdout
from evoselect_pipeline.errors import RoundOrderError
from evoselect_pipeline.rounds.adaptation import round_facts
from evoselect_pipeline.rounds.champion import champion
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.report import html_file

LAST_ROUNDS = 5  # as many as a narrow terminal has room for
EXPLANATION = """\
Accuracy is the test rows' mean score by the task's metric. base: the model as it came; before and
after: the adapter that entered the round, and the one trained on the selected rows. An adapter is
promoted unless the validation rows say that it may be worse than the one before."""


def report(line: Line, format: str, seconds: Mapping[int, float], named_by: str = "") -> None:
    """Write the finished rounds of a line, and its champion, as a table or as JSON.

    `named_by` are the options that name the line, for the commands that are hinted at.
    """
    rounds = [round_facts(line, number) for number in range(line.next_round())]
    for facts in rounds:
        if facts["round"] in seconds:
            facts["seconds"] = round(seconds[facts["round"]], 1)
    champion = champion_of(line, rounds)
    if format == "json":
        print_json({"rounds": rounds, "champion": champion})
        return
    if not rounds:
        stdout.print(f"Line {line.name} has no finished round yet; `evoselect run` makes them.")
        return
    columns = ["round", "base", "before", "after", "promoted", "candidates", "selected"]
    if timed := any("seconds" in facts for facts in rounds):
        columns.append("seconds")
    rows = [_row(facts, timed) for facts in rounds]
    print_table(f"Line {line.name}: accuracy on the test rows", columns, rows)
    stdout.print(EXPLANATION, style="dim")
    _print_rejections(rounds)
    if "problem" in champion:
        stdout.print(f"\nNo champion: {champion['problem']}")
        return
    last = rounds[-1]
    gain = champion["test"] - last["base"]
    stdout.print(
        f"\nThe champion answers {champion['test']:.1%} of the test rows; the base model answers"
        f" {last['base']:.1%} ({gain:+.1%})."
    )
    stdout.print(f"Adapter:  {champion['adapter']}")
    stdout.print(f"Look:     evoselect ui --home {line.home.root}")
    report_file = html_file(line, last["round"])
    stdout.print(f"Report:   {report_file}")
    round_of = f"--round {last['round']} --home {line.home.root}"
    stdout.print(f"Explain:  evoselect lineage {named_by}{round_of}")


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

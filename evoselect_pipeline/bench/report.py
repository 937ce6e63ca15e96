"""Figures of a bench as tables, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evoselect_pipeline.bench.adaptation import FILES_WORLD
from evoselect_pipeline.bench.summary import ALL_TASKS, BASE, REFERENCE

READING = f"""\
Intervals: 95 % bootstrap over seeds; none for a single seed, too narrow for fewer than about ten.
{REFERENCE} minus it: paired over the seeds that both have. gap closed: 0 is random rows, 1 is the
oracle, which draws among the rows known to be good. below base: chains, that is tasks times seeds,
that end below the base model, and in parentheses those that do so by more than the test rows can
explain; gated: the same for the champion of the promotion gate. wins: share of chains in which a
method is first, equals sharing. The rows are those of the last round: how many were chosen, the
flawless among them, their distance to the targets, effective number (Vendi), share with a near
copy, and share of the targets that have a row within reach."""
CHOSEN = {
    "good_share": "good rows",
    "num_selected": "rows",
    "ot_distance": "OT distance",
    "vendi": "Vendi",
    "near_duplicate_share": "near copies",
    "target_coverage": "coverage",
    "wins": "wins",
}
SHARES = {"good_share", "near_duplicate_share", "target_coverage", "wins"}


class Table(NamedTuple):
    """A table before anybody writes it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """For each world: its methods over all tasks, task by task, and what each of them chose."""
    found = []
    for world in dict.fromkeys(row["world"] for row in results):
        rows = [row for row in results if row["world"] == world]
        tasks = [task for task in dict.fromkeys(row["task"] for row in rows) if task != ALL_TASKS]
        overall = [row for row in rows if row["task"] == ALL_TASKS]
        found.append(_methods(f"{_where(world)}: {_which(tasks)}", overall))
        if len(tasks) > 1:
            found.append(_tasks(f"{_where(world)}: test accuracy by task", rows, overall, tasks))
        found.append(_chosen(f"{_where(world)}: wins, and the rows chosen", overall))
    return found


def markdown(title: str, matched: str, found: Sequence[Table]) -> str:
    """A page of tables."""
    parts = [f"# {title}", matched]
    for table in found:
        lines = [table.columns, ["---"] * len(table.columns), *table.rows]
        parts.append(f"## {table.title}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, READING.replace("\n", " ")]) + "\n"


def matched(run: Mapping[str, Any]) -> str:
    """What the arms had in common, on what, and with what it was measured."""
    effort = (
        f"{run['steps']} optimizer steps of {run['batch_size']} rows"
        if run["epochs"] is None
        else f"{run['epochs']:g} epochs over its rows, {run['batch_size']} in a step,"
    )
    seeds = run["seeds"]
    which = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    if not run["num_candidates"]:  # what a file holds is the same for every seed
        which += ", which differ in draws and training alone"
    pools = f"{run['num_candidates']} fresh candidates" if run["num_candidates"] else "the file"
    hours = run["chain_seconds"] / 3600
    took = f" All chains together took {hours:.3g} core-hours." if hours else ""
    return (
        f"Matched: in each of {run['rounds']} rounds every arm chose from the same {pools} at most"
        f" a share of {run['ratio']:g} of the rows (`all` took all of them), and trained for"
        f" {effort} on top of its last adapter. Seeds {which}. {run['num_targets']} target,"
        f" {run['num_validation']} validation and {run['num_test']} test rows a task."
        f" Measured on {run['machine']}, with {told(run['versions'])}.{took}"
    )


def told(facts: Mapping[str, Any]) -> str:
    """Names and values in a row, as of packages and their versions."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def percent(share: float | None) -> str:
    """A share as a whole percentage."""
    return "" if share is None else f"{share:.0%}"


def _methods(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    num_rounds = max(len(row["after_rounds"]) for row in rows)
    most_seeds = max(row["num_seeds"] for row in rows)
    columns = [
        "method",
        *(f"round {number + 1}" for number in range(num_rounds)),
        "interval",
        f"{REFERENCE} minus it",
        "gap closed",
        "below base",
        "gated",
        "good rows",
    ]
    cells = []
    for row in rows:
        after = [*row["after_rounds"], *[None] * num_rounds][:num_rounds]
        fewer = row["num_seeds"] < most_seeds
        cells.append(
            [
                f"{row['method']} ({row['num_seeds']} seeds)" if fewer else row["method"],
                *(_number(value) for value in after),
                _bounds(row),
                _lead(row["difference"], most_seeds),
                percent(row["gap_closed"]),
                _below(row, ""),
                _below(row, "champion_"),
                percent(row["good_share"]),
            ]
        )
    return without_empty(Table(title, columns, cells))


def _chosen(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [
        [row["method"], *(_fact(name, row[name]) for name in CHOSEN)]
        for row in rows
        if row["method"] != BASE
    ]
    return without_empty(Table(title, ["method", *CHOSEN.values()], cells))


def _fact(name: str, value: float | None) -> str:
    if value is None or name in SHARES:
        return percent(value)
    return f"{value:.0f}" if value >= 10 else f"{value:.3f}"


def _tasks(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    overall: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
) -> Table:
    row_of = {(row["task"], row["method"]): row for row in rows}
    cells = []
    for method in (row["method"] for row in overall):
        its = [row_of[task, method] for task in tasks]
        cells.append([method, *(f"{_number(row['mean'])}  {_bounds(row)}".strip() for row in its)])
    return Table(title, ["method", *tasks], cells)


def without_empty(table: Table) -> Table:
    """Leave out the columns that say nothing of any method, as gaps without an oracle."""
    kept = [n for n in range(len(table.columns)) if any(row[n] for row in table.rows)]
    rows = [[row[n] for n in kept] for row in table.rows]
    return Table(table.title, [table.columns[n] for n in kept], rows)


def _where(world: str) -> str:
    return "Your files" if world == FILES_WORLD else f"{world.capitalize()} generator"


def _which(tasks: Sequence[str]) -> str:
    return f"test accuracy, {'mean of ' if len(tasks) > 1 else ''}{', '.join(tasks)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bounds(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['low']:.3f}–{row['high']:.3f}"


def _lead(difference: Mapping[str, Any] | None, num_seeds: int) -> str:
    """A difference; where it rests on fewer seeds than others do, it says on how many."""
    if difference is None:
        return ""
    text = f"{difference['mean']:+.3f}"
    if difference["low"] is not None:
        text += f" [{difference['low']:+.3f},{difference['high']:+.3f}]"
    fewer = difference["num_seeds"] < num_seeds
    return f"{text} on {difference['num_seeds']} seeds" if fewer else text


def _below(row: Mapping[str, Any], prefix: str) -> str:
    total = row["num_chains"]
    if not total:
        return ""
    below, clearly = (
        round(row[f"{prefix}share_below_base{noise}"] * total) for noise in ("", "_beyond_noise")
    )
    return f"{below}/{total} ({clearly})"

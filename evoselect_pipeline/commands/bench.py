"""`evoselect bench adaptation` and `bench ablation`: compute what is missing, then report."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from evoselect_pipeline.bench.adaptation import Cell, machine, plan, read_cells, run_cells
from evoselect_pipeline.bench.arms import (
    ABLATIONS,
    METHODS,
    ORACLE,
    Arm,
    ablation_arm,
    ablation_names,
    method_arm,
)
from evoselect_pipeline.bench.plot import plot
from evoselect_pipeline.bench.report import READING, markdown, matched, tables
from evoselect_pipeline.bench.summary import RANDOM, summarize
from evoselect_pipeline.commands.console import (
    live_progress,
    print_failure,
    print_json,
    print_table,
    stderr,
    stdout,
)
from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.config import LineConfig, PlaygroundSource, PlaygroundTask
from evoselect_pipeline.errors import ConfigError, EvoselectError
from evoselect_pipeline.generation.playground import WORLDS
from evoselect_pipeline.playground.tasks import TASKS
from evoselect_pipeline.stores.artifacts import write_text_atomic

# Keys that the bench gives values of its own, and the option that says which.
OWN_KEYS = {
    "seed": "--seeds and --first-seed",
    "task.name": "--task",
    "generator.world": "--world",
    "selection.method": "--methods or --arms",
}


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; None where an option was not given."""

    worlds: str | None
    tasks: str | None
    arms: str | None
    num_seeds: int
    first_seed: int
    ratio: float | None
    num_rounds: int
    epochs: float | None
    config: Path | None
    overrides: tuple[str, ...]
    num_workers: int | None
    out: Path


@dataclass(frozen=True)
class Bench:
    """A request that was found good: what to compute, and how to call it."""

    title: str
    config: LineConfig
    blocks: list[list[Cell]]
    arms: tuple[str, ...]
    num_rows: dict[str, int]
    num_workers: int
    out: Path

    @property
    def cells(self) -> list[Cell]:
        """All cells, in the order of the blocks."""
        return [cell for block in self.blocks for cell in block]

    def distinct(self, name: str) -> list[Any]:
        """The worlds, tasks or seeds of the cells."""
        return list(dict.fromkeys(getattr(cell, name) for cell in self.cells))

    def num_done(self) -> int:
        """How many cells are there."""
        return sum(cell.path(self.out).is_file() for cell in self.cells)


def bench_adaptation(request: Request, format: str) -> int:
    """Compare selectors end to end; return 0, or 1 if a chain failed."""
    config = _config(request)
    known = (*METHODS, ORACLE) if isinstance(config.task, PlaygroundTask) else METHODS
    default = ("all", RANDOM, *(name for name in known if name not in ("all", RANDOM)))
    arms = _names("--methods", request.arms, default, (*METHODS, ORACLE))
    if ORACLE in arms and ORACLE not in known:
        raise ConfigError(
            "--methods oracle: draws among the rows known to be good, and nobody said which of"
            " your rows are; leave it out"
        )
    title = "Adaptation bench: selectors compared end to end"
    return _bench(_prepare(request, config, title, arms, method_arm), format)


def bench_ablation(request: Request, format: str) -> int:
    """Compare EvoSelect with itself less one part; return 0, or 1 if a chain failed."""
    config = _config(request)
    arms = _names("--arms", request.arms, ablation_names(config), tuple(ABLATIONS))
    title = "Ablation bench: EvoSelect with one part changed"
    return _bench(_prepare(request, config, title, arms, ablation_arm), format)


def _config(request: Request) -> LineConfig:
    for override in request.overrides:
        key = override.partition("=")[0]
        if key in OWN_KEYS:
            raise ConfigError(f"--set {key}: the bench sets it itself; use {OWN_KEYS[key]}")
    overrides = list(request.overrides)
    if request.ratio is not None:
        overrides.append(f"selection.ratio={request.ratio}")
    if request.epochs is not None:
        overrides.append(f"train.epochs={request.epochs}")
    return read_line_config(request.config, overrides)


def _names(
    option: str, text: str | None, default: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    """Names from a list with commas, each once; refuse one that is not known."""
    if text is None:
        return tuple(default)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"{option} {text!r}: names nothing; expected some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{option} {name!r}: unknown; expected some of {', '.join(known)}, with commas"
                " between them"
            )
    return names


def _prepare(
    request: Request,
    config: LineConfig,
    title: str,
    arms: tuple[str, ...],
    arm_of: Callable[[str, LineConfig], Arm],
) -> Bench:
    """Refuse bad input before anything is computed: names, rows, models, files of later rounds."""
    worlds, tasks = _worlds_and_tasks(request, config)
    if request.out.exists() and not request.out.is_dir():
        raise ConfigError(f"--out {request.out}: is a file; expected a folder, or a new name")
    seeds = range(request.first_seed, request.first_seed + request.num_seeds)
    blocks = plan(
        config,
        worlds,
        tasks,
        seeds,
        request.num_rounds,
        lambda own: [arm_of(name, own) for name in arms],
    )
    num_rows = _read_input([block[0].arm.config for block in blocks], request.num_rounds)
    num_workers = min(request.num_workers or os.cpu_count() or 1, len(blocks))
    return Bench(title, config, blocks, arms, num_rows, num_workers, request.out)


def _worlds_and_tasks(request: Request, config: LineConfig) -> tuple[Sequence[str], Sequence[str]]:
    if isinstance(config.task, PlaygroundTask):
        worlds = _names("--world", request.worlds, tuple(WORLDS), tuple(WORLDS))
        return worlds, _names("--task", request.tasks, TASKS, TASKS)
    for option, given in (("--world", request.worlds), ("--task", request.tasks)):
        if given is not None:
            raise ConfigError(
                f"{option} {given}: belongs to the playground, but {request.config} names your own"
                f" files; leave {option} out"
            )
    return (), ()


def _read_input(configs: Sequence[LineConfig], num_rounds: int) -> dict[str, int]:
    """Read every task's rows, the rounds' files and the model's; the number of rows."""
    from evoselect_pipeline.rounds.candidates import load_generator
    from evoselect_pipeline.rounds.data import SPLITS, load_task
    from evoselect_pipeline.training.models import check_model

    sources = {repr((config.task, config.generator)): config for config in configs}
    rows = [load_task(config) for config in sources.values()]
    for config in sources.values():
        check_model(config.model)
        for number in range(num_rounds):
            load_generator(config).fingerprint(number)
    return {f"num_{split}": len(getattr(rows[0], split)) for split in SPLITS}


def _bench(bench: Bench, format: str) -> int:
    _announce(bench)
    started = time.monotonic()
    try:
        with live_progress():
            run_cells(bench.blocks, bench.out, bench.num_workers)
    except KeyboardInterrupt:
        _say_kept(bench)
        raise
    except EvoselectError as error:
        print_failure("the bench failed", str(error))
        _say_kept(bench)
        return 1
    except BrokenProcessPool:
        stderr.print("[red]the bench failed[/red]: a worker was killed; if memory ran out, lower")
        stderr.print("--workers.")
        _say_kept(bench)
        return 1
    _report(bench, time.monotonic() - started, format)
    return 0


def _announce(bench: Bench) -> None:
    names = [*bench.distinct("world"), *bench.distinct("task")]
    done, total = bench.num_done(), len(bench.cells)
    run = _run_facts(bench, 0.0, ())
    lines = (
        f"[bold]{bench.title}[/bold]",
        f"{total} chains of {run['rounds']} rounds: {len(bench.arms)} arms, {', '.join(names)},"
        f" {len(run['seeds'])} seeds from {run['seeds'][0]}; {done} are finished already",
        escape(matched(run)),
        f"{bench.num_workers} workers, a core each; finished chains are kept in {bench.out}",
    )
    for line in lines:
        stderr.print(line, soft_wrap=True, highlight=False)


def _say_kept(bench: Bench) -> None:
    stderr.print(
        f"{bench.num_done()} of {len(bench.cells)} chains are kept in {bench.out}; the same command"
        " goes on from there:",
        soft_wrap=True,
    )
    stderr.print(f"  {shlex.join(['evoselect', *sys.argv[1:]])}", soft_wrap=True, markup=False)


def _report(bench: Bench, seconds: float, format: str) -> None:
    """Write the figures: JSON, Markdown and a picture to the folder, and a report to stdout."""
    records = read_cells(bench.blocks, bench.out)
    results = summarize(records, bench.distinct("task"))
    run = _run_facts(bench, seconds, records)
    found = tables(results)
    write_text_atomic(bench.out / "results.md", markdown(bench.title, matched(run), found))
    rounds = f"{run['rounds']} round{'s' * (run['rounds'] > 1)}"
    heading = f"Test accuracy after {rounds}, {len(run['seeds'])} seeds, ratio {run['ratio']:g}"
    plot(results, heading, bench.out / "results.png")
    report = {"results": results, "run": run}
    write_text_atomic(bench.out / "results.json", json.dumps(report, indent=1) + "\n")
    if format == "json":
        print_json(report)
        return
    for table in found:
        print_table(table.title, table.columns, table.rows)
    for text in (READING, matched(run)):
        stdout.print(text, style="dim", highlight=False)
    stdout.print(f"Written to {bench.out}: results.json, results.md, results.png")


def _run_facts(
    bench: Bench, seconds: float, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How the figures came about; chains that other machines or versions computed say so."""
    config, source = bench.config, bench.config.generator
    versions = machine()
    for name, fact in (("machine", "machine"), ("evoselect_pipeline", "version")):
        versions[name] = (
            " and ".join(sorted({record[fact] for record in records})) or versions[name]
        )
    return {
        "worlds": bench.distinct("world"),
        "tasks": bench.distinct("task"),
        "methods": list(bench.arms),
        "seeds": bench.distinct("seed"),
        "rounds": bench.cells[0].num_rounds,
        "ratio": config.selection.ratio,
        "steps": config.train.steps if config.train.epochs is None else None,
        "epochs": config.train.epochs,
        "batch_size": config.train.batch_size * config.train.accumulation,
        "num_candidates": source.num_candidates if isinstance(source, PlaygroundSource) else None,
        **bench.num_rows,
        "seconds": round(seconds, 1),
        "chain_seconds": round(sum(_chain_seconds(record) for record in records), 1),
        "machine": versions.pop("machine"),
        "versions": versions,
    }


def _chain_seconds(record: Mapping[str, Any]) -> float:
    """What a chain took, without what it shares with others."""
    return sum(facts["seconds_select"] + facts["seconds_train"] for facts in record["rounds"])

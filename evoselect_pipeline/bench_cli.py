"""The `evoselect bench` commands: what each takes; what it does is in `commands/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from evoselect_pipeline.cli_options import ConfigFile, Format, ReportFormat, Set

bench = typer.Typer(
    help="Measure what the project claims, with every figure's interval.",
    no_args_is_help=True,
)

Worlds = Annotated[
    str | None,
    typer.Option("--world", metavar="NAMES", help="Generators.", show_default="weak,strong"),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="NAMES", help="Tasks of the playground.", show_default="all of them"
    ),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="How many seeds.")]
FirstSeed = Annotated[int, typer.Option("--first-seed", min=0, help="The first seed.")]
Ratio = Annotated[
    float | None,
    typer.Option(
        "--ratio",
        help="Share of the candidates to choose.",
        show_default="the configuration's, which is 0.2 if it says nothing",
    ),
]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Rounds in a chain.")]
Epochs = Annotated[
    float | None,
    typer.Option(
        "--epochs", help="Give every arm as many epochs over its rows, not as many steps."
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes.", show_default="one a core")
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder of finished chains and of the report.")
]


@bench.command()
def adaptation(
    world: Worlds = None,
    task: Tasks = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Selectors and `oracle`.", show_default="all of them"),
    ] = None,
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    ratio: Ratio = None,
    rounds: Rounds = 2,
    epochs: Epochs = None,
    config: ConfigFile = None,
    set_: Set = None,
    workers: Workers = None,
    out: Out = Path("bench_adaptation"),
    format: ReportFormat = Format.table,
) -> None:
    """Compare selectors end to end: choose, train, evaluate, for some rounds and many seeds.

    Runs on the playground, or on your own files with --config. Names go with commas between them.
    A chain that is finished is not computed again: after Ctrl-C the same command goes on.
    """
    from evoselect_pipeline.commands.bench import Request, bench_adaptation

    request = Request(
        worlds=world,
        tasks=task,
        arms=methods,
        num_seeds=seeds,
        first_seed=first_seed,
        ratio=ratio,
        num_rounds=rounds,
        epochs=epochs,
        config=config,
        overrides=tuple(set_ or ()),
        num_workers=workers,
        out=out,
    )
    sys.exit(bench_adaptation(request, format.value))


@bench.command()
def ablation(
    world: Worlds = None,
    task: Tasks = None,
    arms: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="What to change.", show_default="every part in turn"),
    ] = None,
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    ratio: Ratio = None,
    rounds: Rounds = 2,
    epochs: Epochs = None,
    config: ConfigFile = None,
    set_: Set = None,
    workers: Workers = None,
    out: Out = Path("bench_ablation"),
    format: ReportFormat = Format.table,
) -> None:
    """Change one part of EvoSelect at a time, and see what it was worth.

    Takes what `bench adaptation` takes, with arms for methods.
    """
    from evoselect_pipeline.commands.bench import Request, bench_ablation

    request = Request(
        worlds=world,
        tasks=task,
        arms=arms,
        num_seeds=seeds,
        first_seed=first_seed,
        ratio=ratio,
        num_rounds=rounds,
        epochs=epochs,
        config=config,
        overrides=tuple(set_ or ()),
        num_workers=workers,
        out=out,
    )
    sys.exit(bench_ablation(request, format.value))

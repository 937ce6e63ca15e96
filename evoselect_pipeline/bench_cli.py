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


@bench.command()
def scale(
    n: Annotated[
        list[int] | None,
        typer.Option("--n", help="Candidates; may be repeated.", show_default="10000 100000"),
    ] = None,
    targets: Annotated[int, typer.Option(min=1, help="Target rows.")] = 256,
    dim: Annotated[int, typer.Option(min=2, help="Width of the vectors.")] = 512,
    k: Annotated[int, typer.Option("--k", min=1, help="Rows to choose.")] = 1024,
    dtype: Annotated[str, typer.Option(help="float32 or float16, of the stored vectors.")] = (
        "float32"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the synthetic vectors.")] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Paired repeats; none starts after a minute.")
    ] = 5,
    max_memory: Annotated[
        float, typer.Option(min=0.1, metavar="GB", help="Leave out what would need more.")
    ] = 4.0,
    format: ReportFormat = Format.table,
) -> None:
    """Measure the exact choice on ever larger pools against one pass of similarities.

    Vectors are synthetic, in a temporary folder, and mapped; each measurement is a process of its
    own, on one thread. A million rows (--n 1000000) take 2 GB of disk and some minutes.
    """
    from evoselect_pipeline.bench.scale import ScaleRequest
    from evoselect_pipeline.commands.bench_scale import bench_scale

    sizes = tuple(n or (10_000, 100_000))
    request = ScaleRequest(sizes, targets, dim, k, dtype, seed, repeats, max_memory)
    sys.exit(bench_scale(request, format.value))


@bench.command()
def gradients(
    model: Annotated[
        str,
        typer.Option(
            help="`small` or `big`, a Llama made for it; `playground`; a hub name or folder."
        ),
    ] = "playground",
    rows: Annotated[int, typer.Option(min=2, help="Rows of 20 to 250 tokens to time.")] = 100,
    targets: Annotated[int, typer.Option(min=2, help="Target rows.")] = 48,
    fidelity_rows: Annotated[
        int, typer.Option(min=2, help="Rows whose exact gradients are held against.")
    ] = 200,
    dim: Annotated[int, typer.Option(min=1, help="Width of the sketch.")] = 2048,
    prompt_weight: Annotated[
        float, typer.Option(min=0, help="Weight of the prompt's loss beside the answer's.")
    ] = 1.0,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens in a batch.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Paired repeats.")] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    bergson: Annotated[
        bool,
        typer.Option("--bergson", help="Beside bergson 2.5.1 too, which you install yourself."),
    ] = False,
    format: ReportFormat = Format.table,
) -> None:
    """Measure what each representation of a row costs beside a training pass, and how true it is.

    On one thread. `big` takes half an hour and 8 GB; what is compared row by row takes most of it.
    """
    from evoselect_pipeline.bench.gradients import GradientsRequest
    from evoselect_pipeline.commands.bench_gradients import bench_gradients

    request = GradientsRequest(
        *(model, rows, targets, fidelity_rows, dim, prompt_weight, batch_tokens, repeats, seed),
        with_bergson=bergson,
    )
    sys.exit(bench_gradients(request, format.value))


@bench.command()
def lineage(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in the home.")] = 100,
    rows: Annotated[int, typer.Option(min=10, help="Candidates a round.")] = 10_000,
    asked: Annotated[int, typer.Option(min=1, help="Rounds whose rows are asked for.")] = 11,
    seed: Annotated[int, typer.Option(min=0, help="Of the synthetic features.")] = 0,
    format: ReportFormat = Format.table,
) -> None:
    """Measure how long a row's story takes in a home of many rounds.

    Rows are synthetic, in a temporary folder; a million of them take some minutes and 2 GB of disk.
    """
    from evoselect_pipeline.bench.lineage import LineageRequest
    from evoselect_pipeline.commands.bench_lineage import bench_lineage

    sys.exit(bench_lineage(LineageRequest(rounds, rows, asked, seed), format.value))

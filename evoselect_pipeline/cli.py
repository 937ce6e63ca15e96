"""The `evoselect` command: what each subcommand takes; what it does is in `commands/`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evoselect_pipeline.bench_cli import bench
from evoselect_pipeline.cli_options import ConfigFile, Format, HomeDir, LineName, ReportFormat, Set
from evoselect_pipeline.errors import EvoselectError

app = typer.Typer(
    name="evoselect",
    help="Generate, select, train, round after round: adapt an open LLM to one task.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


INTERRUPTED = 130


class Method(StrEnum):
    """A selector."""

    evoselect = "evoselect"
    all = "all"
    random = "random"
    attribution = "attribution"
    round_robin = "round_robin"
    diversity = "diversity"
    attr_div = "attr_div"
    tsds = "tsds"
    tarot = "tarot"
    ot_vote = "ot_vote"
    k_center = "k_center"
    facility_location = "facility_location"
    dpp = "dpp"


@app.command()
def run(
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds to add.")] = 2,
    line: LineName = None,
    config: ConfigFile = None,
    home: HomeDir = None,
    set_: Set = None,
    format: ReportFormat = Format.table,
) -> None:
    """Materialize the next rounds through Dagster on this machine, then show what came of them.

    A round that was interrupted is finished first; nothing that was done is done again.
    """
    from evoselect_pipeline.commands.context import open_line
    from evoselect_pipeline.commands.run import run_rounds

    sys.exit(run_rounds(open_line(config, home, set_ or [], line), rounds, format.value))


@app.command()
def ui(
    home: HomeDir = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Dagster UI.")] = 3000,
    mlflow_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the MLflow UI.")
    ] = 5000,
) -> None:
    """Start the Dagster UI with its daemon, and the MLflow UI, on loopback; Ctrl-C stops all."""
    from evoselect_pipeline.commands.ui import serve

    sys.exit(serve(home, port, mlflow_port))


@app.command()
def init(home: HomeDir = None) -> None:
    """Create the home: its folders, Dagster's configuration and MLflow's database."""
    from evoselect_pipeline.commands.context import open_home

    typer.echo(f"home is ready: {open_home(home).root}")


@app.command()
def status(
    line: LineName = None,
    config: ConfigFile = None,
    home: HomeDir = None,
    set_: Set = None,
    format: ReportFormat = Format.table,
) -> None:
    """Show the finished rounds of a line and its champion."""
    from evoselect_pipeline.commands.context import open_line
    from evoselect_pipeline.commands.status import report

    report(open_line(config, home, set_ or [], line), format.value, {})


@app.command()
def lineage(
    sample_id: Annotated[
        str | None, typer.Argument(help="Id of a row, or its first digits (4 at least).")
    ] = None,
    round: Annotated[int | None, typer.Option(help="All decisions of a round instead.")] = None,
    adapter: Annotated[
        int | None, typer.Option(metavar="ROUND", help="All rows that a round's adapter carries.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Most rows to show of a round or an adapter; 0: all.")
    ] = 20,
    line: LineName = None,
    config: ConfigFile = None,
    home: HomeDir = None,
    set_: Set = None,
    format: ReportFormat = Format.table,
) -> None:
    """Tell one row's story: who wrote it, why it was chosen or not, which adapters it trained."""
    from evoselect_pipeline.commands.context import open_line
    from evoselect_pipeline.commands.lineage import show_lineage

    opened = open_line(config, home, set_ or [], line)
    show_lineage(sample_id, round, adapter, opened, limit, format.value)


@app.command()
def promote(
    round: Annotated[str, typer.Option(help="The round whose adapter it is, or `base`.")],
    why: Annotated[str, typer.Option(help="The reason, for the record.")] = "",
    line: LineName = None,
    config: ConfigFile = None,
    home: HomeDir = None,
) -> None:
    """Make an earlier adapter champion again: the next round starts from it.

    The decision is kept beside the promotion it overrules, in Dagster and in MLflow.
    """
    from evoselect_pipeline.commands.context import open_line
    from evoselect_pipeline.commands.promote import promote_round

    promote_round(open_line(config, home, (), line), round, why)


@app.command()
def export(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")],
    round: Annotated[
        int | None,
        typer.Option(min=0, help="The round whose adapter it is.", show_default="the champion's"),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge it into the base model, and check the result.")
    ] = False,
    line: LineName = None,
    config: ConfigFile = None,
    home: HomeDir = None,
    set_: Set = None,
    format: ReportFormat = Format.table,
) -> None:
    """Write an adapter, or the merged model, as a folder for transformers, vLLM and llama.cpp.

    Its model card tells what it was made from, how it was judged, and how to load it.
    """
    from evoselect_pipeline.commands.context import open_line
    from evoselect_pipeline.commands.export import export as export_adapter

    opened = open_line(config, home, set_ or [], line)
    export_adapter(opened, round, out, merged=merged, format=format.value)


@app.command()
def check(
    strict: Annotated[
        bool, typer.Option("--strict", help="Verify every stored artifact and invariant, too.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what is safe to mend, then verify all.")
    ] = False,
    line: LineName = None,
    config: ConfigFile = None,
    home: HomeDir = None,
    set_: Set = None,
    format: ReportFormat = Format.table,
) -> None:
    """Check configuration, data and model; with --strict all that the home holds of the line.

    --repair tells MLflow again of what it was not told, makes lost reports again, and removes what
    killed runs left behind. Nothing that was trained or chosen is touched.
    """
    from evoselect_pipeline.commands.check import check_line
    from evoselect_pipeline.commands.context import open_line

    opened = open_line(config, home, set_ or [], line)
    sys.exit(check_line(opened, strict, repair, format.value))


@app.command()
def preview(
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 3,
    line: LineName = None,
    config: ConfigFile = None,
    home: HomeDir = None,
    set_: Set = None,
    format: ReportFormat = Format.table,
) -> None:
    """Show rows of the task token by token: what is masked, what is trained, is the stop token.

    Target rows come first, one of each subtask. Nothing is written.
    """
    from evoselect_pipeline.commands.context import open_line
    from evoselect_pipeline.commands.preview import show_rows

    show_rows(open_line(config, home, set_ or [], line).config, rows, format.value)


@app.command()
def select(
    candidates: Annotated[
        Path, typer.Option(metavar="FILE", help="Rows to choose from: JSON lines, CSV, Parquet.")
    ],
    target: Annotated[Path, typer.Option(metavar="FILE", help="Rows to align with.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where chosen rows go: .jsonl or .parquet.")
    ],
    budget: Annotated[
        float, typer.Option(help="Rows to choose: a number, or a share of the pool if below 1.")
    ] = 0.2,
    model: Annotated[
        str, typer.Option(help="Hub name or folder of the proxy model.")
    ] = "playground",
    method: Annotated[Method, typer.Option(help="The selector.")] = Method.evoselect,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_length: Annotated[int, typer.Option(min=8, help="Longest row in tokens.")] = 2048,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most answer tokens that all chosen rows may have.")
    ] = None,
    source_share: Annotated[
        float | None, typer.Option(help="Largest share of the budget for rows of one `source`.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=COLUMN", help="A column's name, as in prompt=question."),
    ] = None,
    set_: Set = None,
    format: ReportFormat = Format.table,
) -> None:
    """Choose rows from your own files, each with a reason: selection alone, without Dagster.

    Rows have `messages`, or `prompt` and `completion`, or what --column names instead; chosen rows
    keep all their fields and gain sample_id, rank, reason, target_id and transport_mass.
    """
    from evoselect_pipeline.commands.select import Request, select_rows

    request = Request(
        *(candidates, target, out, budget, model, method.value, seed, max_length),
        tuple(set_ or ()),
        max_tokens,
        source_share,
        tuple(column or ()),
    )
    select_rows(request, format.value)


@app.command("lm-eval")
def lm_eval(
    tasks: Annotated[str, typer.Option(metavar="TASK,...", help="Names of lm-eval's tasks.")],
    round: Annotated[
        int | None, typer.Option(help="The round whose adapter it is; the champion's by default.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of tasks of your own, in YAML.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 8,
    line: LineName = None,
    config: ConfigFile = None,
    home: HomeDir = None,
    format: ReportFormat = Format.table,
) -> None:
    """Compare an adapter with its base model on lm-eval's benchmarks (the extra `eval`)."""
    from evoselect_pipeline.commands.context import open_line
    from evoselect_pipeline.commands.lm_eval import Request, evaluate_tasks

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    request = Request(names, round, include_path, limit, batch_size)
    evaluate_tasks(open_line(config, home, (), line), request, format.value)


app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line: 0 done, 1 a run failed, 2 bad input, 130 interrupted."""
    try:
        app()
    except EvoselectError as error:
        from evoselect_pipeline.commands.console import visible_lines

        # It may quote a server or a row, which must not steer the terminal.
        typer.secho(f"evoselect: {visible_lines(str(error))}", fg="red", err=True)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer has turned Ctrl-C into this
            typer.secho("evoselect: interrupted; what was finished is kept", fg="yellow", err=True)
        raise

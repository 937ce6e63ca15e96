"""`evoselect select`: rows in, chosen rows with explanations out; no Dagster, no home."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from evoselect_pipeline.commands.console import (
    live_progress,
    print_json,
    print_table,
    stderr,
    stdout,
)
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.config_rows import Columns
from evoselect_pipeline.core.features import selection_problem
from evoselect_pipeline.core.gates import gate
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.core.selection import (
    Rejection,
    Selection,
    SelectionProblem,
    target_weights,
)
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.core.settings import Budget
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.progress import working_on
from evoselect_pipeline.rounds.problem import judges_answers, problem_settings
from evoselect_pipeline.rounds.quality import answer_quality
from evoselect_pipeline.rounds.representation import Represented, represent
from evoselect_pipeline.stores.artifacts import write_bytes_atomic
from evoselect_pipeline.stores.rows import UserRow, read_samples, read_user_rows

if TYPE_CHECKING:
    import numpy as np

GAINED = ("sample_id", "rank", "reason", "target_id", "transport_mass")
SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    candidates: Path
    target: Path
    out: Path
    budget: float
    model: str
    method: str
    seed: int
    max_length: int
    overrides: tuple[str, ...] = ()
    max_tokens: int | None = None
    source_share: float | None = None
    columns: tuple[str, ...] = ()


def select_rows(request: Request, format: str) -> None:
    """Choose rows and write them; a summary goes to stdout."""
    config = selection_config(request)
    _check_out(request.out)
    columns = _columns(request.columns)
    rows = read_user_rows(request.candidates, columns)
    _check_fields(request, rows)
    found = read_samples(request.target, columns)
    targets = list({sample.sample_id: sample for sample in found}.values())
    # Refuses a weight of no subtask before anything is represented.
    target_weights([row.subtask for row in targets], config.selection.subtask_weights)
    # Targets are there to be resembled; only their very prompts are no candidates.
    passage = gate([row.sample for row in rows], targets, replace(config.gates, overlap="off"))
    # Sums depend on their order in the last digits; the order of lines must not show in the result.
    passed = sorted(passage.passed, key=lambda sample: sample.sample_id)
    budget = _budget(request, len(passed), config)
    with live_progress():
        with working_on("representing rows"):
            represented = represent(passed, targets, config)
        with working_on("choosing rows"):
            selection, unusable = choose(passed, targets, budget, represented, config)
    rejections = [*passage.rejected, *unusable, *selection.rejections]
    _write(request.out, _chosen_rows(rows, selection))
    _report(request, selection, rejections, len(rows), format)


def choose(
    candidates: Sequence[Sample],
    targets: Sequence[Sample],
    budget: Budget,
    represented: Represented,
    config: LineConfig,
) -> tuple[Selection, list[Rejection]]:
    """Select among represented rows.

    Returns
    -------
    selection : Selection
    unusable : list of Rejection
        Candidates that could not be represented, with the reason.

    Raises
    ------
    DataError
        If a target has no features, or fewer candidates have some than the budget asks for.
    """
    left_out = represented.unusable
    for target in targets:
        if target.sample_id in left_out:
            detail = left_out[target.sample_id].detail
            raise DataError(f"target row {target.prompt[:60]!r} cannot be represented: {detail}")
    usable = [sample for sample in candidates if sample.sample_id not in left_out]
    unusable = [left_out[s.sample_id] for s in candidates if s.sample_id in left_out]
    if len(usable) < (budget.rows or 1):
        raise DataError(
            f"only {len(usable)} of {len(candidates)} candidates can be represented, fewer than the"
            f" budget of {budget.rows}; the first reason: {unusable[0].detail}"
        )
    problem = selection_problem(
        usable,
        represented.of(usable),
        targets,
        represented.of(targets),
        **problem_settings(config),
    )
    if judges_answers(config):
        problem = problem.with_quality(_quality(problem, usable, targets, budget, config))
    settings = config.selection
    selection = select(problem, budget, config.seed, settings.method, settings.evoselect)
    return selection, [Rejection(row.sample_id, row.reason, row.detail) for row in unusable]


def _quality(
    problem: SelectionProblem,
    candidates: Sequence[Sample],
    targets: Sequence[Sample],
    budget: Budget,
    config: LineConfig,
) -> np.ndarray:
    """Plausibility [N] of the candidates' answers, judged by a proxy warmed up for it."""
    from evoselect_pipeline.training.models import load_encoder

    rows, _ = load_encoder(config.proxy or config.model).encode([*candidates, *targets])
    encoded = {row.sample_id: row for row in rows}
    with TemporaryDirectory() as folder:
        work_dir = Path(folder) / "judge"
        return answer_quality(
            problem, budget, encoded, config, adapter=None, seed=config.seed, work_dir=work_dir
        ).quality


def selection_config(request: Request) -> LineConfig:
    """The settings that a request comes to.

    Answers are judged on demand only: that trains adapters of the proxy, with settings that suit
    the playground's and hardly every model.
    """
    tree = {
        "seed": request.seed,
        "model": {"name": request.model, "max_length": request.max_length},
        "selection": {
            "method": request.method,
            "max_tokens": request.max_tokens,
            "source_share": request.source_share,
        },
        "quality": {"prior": "none"},
    }
    return parse_config(tree, "the command line", request.overrides)


def _check_fields(request: Request, rows: Sequence[UserRow]) -> None:
    """Refuse fields that could not be written again, before anything is computed."""
    for number, found in enumerate(rows, start=1):
        where = f"{request.candidates}: row {number}"
        if taken := found.row.keys() & set(GAINED):
            raise DataError(f"{where}: it has a {sorted(taken)[0]!r} already, which is added here")
        try:
            json.dumps(found.row, ensure_ascii=False, default=str).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{where}: it holds a lone surrogate, which is not text") from None


def _columns(named: Sequence[str]) -> Columns:
    """Where both files keep what: KEY=COLUMN, as in prompt=question."""
    pairs = {key: column for key, _, column in (name.partition("=") for name in named)}
    try:
        return Columns.model_validate(pairs)
    except ValidationError as error:
        known = ", ".join(Columns.model_fields)
        raise ConfigError(
            f"--column: {error.errors()[0]['msg']}; expected KEY=COLUMN with a KEY of {known}"
        ) from None


def _check_out(out: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: expected a name ending in {' or '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: folder {out.parent} does not exist; create it first")


def _budget(request: Request, num_rows: int, config: LineConfig) -> Budget:
    asked = request.budget
    if asked <= 0 or (asked > 1 and asked != int(asked)):
        raise ConfigError(
            f"--budget {asked:g}: expected a whole number of rows, or a share between 0 and 1"
        )
    num_wanted = max(1, round(asked * num_rows)) if asked < 1 else int(asked)
    if num_wanted > num_rows:
        raise ConfigError(
            f"--budget {num_wanted}: {request.candidates} has only {num_rows} distinct rows that"
            " may be chosen; lower the budget or add rows"
        )
    return Budget(num_wanted, config.selection.max_tokens, config.selection.source_share)


def _chosen_rows(rows: Sequence[UserRow], selection: Selection) -> list[dict[str, Any]]:
    row_of: dict[str, dict] = {}
    for sample, row, _ in rows:
        row_of.setdefault(sample.sample_id, row)
    return [
        {**row_of[pick.sample_id], **{name: getattr(pick, name) for name in GAINED}}
        for pick in selection.picks
    ]


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    if out.suffix == ".jsonl":
        # Parquet knows dates and other values that JSON has no form for.
        lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
        write_bytes_atomic(out, "".join(lines).encode("utf-8"))
        return
    import io

    import polars as pl

    buffer = io.BytesIO()
    pl.DataFrame(rows, infer_schema_length=None, strict=False).write_parquet(buffer)
    write_bytes_atomic(out, buffer.getvalue())


def _report(
    request: Request,
    selection: Selection,
    rejections: Sequence[Rejection],
    num_rows: int,
    format: str,
) -> None:
    stages = Counter(rejection.stage for rejection in rejections)
    unreached: Any = selection.diagnostics.get("unreached_targets", [])
    if format == "json":
        summary = {
            "out": str(request.out),
            "method": selection.method,
            "num_candidates": num_rows,
            "num_selected": len(selection.picks),
            "num_selected_tokens": selection.diagnostics["num_selected_tokens"],
            "rejected": dict(stages),
            "unreached_targets": unreached,
        }
        print_json(summary)
        return
    counts = [("chosen", len(selection.picks)), *stages.most_common()]
    repeated = num_rows - len(selection.picks) - len(rejections)
    counts += [("repeated in the file", repeated)] * (repeated > 0)
    table = [(what.replace("_", " "), count) for what, count in counts]
    print_table(f"{num_rows} rows by {selection.method}", ["decision", "rows"], table)
    if unreached:
        stderr.print(f"[yellow]{len(unreached)} target rows have no candidate near them[/yellow]")
    stdout.print(f"Written to {request.out}, best first, with the reason for each row.")

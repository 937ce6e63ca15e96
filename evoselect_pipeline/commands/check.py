"""`evoselect check`: is all that a line needs there, and does all that it holds hold."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from evoselect_pipeline.commands.console import print_json, print_table, stdout
from evoselect_pipeline.config_rows import SPLITS
from evoselect_pipeline.errors import DataError, EvoselectError
from evoselect_pipeline.playground.tasks import TaskRows
from evoselect_pipeline.rounds.audit import Problem, audit
from evoselect_pipeline.rounds.candidates import load_generator
from evoselect_pipeline.rounds.data import load_task, refuse_other_rows
from evoselect_pipeline.rounds.line import Line

if TYPE_CHECKING:
    from evoselect_pipeline.core.encoding import Encoder

LEAST_FREE_GIB = 2


def check_line(line: Line, strict: bool, format: str) -> int:
    """Report what is wrong; return 1 if anything is. Bad input raises, as it does in `run`."""
    problems = _disk(line.home.root)
    try:
        refuse_bad_input(line, num_rounds=1)
    except EvoselectError as error:
        if not strict:
            raise
        problems.append(Problem("the next round", str(error), "mend it before the next round"))
    problems += audit(line) if strict else ()
    if format == "json":
        print_json({"line": line.name, "problems": [asdict(problem) for problem in problems]})
        return int(bool(problems))
    looked = (
        f"{line.next_round()} finished rounds looked at" if strict else "stored rounds: --strict"
    )
    if not problems:
        stdout.print(f"Line {line.name}: all is well ({looked}).")
        return 0
    rows = [(problem.where, problem.what, problem.mend) for problem in problems]
    print_table(f"Line {line.name}: {len(rows)} problems", ["where", "what", "how to mend"], rows)
    return 1


def refuse_bad_input(line: Line, num_rounds: int) -> None:
    """Read the task's rows, the next rounds' files and the models before making anything."""
    from evoselect_pipeline.training.models import check_model, load_encoder

    rows = load_task(line.config)
    refuse_other_rows(line, rows)
    for model in filter(None, (line.config.model, line.config.proxy)):
        check_model(model)
        _refuse_unusable(rows, load_encoder(model))
    generator, first = load_generator(line.config), line.next_round()
    for number in range(first, first + num_rounds):
        generator.fingerprint(number)


def _refuse_unusable(rows: TaskRows, encoder: Encoder) -> None:
    """Refuse rows that a model cannot take: those to aim at, and those to answer."""
    for split in SPLITS:
        _, unusable = encoder.encode(getattr(rows, split))
        if unusable:
            raise DataError(
                f"{len(unusable)} {split} rows cannot be used with"
                f" {encoder.tokenizer.name_or_path}, the first is {unusable[0].sample_id[:8]}:"
                f" {unusable[0].detail}. Take them out, or raise model.max_length; `evoselect"
                " preview` shows them"
            )


def _disk(home: Path) -> list[Problem]:
    existing = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free / 2**30
    if free >= LEAST_FREE_GIB:
        return []
    what = f"{free:.1f} GiB are free, {LEAST_FREE_GIB} are wanted"
    return [Problem(str(existing), what, "free space, or set EVOSELECT_HOME to another disk")]

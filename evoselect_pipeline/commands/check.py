"""`evoselect check`: is all that a line needs there, and does all that it holds hold."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from evoselect_pipeline.commands.console import print_json, print_table, stdout, visible
from evoselect_pipeline.config_rows import SPLITS, ServerSource
from evoselect_pipeline.errors import DataError, EvoselectError
from evoselect_pipeline.generation.asking import read_key
from evoselect_pipeline.generation.base import DroppedFiles
from evoselect_pipeline.generation.server import Server
from evoselect_pipeline.rounds.answers import CANARIES, canary_rows
from evoselect_pipeline.rounds.audit import Problem, audit, repaired
from evoselect_pipeline.rounds.candidates import load_generator
from evoselect_pipeline.rounds.champion import champion
from evoselect_pipeline.rounds.data import load_task, refuse_other_base, refuse_other_rows
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.rounds.notes import notes_on

if TYPE_CHECKING:
    from evoselect_pipeline.core.encoding import Encoder
    from evoselect_pipeline.core.records import Sample
    from evoselect_pipeline.playground.tasks import TaskRows
    from evoselect_pipeline.stores.home import Home

LEAST_FREE_GIB = 2
NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "lustre",
    "gpfs",
    "beegfs",
    "fuse.sshfs",
    "fuse.gluster",
)


def check_line(line: Line, strict: bool, repair: bool, format: str) -> int:
    """Report what is wrong; return 1 if anything is. Bad input raises, as it does in `run`."""
    mended, strict = (repaired(line), True) if repair else ([], strict)
    problems = _disk(line.home.root)
    notes: list[str] = []
    try:
        rows, encoder = refuse_bad_input(line, num_rounds=0 if _waits_for_a_file(line) else 1)
        notes = [*notes_on(line, rows, encoder), *_far_disk(line.home)]
        if isinstance(line.config.generator, ServerSource):
            Server(line.config.generator).probe()
    except EvoselectError as error:
        if not strict:
            raise
        problems.append(Problem("the next round", str(error), "mend it before the next round"))
    problems += audit(line) if strict else ()
    if format == "json":
        told = {"problems": _told(problems), "mended": _told(mended), "notes": notes}
        print_json({"line": line.name, **told})
        return int(bool(problems))
    looked = (
        f"{line.next_round()} finished rounds looked at" if strict else "stored rounds: --strict"
    )
    for problem in mended:
        stdout.print(f"Mended: {problem.where}: {problem.what}", markup=False)
    if problems:
        table = [(problem.where, problem.what, problem.mend) for problem in problems]
        title = f"Line {line.name}: {len(table)} problems"
        print_table(title, ["where", "what", "how to mend"], table)
    else:
        stdout.print(f"Line {line.name}: nothing is wrong ({looked}).")
    for note in notes:
        stdout.print(f"  {visible(note)}", markup=False, highlight=False)
    return int(bool(problems))


def _told(problems: list[Problem]) -> list[dict[str, Any]]:
    return [
        {"where": p.where, "what": p.what, "mend": p.mend, "can_repair": p.repair is not None}
        for p in problems
    ]


def _waits_for_a_file(line: Line) -> bool:
    """Whether the next round's candidates are yet to be dropped, which is no fault of the line."""
    generator = load_generator(line.config)
    return isinstance(generator, DroppedFiles) and not generator.path(line.next_round()).exists()


def refuse_bad_input(line: Line, num_rounds: int) -> tuple[TaskRows, Encoder]:
    """Read the task's rows, the next rounds' files and the models before making anything.

    Returns
    -------
    rows : TaskRows
    encoder : Encoder
        The student's.
    """
    from evoselect_pipeline.training.models import check_model

    rows = load_task(line.config)
    refuse_other_rows(line, rows)
    asked = {split: getattr(rows, split) for split in SPLITS}
    asked[CANARIES] = canary_rows(line.config)
    serving = champion(line)
    if serving.trained_in is not None:
        refuse_other_base(line.config.model, line.artifact(serving.trained_in, "lora_checkpoint"))
    encoders = [check_model(m) for m in (line.config.model, line.config.proxy) if m is not None]
    for encoder in encoders:
        _refuse_unusable(asked, encoder, line)
    if isinstance(line.config.generator, ServerSource):
        read_key(line.config.generator)
    generator, first = load_generator(line.config), line.next_round()
    for number in range(first, first + num_rounds):
        generator.fingerprint(number)
    return rows, encoders[0]


def _refuse_unusable(asked: Mapping[str, list[Sample]], encoder: Encoder, line: Line) -> None:
    """Refuse rows that a model cannot take: those to aim at, and those to answer."""
    for kind, rows in asked.items():
        _, unusable = encoder.encode(rows)
        if unusable:
            raise DataError(
                f"{len(unusable)} {kind} rows cannot be used with"
                f" {encoder.tokenizer.name_or_path}, the first is {unusable[0].sample_id[:8]}:"
                f" {unusable[0].detail}. Take them out, or raise model.max_length;"
                f" `{line.command('preview')}` shows them"
            )


def _disk(home: Path) -> list[Problem]:
    existing = _existing(home)
    free = shutil.disk_usage(existing).free / 2**30
    if free >= LEAST_FREE_GIB:
        return []
    what = f"{free:.1f} GiB are free, {LEAST_FREE_GIB} are wanted"
    return [Problem(str(existing), what, "free space, or set EVOSELECT_HOME to another disk")]


def _far_disk(home: Home) -> list[str]:
    """Tell of a home of SQLite files that other machines may reach, too."""
    mounts = {Path(at.mountpoint): at.fstype for at in psutil.disk_partitions(all=True)}
    existing = _existing(home.root).resolve()
    kind = next((mounts[at] for at in (existing, *existing.parents) if at in mounts), "")
    if home.mlflow_is_served or not kind.startswith(NETWORK):
        return []
    return [
        f"{existing} lies on {kind}, where locks of files may not hold: let one machine alone work"
        " on this home, or keep its databases in PostgreSQL (docs/deployment.md)"
    ]


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())

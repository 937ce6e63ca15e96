"""Every invariant of a line in its home, looked at: what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from evoselect_pipeline.core.text_keys import evaluation_keys, prompt_key
from evoselect_pipeline.errors import EvoselectError
from evoselect_pipeline.rounds.candidates import ANSWERS, has_answers
from evoselect_pipeline.rounds.champion import champion
from evoselect_pipeline.rounds.data import SPLITS, split_rows
from evoselect_pipeline.rounds.line import PROMOTED, Line, entered, read_facts, read_json
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.answer_log import AnswerLog
from evoselect_pipeline.stores.artifacts import open_artifact
from evoselect_pipeline.stores.home import round_key
from evoselect_pipeline.stores.integrity import table_problems


@dataclass(frozen=True)
class Problem:
    """Something that does not hold."""

    where: str
    what: str
    mend: str


def audit(line: Line) -> Iterator[Problem]:
    """Look at all artifacts, tables and runs of a line; yield what does not hold.

    Damage in one place hides nothing elsewhere: a part that cannot be looked at is a problem, and
    the next part is looked at all the same.
    """
    yield from _looked_at(_artifacts, line, "artifacts")
    yield from _looked_at(_tables, line, "tables")
    for number in range(line.next_round()):
        for part in (_chain, _decisions, _leakage, _answers):
            yield from _looked_at(
                lambda line, part=part, n=number: part(line, n), line, _of(number)
            )
    yield from _looked_at(_runs, line, "MLflow")


def _looked_at(
    part: Callable[[Line], Iterator[Problem]], line: Line, where: str
) -> Iterator[Problem]:
    try:
        yield from part(line)
    except Exception as error:  # whatever it is, it must not hide what is wrong elsewhere
        what = (
            str(error) if isinstance(error, EvoselectError) else f"{type(error).__name__}: {error}"
        )
        yield Problem(where, what, "mend what is named, then check again")


def _artifacts(line: Line) -> Iterator[Problem]:
    """Every published folder equals its manifest; a finished round has one of each stage."""
    folder = line.home.line_dir(line.name)
    for manifest in sorted(folder.rglob("manifest.json")):
        inside = manifest.parent.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue  # left by a killed writer, and swept by the next one
        try:
            open_artifact(manifest.parent)
        except EvoselectError as error:
            yield Problem(str(inside), str(error), f"materialize {inside.name} again")
    for number in range(line.next_round()):
        for stage in STAGES:
            if not line.has(number, stage.name):
                yield Problem(_of(number), f"{stage.name} is missing", f"materialize {stage.name}")
    for promoted in sorted(folder.glob(f"[0-9]*/{PROMOTED}/manifest.json")):
        number = promoted.parent.parent.name
        if number > round_key(line.next_round()):
            missing = round_key(line.next_round())
            what = f"it is finished, but round {missing} is not"
            yield Problem(f"round {number}", what, f"materialize round {missing}")


def _tables(line: Line) -> Iterator[Problem]:
    for table, what in table_problems(line.home):
        yield Problem(f"table {table}", what, "restore the home's folder `lance` from a backup")


def _chain(line: Line, number: int) -> Iterator[Problem]:
    """A round started from what the round before promoted, and trained on what it chose."""
    again = f"materialize round {round_key(number)} again"
    adapter, trained = entered(line, number), line.artifact(number, "lora_checkpoint")
    if trained.inputs["start"] != adapter.digest:
        what = (
            f"it was trained from adapter {trained.inputs['start'][:8]}, but {adapter.digest[:8]}"
        )
        yield Problem(_of(number), f"{what} is what enters it now", again)
    subset = line.artifact(number, "selected_subset")
    if trained.inputs["selected_subset"] != subset.digest:
        what = "the adapter was trained on another subset than the one that is stored"
        yield Problem(_of(number), what, again)


def _decisions(line: Line, number: int) -> Iterator[Problem]:
    """One decision for every generated row, and the chosen ones are those that were trained on."""
    again = f"materialize selected_subset of round {round_key(number)} again"
    frame = line.store.read_decisions(line.name, number)
    pool = line.artifact(number, "candidates")
    rejected = {row["sample_id"] for row in read_json(pool.path / "rejected.json")}
    wanted = rejected | set(read_json(pool.path / "ids.json"))
    decided = set(frame["sample_id"].to_list())
    if decided != wanted:
        what = f"{len(decided)} rows have a decision, {len(wanted)} were generated"
        yield Problem(_of(number), what, again)
    chosen = set(frame.filter(frame["selected"])["sample_id"].to_list())
    if chosen != _picked(line, number):
        yield Problem(_of(number), "the chosen rows in the table are not the artifact's", again)


def _leakage(line: Line, number: int) -> Iterator[Problem]:
    """No target, validation or test row was trained on."""
    trusted = evaluation_keys(row for split in SPLITS for row in split_rows(line, split))
    for sample in line.store.get_samples(sorted(_picked(line, number))):
        if found := trusted.get(prompt_key(sample)):
            what = (
                f"row {sample.sample_id} was trained on and asks what evaluation row {found} asks"
            )
            mend = (
                "the scores of this round and later ones are not to be trusted: materialize again"
            )
            yield Problem(_of(number), what, mend)


def _answers(line: Line, number: int) -> Iterator[Problem]:
    """Every answer of a generator's LLM that a round tells of is kept, and kept once."""
    pool = line.artifact(number, "candidates")
    if not has_answers(pool):
        return
    facts = read_facts(pool)
    kept = AnswerLog(line.home.round_dir(line.name, number) / ANSWERS).spent
    # More may be kept: an attempt with a higher limit may not have come to its end.
    if kept.num_requests < facts["num_requests"] or kept.num_tokens < facts["num_tokens"]:
        what = (
            f"candidates tell of {facts['num_requests']} answers with {facts['num_tokens']} tokens,"
            f" {ANSWERS} holds {kept.num_requests} with {kept.num_tokens}"
        )
        mend = f"restore {ANSWERS} from a backup; without it they would be paid for again"
        yield Problem(_of(number), what, mend)


def _runs(line: Line) -> Iterator[Problem]:
    """One finished MLflow run for every finished round, and the alias on the champion."""
    held: dict[str, list[str]] = {}
    for key, status in line.tracking.round_runs(line.name):
        held.setdefault(key, []).append(status)
    for number in range(line.next_round()):
        key = round_key(number)
        statuses = held.get(f"{line.name}/{key}", [])
        if statuses != ["FINISHED"]:
            what = f"expected one finished run in MLflow, found {statuses or 'none'}"
            yield Problem(f"round {key}", what, "materialize round_report of this round again")
    serving, named = champion(line), line.tracking.champion(line.name)
    if (named and named.sha256) != (serving.digest if serving.path else None):
        told = named and f"round {round_key(named.round)}"
        what = f"the alias `champion` names {told or 'nothing'}, not the adapter that serves"
        yield Problem("MLflow", what, "materialize promoted_adapter of the last round again")


def _picked(line: Line, number: int) -> set[str]:
    picks = read_json(line.artifact(number, "selected_subset").path / "picks.json")
    return {pick["sample_id"] for pick in picks}


def _of(number: int) -> str:
    return f"round {round_key(number)}"

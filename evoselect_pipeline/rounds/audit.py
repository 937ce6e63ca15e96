"""Every invariant of a line in its home, looked at: what is wrong, where, and how to mend it.

What others are told from what is kept here, as MLflow is told of a round, can be told again: such a
problem brings its repair with it. What is lost or damaged for good is made again by a person, who
has read what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from evoselect_pipeline.core.text_keys import evaluation_keys, prompt_key
from evoselect_pipeline.errors import EvoselectError
from evoselect_pipeline.rounds.candidates import ANSWERS, has_answers
from evoselect_pipeline.rounds.champion import champion, say
from evoselect_pipeline.rounds.data import SPLITS, split_rows
from evoselect_pipeline.rounds.line import PROMOTED, Line, entered, read_facts, read_json
from evoselect_pipeline.rounds.record import record
from evoselect_pipeline.rounds.report import REPORT, round_report
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.rounds.verdicts import gradients_finite
from evoselect_pipeline.stores.answer_log import AnswerLog
from evoselect_pipeline.stores.artifacts import open_artifact, stale_temporary, sweep_temporary
from evoselect_pipeline.stores.home import round_key
from evoselect_pipeline.stores.integrity import remove_tag, table_problems

DAY_S = 86_400.0  # what a killed writer left may be looked at for so long


@dataclass(frozen=True)
class Problem:
    """Something that does not hold."""

    where: str
    what: str
    mend: str
    repair: Callable[[], object] | None = field(default=None, compare=False, repr=False)


def repaired(line: Line) -> list[Problem]:
    """Mend what is safe to mend, and return it; nobody else may work on the line meanwhile.

    Raises
    ------
    RoundHeldError
        If a stage of the line is at work.
    """
    with line.home.lease(line.name, "evoselect check --repair"):
        found = [problem for problem in audit(line) if problem.repair]
        for problem in found:
            assert problem.repair is not None
            problem.repair()
    return found


def audit(line: Line) -> Iterator[Problem]:
    """Look at all artifacts, tables and runs of a line; yield what does not hold.

    Damage in one place hides nothing elsewhere: a part that cannot be looked at is a problem, and
    the next part is looked at all the same.
    """
    yield from _looked_at(_artifacts, line, "artifacts")
    yield from _looked_at(_leftovers, line, "leftovers")
    yield from _looked_at(_tables, line, "tables")
    for number in range(line.next_round()):
        for part in (_made_from, _chain, _decisions, _features, _leakage, _answers):
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
            continue  # left by a killed writer
        try:
            open_artifact(manifest.parent)
        except EvoselectError as error:
            mend = f"materialize {inside.name} again"
            yield Problem(str(inside), str(error), mend, _report_of(line, inside))
    for number in range(line.next_round()):
        for stage in STAGES:
            if not line.has(number, stage.name):
                repair = _report_of(line, Path(round_key(number), stage.name))
                mend = f"materialize {stage.name}"
                yield Problem(_of(number), f"{stage.name} is missing", mend, repair)
    for promoted in sorted(folder.glob(f"[0-9]*/{PROMOTED}/manifest.json")):
        number = promoted.parent.parent.name
        if number > round_key(line.next_round()):
            missing = round_key(line.next_round())
            what = f"it is finished, but round {missing} is not"
            yield Problem(f"round {number}", what, f"materialize round {missing}")


def _report_of(line: Line, artifact: Path) -> Callable[[], object] | None:
    """How to make a finished round's report again, if it is that: nothing is made from it."""
    if artifact.name != REPORT or int(artifact.parent.name) >= line.next_round():
        return None
    number = int(artifact.parent.name)

    def make() -> None:
        round_report(line, number)
        record(line, number, REPORT)

    return make


def _leftovers(line: Line) -> Iterator[Problem]:
    """What killed writers left is gone after a day."""
    folder = line.home.line_dir(line.name)
    if not folder.is_dir():
        return
    for place in (folder, folder / "evaluations", *folder.glob("[0-9]*")):
        if place.is_dir() and (left := stale_temporary(place, DAY_S)):
            what = f"{len(left)} unfinished files or folders of killed runs, such as {left[0].name}"
            repair = partial(sweep_temporary, place, DAY_S)
            yield Problem(str(place.relative_to(folder.parent)), what, "remove them", repair)


def _tables(line: Line) -> Iterator[Problem]:
    for found in table_problems(line.home):
        where = f"table {found.table}"
        if found.tag is None:
            mend = "restore the home's folder `lance` from a backup"
            yield Problem(where, found.what, mend)
            continue
        mend = "remove the tag: what the round read cannot be looked at as it was then"
        yield Problem(
            where, found.what, mend, partial(remove_tag, line.home, found.table, found.tag)
        )


def _made_from(line: Line, number: int) -> Iterator[Problem]:
    """Every artifact was made from those that are stored, and so is the decision on the adapter."""
    for stage in (stage for stage in STAGES if line.has(number, stage.name)):
        inputs = line.artifact(number, stage.name).inputs
        named = {"trained": "lora_checkpoint"} | {name: name for name in stage.reads}
        for key, upstream in named.items():
            # The rows of a line never change; how their set is known has.
            if upstream == "target_set" or key not in inputs:
                continue
            if inputs[key] != line.artifact(number, upstream).digest:
                what = f"{stage.name} was made from another {upstream} than the one that is stored"
                yield Problem(_of(number), what, f"materialize {stage.name} of this round again")


def _chain(line: Line, number: int) -> Iterator[Problem]:
    """A round started from what the round before promoted, on the same base model."""
    again = f"materialize round {round_key(number)} again"
    adapter, trained = entered(line, number), line.artifact(number, "lora_checkpoint")
    if trained.inputs["start"] != adapter.digest:
        what = (
            f"it was trained from adapter {trained.inputs['start'][:8]}, but {adapter.digest[:8]}"
        )
        yield Problem(_of(number), f"{what} is what enters it now", again)
    if adapter.trained_in is not None:
        before = line.artifact(adapter.trained_in, "lora_checkpoint").inputs["base"]
        if trained.inputs["base"] != before:
            what = f"it was trained on base model {trained.inputs['base'][:8]}, but its adapter"
            yield Problem(_of(number), f"{what} belongs to {before[:8]}", again)


def _decisions(line: Line, number: int) -> Iterator[Problem]:
    """One decision for every generated row, and the chosen ones are those that were trained on."""
    again = _anew("selected_subset", number)
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


def _features(line: Line, number: int) -> Iterator[Problem]:
    """Every row that could be chosen has a finite feature of unit length."""
    verdict = gradients_finite(line, number)
    if not verdict.passed:
        yield Problem(_of(number), verdict.sentence, _anew("projected_gradients", number))


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
            if len(statuses) > 1:
                yield Problem(f"round {key}", what, "remove in MLflow the runs that are too many")
                continue
            repair = partial(_tell_again, line, number)
            yield Problem(f"round {key}", what, "tell MLflow of the round again", repair)
    serving, named = champion(line), line.tracking.champion(line.name)
    if (named and named.sha256) != (serving.digest if serving.path else None):
        told = named and f"round {round_key(named.round)}"
        what = f"the alias `champion` names {told or 'nothing'}, not the adapter that serves"
        yield Problem("MLflow", what, "let the alias name it", partial(say, line))


def _tell_again(line: Line, number: int) -> None:
    for stage in STAGES:
        record(line, number, stage.name)


def _picked(line: Line, number: int) -> set[str]:
    picks = read_json(line.artifact(number, "selected_subset").path / "picks.json")
    return {pick["sample_id"] for pick in picks}


def _anew(stage: str, number: int) -> str:
    """How to make rows again: a stage whose artifact is whole does nothing."""
    return f"remove the folder {stage} of round {round_key(number)}, then materialize {stage} again"


def _of(number: int) -> str:
    return f"round {round_key(number)}"

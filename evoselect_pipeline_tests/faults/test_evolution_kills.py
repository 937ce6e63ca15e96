"""SIGKILLs at random moments of whole evolutions: each ends, run again, as if they never were.

A kill takes the run's whole process group. Its moment is drawn from the evolution as it goes when
nobody disturbs it: first between which two artifacts, so that short stages are met as often as long
ones, then when between them.
Runs are forked from a process that has imported what takes long: kills fall on the work, not on
imports. `EVOSELECT_LONG=1` makes it 200 kills, which takes three quarters of an hour.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import pytest

from evoselect_pipeline.cli import main
from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.components.automation import PARTITION_TAG
from evoselect_pipeline.rounds.audit import Problem, audit
from evoselect_pipeline.rounds.champion import champion
from evoselect_pipeline.rounds.line import PROMOTED, Line, read_json
from evoselect_pipeline.rounds.report import REPORT
from evoselect_pipeline.rounds.stages import STAGES
from evoselect_pipeline.stores.artifacts import is_published, open_artifact
from evoselect_pipeline.stores.home import Home, round_key
from evoselect_pipeline_tests.integration.forked import Forked
from evoselect_pipeline_tests.integration.in_dagster import materialize
from evoselect_pipeline_tests.integration.process import (
    IS_LONG,
    manifests,
    overrides,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6 * 3600 if IS_LONG else 1500)]

SEED = 0
NUM_ROUNDS, NUM_KILLS, KILLS_EACH = 2, *((200, 8) if IS_LONG else (3, 3))
SETTINGS = overrides(train__checkpoint_steps=2)
CONFIG = read_line_config(None, SETTINGS[1::2])
NAMES = {"target_set"} | {stage.name for stage in STAGES}
# A round is over with its promotion. A kill after that leaves these open, and the next round's
# first stage closes them; after the last round, whoever materializes what the check names.
UNTOLD = (
    f"{REPORT} is missing",
    "expected one finished run in MLflow, found ['RUNNING']",
    "the alias `champion` names",
)

Manifests = dict[str, tuple[bytes, int]]


class Outcome(NamedTuple):
    """What an evolution came to."""

    selected: list[list[str]]
    champion: str
    alias: str | None
    artifacts: dict[str, str]


class Undisturbed(NamedTuple):
    """An evolution in which nobody was killed."""

    outcome: Outcome
    times: dict[str, float]  # when each artifact was there, in seconds of the work


def line_of(home: Path) -> Line:
    return Line(CONFIG, Home(home))


def rounds_left(home: Path) -> int:
    return NUM_ROUNDS - line_of(home).next_round()


def acknowledged(home: Path) -> Manifests:
    """What runs have published; the hidden truth is a part of the candidates' stage."""
    return {k: v for k, v in manifests(home).items() if not k.endswith("hidden_truth")}


def outcome(home: Path) -> Outcome:
    line = line_of(home)
    chosen = [line.artifact(number, "selected_subset") for number in range(NUM_ROUNDS)]
    picks = [read_json(subset.path / "picks.json") for subset in chosen]
    named = line.tracking.champion(line.name)
    return Outcome(
        [[pick["sample_id"] for pick in of_round] for of_round in picks],
        champion(line).digest,
        named and named.sha256,
        {name: open_artifact(home / "lines" / name).digest for name in acknowledged(home)},
    )


def steps(instance: dg.DagsterInstance, kind: dg.DagsterEventType) -> set[str]:
    """Of the newest run: its stages with an event of this kind, and its checks, by their names."""
    [run] = instance.get_runs(limit=1)
    records = instance.get_records_for_run(run.run_id, of_type=kind).records
    events = [record.event_log_entry.dagster_event for record in records]
    names = {str(event and event.step_key).removeprefix("playground__") for event in events}
    key = run.tags[PARTITION_TAG]
    return {f"{key}/{name}" if name in NAMES - {"target_set"} else name for name in names}


def stages_of(steps: set[str]) -> set[str]:
    return {step.rpartition("/")[2] for step in steps} & NAMES


def run_to_the_end(home: Path) -> Forked:
    """Start a run of all rounds that are left."""
    return Forked("run", "--home", home, "--rounds", rounds_left(home), *SETTINGS)


def begin(home: Path, done: Manifests) -> Forked:
    """Start a run, and wait until it works on what is not done yet."""
    folder = home / "dagster/history/runs"
    before = set(folder.glob("*-*.db"))
    run = run_to_the_end(home)
    while set(folder.glob("*-*.db")) == before and run.poll() is None:
        time.sleep(0.01)
    looked_at = {name.removeprefix("playground/") for name in done}
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        while not (
            stages_of(steps(instance, dg.DagsterEventType.STEP_START) - looked_at)
            or run.poll() is not None
        ):
            time.sleep(0.1)
    return run


def code_of(run: Forked) -> int | None:
    """How a run ended; a failure of its own fails the test."""
    _, errors = run.communicate()
    assert run.returncode in (0, -signal.SIGKILL), errors[-5000:]
    return run.returncode


def is_killed(home: Path, known: Manifests, times: dict[str, float], at: float) -> bool:
    """Run, and kill the run at a time of the undisturbed one, unless it has ended before.

    The time is told from the last artifact before it: a busy machine stretches a part, not all.
    """
    run = begin(home, known)
    before = {name: there for name, there in times.items() if there <= at}
    last = max(before, key=before.__getitem__, default="")
    while last and not is_published(home / "lines" / last) and run.poll() is None:
        time.sleep(0.01)
    if run.wait(at - before.get(last, 0.0)) is None:
        os.killpg(run.pid, signal.SIGKILL)
    return code_of(run) != 0


def place_of_kill(home: Path) -> str:
    """The stage whose step the newest run began and did not end."""
    kinds = (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS)
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        begun, ended = (steps(instance, kind) for kind in kinds)
    return next(iter(stages_of(begun - ended)), "check") if begun - ended else "between"


def is_untold(problem: Problem, line: Line) -> bool:
    """Whether a problem is what a kill after the newest promotion leaves open."""
    number = line.next_round() - 1
    places = (f"round {round_key(number)}", "MLflow") if number >= 0 else ()
    return problem.where in places and problem.what.startswith(UNTOLD)


def look(home: Path, known: Manifests) -> None:
    """Nothing is wrong, and what was acknowledged is as it was; learn what is new."""
    line = line_of(home)
    assert not [problem for problem in audit(line) if not is_untold(problem, line)]
    found = acknowledged(home)
    assert {name: found.get(name) for name in known} == known
    known.update(found)


def end(home: Path) -> None:
    """Let an evolution come to its end; where only its last words are missing, have them said."""
    if rounds_left(home):
        assert code_of(run_to_the_end(home)) == 0
        return
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        last = round_key(NUM_ROUNDS - 1)
        assert materialize(instance, Home(home), CONFIG, last, [PROMOTED, REPORT]).success


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    run, began = begin(home, {}), time.time()
    assert code_of(run) == 0
    times = {name: max(at / 1e9 - began, 0.0) for name, (_, at) in acknowledged(home).items()}
    return Undisturbed(outcome(home), times)


def draw_moments(times: dict[str, float], rng: random.Random, number: int) -> list[float]:
    """Moments of an evolution, in their order, in seconds of its work."""
    gaps = list(pairwise([0.0, *sorted(times.values())]))
    return sorted(rng.uniform(*rng.choice(gaps)) for _ in range(number))


def kill_again_and_again(
    home: Path, times: dict[str, float], moments: Sequence[float]
) -> Iterator[str]:
    """Kill an evolution at these moments, and let it come to its end; yield where each kill hit."""
    known: Manifests = {}
    for at in moments:
        if is_killed(home, known, times, at):
            yield place_of_kill(home)
        look(home, known)
        if not rounds_left(home):
            break
    end(home)
    look(home, known)


def test_evolutions_that_are_killed_again_and_again_end_as_if_they_never_were(
    undisturbed, tmp_path, monkeypatch
):
    rng, places, started = random.Random(SEED), Counter(), time.monotonic()
    homes = (tmp_path / f"home-{number}" for number in range(NUM_KILLS))
    for number, home in enumerate(homes, start=1):
        most = min(KILLS_EACH, NUM_KILLS - places.total())
        moments = draw_moments(undisturbed.times, rng, most)
        places.update(kill_again_and_again(home, undisturbed.times, moments))
        assert outcome(home) == undisturbed.outcome
        command = ["evoselect", "check", "--strict", "--home", str(home), *SETTINGS]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as checked:
            main()
        assert checked.value.code == 0
        seconds = round(time.monotonic() - started)
        told = {"evolutions": number, "kills": places.total(), "seconds": seconds, "seed": SEED}
        print(json.dumps(told | {"places": dict(places)}), flush=True)
        if places.total() == NUM_KILLS:
            break
    assert places.total() == NUM_KILLS
    if IS_LONG:
        assert set(places) >= {stage.name for stage in STAGES}

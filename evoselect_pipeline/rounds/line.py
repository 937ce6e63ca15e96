"""An evolution line at work: its configuration, its stores, and where each stage's artifact is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.errors import ArtifactError, RoundOrderError
from evoselect_pipeline.stores.artifacts import Artifact, is_published, open_artifact
from evoselect_pipeline.stores.home import Home, round_key
from evoselect_pipeline.stores.lance import LanceStore
from evoselect_pipeline.stores.tracking import Tracking

FACTS = "facts.json"  # in every stage's artifact: a flat mapping for people and for later stages
PROMOTED = "promoted_adapter"
APPOINTED = "appointed_adapter"  # a person's choice of champion, beside the promotion it overrules
# Names of what a killed run goes on from, in its round's folder, begin with these.
EXTRACTION = ".extract-"
CHECKPOINTS = ".train-"


@dataclass(frozen=True)
class Line:
    """One line in one home; `named_by` are the options that a command named it by, if one did."""

    config: LineConfig
    home: Home
    named_by: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The line's name."""
        return self.config.line

    @cached_property
    def store(self) -> LanceStore:
        """Rows, gradients, scores and decisions."""
        return LanceStore(self.home)

    @cached_property
    def tracking(self) -> Tracking:
        """The line's MLflow runs."""
        return Tracking(self.home)

    def command(self, words: str) -> str:
        """A command about this line, to be pasted: it names the line as it was named to us."""
        options = ("--line", self.name) if self.named_by is None else self.named_by
        return " ".join(["evoselect", words, *map(shlex.quote, options)])

    def stage_dir(self, round_number: int, stage: str) -> Path:
        """Where a stage of a round publishes its artifact."""
        return self.home.round_dir(self.name, round_number) / stage

    def artifact(self, round_number: int, stage: str) -> Artifact:
        """The verified artifact of a stage; raises ArtifactError if the stage has not run."""
        return open_artifact(self.stage_dir(round_number, stage))

    def has(self, round_number: int, stage: str) -> bool:
        """Whether a stage of a round has published its artifact, looked into or not."""
        return is_published(self.stage_dir(round_number, stage))

    def round_seed(self, round_number: int, purpose: str) -> int:
        """A seed of its own for each round and purpose, fixed by the line's seed."""
        return round_seed(self.config.seed, round_number, purpose)

    def next_round(self) -> int:
        """The first round that has not promoted an adapter."""
        number = 0
        while self.has(number, PROMOTED):
            number += 1
        return number


def round_seed(seed: int, round_number: int, purpose: str) -> int:
    """A seed of its own for each round and purpose."""
    return int(digest(seed, round_number, purpose)[:8], 16)


@dataclass(frozen=True)
class Entering:
    """The adapter a round starts from; `path` is None where that is the bare base model."""

    path: Path | None
    digest: str
    trained_in: int | None


def adapter_named(trained_in: int | None) -> str:
    """Name an adapter in a sentence, by the round that trained it; None is the base model."""
    return (
        "the base model" if trained_in is None else f"the adapter of round {round_key(trained_in)}"
    )


def entering(line: Line, round_number: int) -> Entering:
    """Read what the round before promoted: the one way by which an adapter enters a round.

    Raises
    ------
    RoundOrderError
        If the round before has not promoted an adapter.
    """
    if round_number == 0:
        return Entering(None, "base", None)
    before = round_number - 1
    if not line.has(before, PROMOTED):
        raise RoundOrderError(
            f"round {round_number} of line {line.name!r} cannot start: round {before} has not"
            f" promoted an adapter. Materialize round {round_key(before)} first."
        )
    choice = decision_after(line, before)
    if choice["champion_round"] is None:
        return Entering(None, "base", None)
    champion = line.artifact(choice["champion_round"], "lora_checkpoint")
    if champion.digest != choice["champion_digest"]:
        raise RoundOrderError(
            f"round {round_number} of line {line.name!r} cannot start: round"
            f" {choice['champion_round']} was trained again after round {before} promoted its"
            f" adapter. Materialize round {round_key(before)} again first."
        )
    return Entering(champion.path / "adapter", champion.digest, choice["champion_round"])


def entered(line: Line, round_number: int) -> Entering:
    """The adapter that a round was begun with: what its stages work on, from first to last.

    Raises
    ------
    RoundOrderError
        If another adapter would enter the round now: the stages that are done do not fit it.
    """
    adapter = entering(line, round_number)
    begun_with = read_facts(line.artifact(round_number, "incoming_adapter"))["adapter_digest"]
    if begun_with != adapter.digest:
        raise RoundOrderError(
            f"round {round_number} of line {line.name!r} was begun with adapter {begun_with[:8]},"
            f" but {adapter.digest[:8]} enters it now: a person has made another one champion, or"
            " an earlier round was made again. Materialize the whole round again."
        )
    return adapter


def decision_after(line: Line, round_number: int) -> dict[str, Any]:
    """Who is champion after a finished round, and by which decision.

    The promotion test's answer, unless a person has appointed another adapter since. An appointment
    overrules that one answer: a round that is promoted anew, to another result, decides anew.
    """
    promotion = line.artifact(round_number, PROMOTED)
    if line.has(round_number, APPOINTED):
        appointment = line.artifact(round_number, APPOINTED)
        if appointment.inputs["overrules"] == promotion.digest:
            return read_facts(appointment)
    return read_facts(promotion)


def stale_rounds(line: Line) -> list[int]:
    """Finished rounds that were made from another adapter than would enter them now.

    They are the first such round and all after it, which build on it. What cannot be read any more
    makes nothing stale.
    """
    finished = range(line.next_round())
    first = next((number for number in finished if not _follows(line, number)), len(finished))
    return list(finished[first:])


def _follows(line: Line, round_number: int) -> bool:
    try:
        entered(line, round_number)
    except RoundOrderError:
        return False
    except ArtifactError:  # an old round that was cleaned away, or damaged
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is the same, byte for byte, for the same value."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON written by `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_facts(artifact: Artifact) -> dict[str, Any]:
    """The facts of a stage's artifact."""
    return read_json(artifact.path / FACTS)


def made_from(line: Line, settings: Mapping[str, Any], **upstream: str) -> dict[str, Any]:
    """Everything that determines a stage's artifact: settings, upstream digests, line and seed."""
    return {"line": line.name, "seed": line.config.seed, "settings": dict(settings), **upstream}

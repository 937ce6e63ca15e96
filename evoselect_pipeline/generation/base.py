"""What a generator is, and the two that ask nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from evoselect_pipeline.config_rows import FileSource
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.stores.rows import CandidateRows, read_candidates


@dataclass(frozen=True)
class Generated:
    """What a generator wrote.

    `truth` says per row what a built-in generator did on purpose (good, wrong answer, ...); it is
    kept for measuring and never reaches selection. Real generators do not know it. `facts` say what
    writing took, and what came back that was no row.
    """

    samples: list[Sample]
    truth: list[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Assignment:
    """What a generator is asked to write for.

    Attributes
    ----------
    targets : sequence of Sample
        Rows to write more like.
    round_number, seed : int
    weights : mapping of str to float
        How much each target needs new rows, by id; 1 where it is not named.
    log_file : Path, optional
        Where answers of an LLM are kept, so that nothing is asked for twice.
    """

    targets: Sequence[Sample]
    round_number: int
    seed: int
    weights: Mapping[str, float] = field(default_factory=dict)
    log_file: Path | None = None


class Generator(Protocol):
    """Writes candidates for a task, given its target rows.

    `heeds_weights` says whether it writes more for targets that need more rows.
    """

    heeds_weights: ClassVar[bool]

    def generate(self, assignment: Assignment) -> Generated:
        """Write one round's candidates."""
        ...

    def fingerprint(self, round_number: int) -> str:
        """Hash of everything, besides targets and seed, that decides what is written."""
        ...


@dataclass(frozen=True)
class DroppedFiles:
    """Candidates that somebody else wrote into a file for each round."""

    heeds_weights: ClassVar[bool] = False
    source: FileSource

    def path(self, round_number: int) -> Path:
        """The file of a round."""
        return Path(self.source.pattern.replace("{round}", f"{round_number:04d}"))

    def generate(self, assignment: Assignment) -> Generated:
        """Read the round's file."""
        read = self.read(assignment.round_number)
        return Generated(read.samples, facts={"refused_rows": dict(read.refused)})

    def fingerprint(self, round_number: int) -> str:
        """Hash of what is taken of the round's file."""
        samples = self.read(round_number).samples
        return digest([(s.sample_id, s.subtask, s.source) for s in samples])

    def read(self, round_number: int) -> CandidateRows:
        """The rows of the round's file; a file that is not there is refused."""
        path = self.path(round_number)
        if not path.exists():
            raise DataError(
                f"generator.pattern: round {round_number} reads {path}, which is not there (No such"
                f" file in {path.absolute().parent}); put its candidates there, or mend the pattern"
            )
        return read_candidates(path, self.source.columns)


@dataclass(frozen=True)
class Playground:
    """The built-in author, which errs on purpose and says on the side where."""

    heeds_weights: ClassVar[bool] = False
    author: PlaygroundGenerator
    num_candidates: int

    def generate(self, assignment: Assignment) -> Generated:
        """Write the round's rows; the seed alone makes them differ from another round's."""
        written = self.author.generate_with_truth(
            assignment.targets, self.num_candidates, assignment.seed
        )
        return Generated(*written)

    def fingerprint(self, round_number: int) -> str:
        """The author is code: its name and numbers identify it."""
        return digest(self.author.task, self.author.world, self.num_candidates)

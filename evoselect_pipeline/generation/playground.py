"""The playground's generators: a weak and a strong author, each erring in known proportions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from evoselect_pipeline.core.records import Sample, sample_from_pair
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.playground.kinds import Draft, Kind, is_reserved, normalised, seeded
from evoselect_pipeline.playground.skills import draw_skill
from evoselect_pipeline.playground.tasks import TASKS, task_kinds
from evoselect_pipeline.playground.words import GREETINGS

TRUTHS = ("good", "wrong_answer", "wrong_format", "off_target", "near_copy")
TAILS = ("", " Thanks.", " Please.", " Thank you!", " Go!", " Reply now.")


@dataclass(frozen=True)
class World:
    """How often an author errs in which way, and how unevenly it covers the task's kinds."""

    shares: dict[str, float]
    skew: float
    num_seeds: int


WORLDS = {
    "weak": World(dict(zip(TRUTHS, (0.25, 0.15, 0.05, 0.35, 0.20), strict=True)), 0.85, 6),
    "strong": World(dict(zip(TRUTHS, (0.60, 0.06, 0.02, 0.17, 0.15), strict=True)), 0.95, 30),
}
# A seed can be varied in thousands of ways; past this many copies of one, take more seeds.
COPIES_PER_SEED = 400


@dataclass(frozen=True)
class PlaygroundGenerator:
    """Writes candidate rows for one task, as the author of one world."""

    task: str
    world: str

    def __post_init__(self) -> None:
        task_kinds(self.task)
        if self.world not in WORLDS:
            raise ConfigError(
                f"playground generator: unknown world {self.world!r}; expected one of"
                f" {', '.join(WORLDS)}. Correct the world's name."
            )

    def generate(self, targets: Sequence[Sample], num_candidates: int, seed: int) -> list[Sample]:
        """Write candidates; fresh ones for every seed."""
        return self.generate_with_truth(targets, num_candidates, seed)[0]

    def generate_with_truth(
        self, targets: Sequence[Sample], num_candidates: int, seed: int
    ) -> tuple[list[Sample], list[str]]:
        """Write candidates, and on the side which of them are good: for measuring only.

        Raises
        ------
        ConfigError
            If fewer than one candidate is asked for.
        DataError
            If there is no target row to grow prompts from.
        """
        if num_candidates < 1:
            raise ConfigError(
                f"playground generator: num_candidates must be at least 1, got {num_candidates}"
            )
        if not targets:
            raise DataError("playground generator: no target rows to grow from; give at least one")
        rng = seeded("candidates", self.task, self.world, seed)
        taken = {normalised(target.prompt) for target in targets}
        truths = self._truths(num_candidates, rng)
        authors = self._authors(truths.count("near_copy"), rng)
        ids: set[str] = set()
        samples = []
        for truth in truths:
            sample = self._write(authors[truth], truth, targets, taken, ids, rng)
            ids.add(sample.sample_id)
            samples.append(sample)
        return samples, truths

    def _truths(self, num_candidates: int, rng: Random) -> list[str]:
        """Split the number by the world's shares, largest remainders first, in random order."""
        exact = {t: share * num_candidates for t, share in WORLDS[self.world].shares.items()}
        counts = {truth: math.floor(value) for truth, value in exact.items()}
        by_remainder = sorted(exact, key=lambda truth: counts[truth] - exact[truth])
        for truth in by_remainder[: num_candidates - sum(counts.values())]:
            counts[truth] += 1
        truths = [truth for truth in TRUTHS for _ in range(counts[truth])]
        rng.shuffle(truths)
        return truths

    def _authors(self, num_near_copies: int, rng: Random) -> dict[str, Callable[[Random], Draft]]:
        """One way of writing per truth."""
        num_seeds = max(WORLDS[self.world].num_seeds, num_near_copies // COPIES_PER_SEED)
        seeds = [self._draw(rng) for _ in range(num_seeds)]
        return {
            "good": self._draw,
            "wrong_answer": lambda rng: _with_wrong_answer(self._draw(rng), rng),
            "wrong_format": lambda rng: _with_wrong_format(self._draw(rng), rng),
            "off_target": self._draw_off_target,
            "near_copy": lambda rng: _vary(rng.choice(seeds), rng),
        }

    def _draw(self, rng: Random) -> Draft:
        """Draw an on-task row; the author favours some kinds, the same ones in every round."""
        kinds = list(task_kinds(self.task))
        seeded("favourites", self.task, self.world).shuffle(kinds)
        weights = [WORLDS[self.world].skew ** place for place in range(len(kinds))]
        return _draw_free(rng.choices(kinds, weights)[0], rng)

    def _draw_off_target(self, rng: Random) -> Draft:
        """Draw a row of another skill, or of another task."""
        if rng.random() < 0.75:
            return draw_skill(rng)[1]
        other = rng.choice([task for task in TASKS if task != self.task])
        return rng.choice(task_kinds(other)).draw(rng)

    def _write(
        self,
        author: Callable[[Random], Draft],
        truth: str,
        targets: Sequence[Sample],
        taken: set[str],
        ids: set[str],
        rng: Random,
    ) -> Sample:
        """Draw until the row is new and not reserved for evaluation."""
        # The parent is drawn apart from the truth, so provenance cannot give the truth away.
        parent = rng.randrange(len(targets))
        while True:
            draft = author(rng)
            key = normalised(draft.prompt)
            if is_reserved(draft.prompt) or key in taken:
                continue
            sample = sample_from_pair(
                draft.prompt,
                draft.answer,
                source=f"playground-{self.world}",
                prompt_id=f"{self.task}-{self.world}-seed-{parent:03d}",
                parents=(targets[parent].sample_id,),
            )
            if sample.sample_id in ids:
                continue
            if truth != "near_copy":
                taken.add(key)
            return sample


def _draw_free(kind: Kind, rng: Random) -> Draft:
    draft = kind.draw(rng)
    while is_reserved(draft.prompt):
        draft = kind.draw(rng)
    return draft


def _with_wrong_answer(draft: Draft, rng: Random) -> Draft:
    return Draft(draft.prompt, rng.choice(draft.slips))


def _with_wrong_format(draft: Draft, rng: Random) -> Draft:
    form = rng.choice(("The answer is {}.", "Answer: {}", "[{}]", "It is {}, I think."))
    return Draft(draft.prompt, form.format(draft.answer))


def _vary(draft: Draft, rng: Random) -> Draft:
    """Change greeting, spacing, punctuation or case; the question stays the same."""
    text = draft.prompt
    if rng.random() < 0.3:
        text = text[0].swapcase() + text[1:]
    if rng.random() < 0.5:
        spaces = [place for place, letter in enumerate(text) if letter == " "]
        place = rng.choice(spaces)
        text = text[:place] + " " + text[place:]
    if rng.random() < 0.3:
        text += rng.choice((" ", "?", ".", "!", " ?"))
    if rng.random() < 0.7:
        text = rng.choice(GREETINGS) + rng.choice((", ", ": ", "! ", " - ")) + text
    return Draft(text + rng.choice(TAILS), draft.answer)

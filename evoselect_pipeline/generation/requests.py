"""What an LLM is asked for: which target rows it is shown, and in which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evoselect_pipeline.config_rows import LLMSource
from evoselect_pipeline.core.records import Message, Sample, digest, make_sample
from evoselect_pipeline.errors import ConfigError, where_looked
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.templates import template

TEMPLATE = Path(__file__).parent / "templates" / "rows.jinja"


@dataclass(frozen=True)
class Request:
    """One thing to ask for.

    `key` identifies what is asked: the words, the model, how it samples, the round's seed and the
    request's number in it.
    """

    key: str
    words: str
    parents: tuple[str, ...]
    num_rows: int  # as many are taken of an answer, however many are in it


def requests_for(source: LLMSource, assignment: Assignment, model: str) -> list[Request]:
    """The requests of a round, deterministic in its seed.

    The first example of a request is the row to be imitated. Every target is it about as often as
    its weight says; the other examples are drawn from its subtask, and from all where it has too
    few. The first requests of a larger number of candidates are those of a smaller one.

    Parameters
    ----------
    model : str
        What identifies the model: its name, or a hash of it.
    """
    in_order = sorted(assignment.targets, key=lambda row: row.sample_id)
    shares = [assignment.weights.get(row.sample_id, 1.0) for row in in_order]
    first = _in_turn(shares, source.num_requests, np.random.default_rng(assignment.seed))
    text, found = _text(source), []
    for number, place in enumerate(first):
        draw = np.random.default_rng((assignment.seed, number))
        shown = [in_order[place], *_company(in_order, place, source.num_examples - 1, draw)]
        num_rows = min(
            source.rows_per_request, source.num_candidates - number * source.rows_per_request
        )
        numbers = {"num_rows": num_rows, "number": number, "round": assignment.round_number}
        words = _words(source, text, shown, numbers)
        key = digest(model, source.sampling, words, number, assignment.seed)
        parents = tuple(row.sample_id for row in shown)
        found.append(Request(key, words, parents, num_rows))
    return found


def checked_template(source: LLMSource) -> str:
    """The template that is in force; refused if it cannot be filled in."""
    blank = make_sample([Message("user", "a prompt"), Message("assistant", "an answer")])
    text = _text(source)
    numbers = {"num_rows": source.rows_per_request, "number": 0, "round": 0}
    _words(source, text, [blank] * source.num_examples, numbers)
    return text


def _in_turn(weights: Sequence[float], count: int, draw: np.random.Generator) -> list[int]:
    """Numbers of which each comes up as often as its share says, whenever one stops.

    The next is the one that is furthest behind; of equals the first in a random order.
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    order = draw.permutation(len(shares))
    times, found = np.zeros(len(shares)), []
    for number in range(count):
        behind = (shares * (number + 1) - times)[order]
        place = int(order[np.argmax(behind > behind.max() - 1e-9)])
        times[place] += 1
        found.append(place)
    return found


def _company(
    targets: Sequence[Sample], place: int, count: int, draw: np.random.Generator
) -> list[Sample]:
    """Further examples: of the same subtask first."""
    others = draw.permutation([i for i in range(len(targets)) if i != place])
    alike = [i for i in others if targets[i].subtask == targets[place].subtask]
    strange = [i for i in others if targets[i].subtask != targets[place].subtask]
    return [targets[i] for i in [*alike, *strange][:count]]


def _words(
    source: LLMSource, text: str, shown: Sequence[Sample], numbers: Mapping[str, int]
) -> str:
    examples = [{"prompt": row.prompt, "completion": row.completion} for row in shown]
    try:
        words = template(text).render(examples=examples, **numbers).strip()
    except Exception as error:  # a template may do anything
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"generator.template {source.template or TEMPLATE}: {said}") from None
    if not words:
        raise ConfigError(f"generator.template {source.template or TEMPLATE}: it says nothing")
    return words


def _text(source: LLMSource) -> str:
    file = source.template or TEMPLATE
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"generator.template {file}: cannot be read: {error}; check the path"
            f"{where_looked(file)}"
        ) from None

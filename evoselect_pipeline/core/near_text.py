"""Rows that say nearly the same: the copies that gradients cannot see.

A greeting or a stray blank moves a row's prompt gradient far, although nothing new is said. Word
shingles are not fooled by it: rows of one template share few of them, re-worded copies nearly all.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from evoselect_pipeline.core.near_join import overlapping_groups, overlapping_pairs
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.core.text_keys import normalised, text_key

SHINGLE_WORDS = 3
SURE_COPY = 0.95
MIN_SHINGLES = 4  # of shorter rows, one word is most of what they say


def near_text_keys(
    samples: Sequence[Sample], threshold: float, first: Sequence[Sample] = ()
) -> tuple[str, ...]:
    """Give rows whose shingles overlap at `threshold` or more a common key.

    Rows are visited in `sample_id` order, those of `first` before all others. A row takes the key
    of the most similar earlier leader, or leads itself: single-pass leader clustering, so that two
    leaders are never near-copies. Rows of equal normalised text always share a key.

    The search is exact: a leader is looked up by its rarest shingles, see `_rarest`.

    Parameters
    ----------
    samples : sequence of Sample
    threshold : float
        Jaccard index in (0, 1]; at 1 only rows of equal normalised text share a key.
    first : sequence of Sample
        Rows that lead wherever they can: those that earlier rounds have trained on.

    Returns
    -------
    tuple of str
        One key per row of `samples`: the leader's `text_key`.
    """
    own_keys = [text_key(sample) for sample in samples]
    if threshold >= 1:
        return tuple(own_keys)
    texts = {text_key(sample): shingles(sample) for sample in sorted(first, key=_by_id)}
    for key, sample in sorted(zip(own_keys, samples, strict=True), key=lambda row: _by_id(row[1])):
        texts.setdefault(key, shingles(sample))
    num_rows = Counter(shingle for own in texts.values() for shingle in own)
    led_by: dict[str, str] = {}
    leaders_with: defaultdict[str, list[str]] = defaultdict(list)
    for own_key, own in texts.items():
        led_by[own_key] = own_key
        if len(own) < MIN_SHINGLES:
            continue
        rare = _rarest(own, num_rows, threshold)
        near = {key for shingle in rare for key in leaders_with[shingle]}
        overlaps = [(_jaccard(own, texts[key]), key) for key in near]
        overlap, leader = max(overlaps, default=(0.0, own_key))
        if overlap >= threshold:
            led_by[own_key] = leader
            continue
        for shingle in rare:
            leaders_with[shingle].append(own_key)
    return tuple(led_by[key] for key in own_keys)


def distinct_overlap(samples: Sequence[Sample]) -> float:
    """The largest overlap of two of these rows, which are known to be distinct.

    Rows of one narrow template differ by a word or two. Where the targets do, so may candidates.
    Overlaps above `SURE_COPY` say that one of the two is a copy, and are passed over.
    """
    sets = [shingles(sample) for sample in samples]
    overlaps = (_jaccard(one, other) for one, other in combinations(sets, 2))
    return max((overlap for overlap in overlaps if overlap <= SURE_COPY), default=0.0)


def near_pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int]]:
    """Numbers of any two texts whose shingles overlap at `threshold` or more, earlier one first.

    Texts of fewer than `MIN_SHINGLES` shingles are in no pair.
    """
    places, sets = _long_enough(texts)
    for one, other in overlapping_pairs(sets, threshold):
        yield places[one], places[other]


def near_groups(texts: Sequence[str], threshold: float) -> np.ndarray:
    """Number the groups of texts that hang together through `near_pairs`.

    Returns
    -------
    array of int, shape [n]
    """
    places, sets = _long_enough(texts)
    group_of = np.arange(len(texts))
    if places:
        group_of[places] = np.array(places)[overlapping_groups(sets, threshold)]
    return group_of


def _long_enough(texts: Sequence[str]) -> tuple[list[int], list[frozenset[str]]]:
    """The shingles of those texts that are long enough to be copies, and where these stand."""
    sets = [text_shingles(text) for text in texts]
    places = [place for place, own in enumerate(sets) if len(own) >= MIN_SHINGLES]
    return places, [sets[place] for place in places]


def shingles(sample: Sample) -> frozenset[str]:
    """Runs of three words of a row, prompt and answer."""
    return text_shingles(" ".join(message.content for message in sample.messages))


def text_shingles(text: str) -> frozenset[str]:
    """Runs of three words of a text."""
    in_order = words(text)
    last = max(1, len(in_order) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(in_order[i : i + SHINGLE_WORDS]) for i in range(last))


def words(text: str) -> list[str]:
    """The words of a text, normalised; a character of a script without blanks counts as one."""
    text = normalised(text)
    if text.isascii():
        return text.split()
    spaced = "".join(
        f" {letter} " if unicodedata.east_asian_width(letter) in "WF" else letter for letter in text
    )
    return spaced.split()


def _rarest(own: frozenset[str], num_rows: Counter[str], threshold: float) -> list[str]:
    """The |x| - ceil(t |x|) + 1 shingles of a row that the fewest rows have.

    Two rows with a Jaccard index of t or more have t |x| shingles in common at least, x being
    either of them; so these parts of both rows, in one order, meet (prefix filter, Chaudhuri et
    al. 2006). Rarest first, because what all rows of a template say would find all of them.
    """
    in_order = sorted(own, key=lambda shingle: (num_rows[shingle], shingle))
    # A hair below: rounding up by mistake would miss a pair just at the threshold.
    return in_order[: len(own) - math.ceil(threshold * len(own) - 1e-9) + 1]


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def _by_id(sample: Sample) -> str:
    return sample.sample_id

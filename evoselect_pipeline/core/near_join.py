"""Sets that overlap much, all of them and exactly: a self-join by the Jaccard index.

Elements are numbered, rarest first, and sets taken by size, smallest first. Two sets whose index
is t or more then meet in short prefixes of both (Bayardo et al. 2007), and where they first meet
bounds what they can have in common (Xiao et al. 2008). Only what is left is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set

import numpy as np

HAIR = 1e-9  # rounding the wrong way would miss a pair just at the threshold


def overlapping_pairs(sets: Sequence[Set[str]], threshold: float) -> Iterator[tuple[int, int]]:
    """Numbers of any two sets with a Jaccard index of `threshold` or more, the lower one first.

    No set may be empty.
    """
    join = _Join(sets, threshold)
    for row, others in join.candidates():
        for other in others[join.are_near(row, others)].tolist():
            yield min(row, other), max(row, other)


def overlapping_groups(sets: Sequence[Set[str]], threshold: float) -> np.ndarray:
    """Number the groups of sets that hang together through such pairs.

    One of each group is looked at first: where all are alike, that settles it for all of them.

    Returns
    -------
    array of int, shape [n]
    """
    join = _Join(sets, threshold)
    group_of = np.arange(len(sets))
    members = [[row] for row in range(len(sets))]
    for row, others in join.candidates():
        _, one_each = np.unique(group_of[others], return_index=True)
        ones = others[one_each]
        joined = group_of[ones[join.are_near(row, ones)]]
        rest = others[~np.isin(group_of[others], joined)]
        joined = {row, *joined.tolist(), *group_of[rest[join.are_near(row, rest)]].tolist()}
        largest = max(joined, key=lambda group: len(members[group]))
        for group in joined - {largest}:
            group_of[members[group]] = largest
            members[largest] += members[group]
    return group_of


class _Join:
    """Sets as ascending numbers, one set after the other in `flat`."""

    def __init__(self, sets: Sequence[Set[str]], threshold: float):
        num_sets = Counter(element for own in sets for element in own)
        rarest_first = sorted(num_sets, key=num_sets.__getitem__)
        number_of = {element: number for number, element in enumerate(rarest_first)}
        self.rows = [sorted(map(number_of.__getitem__, own)) for own in sets]
        self.flat = np.array([number for own in self.rows for number in own], dtype=int)
        self.sizes = np.array([len(own) for own in sets], dtype=int)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.threshold = threshold
        # Two near sets have this share of both their sizes, and more, in common.
        self.share = threshold / (1 + threshold)
        self.num_elements = len(num_sets)
        self._is_own = np.zeros(self.num_elements, dtype=bool)

    def candidates(self) -> Iterator[tuple[int, np.ndarray]]:
        """Sets, each with those before it by size that may be near to it, if there are any."""
        order = np.argsort(self.sizes, kind="stable")
        index = _Index(self, order)
        asked = _prefix(self.sizes, self.threshold).tolist()
        for row in order.tolist():
            if met := index.met(self.rows[row][: asked[row]]):
                others, here, there = met
                rest = np.minimum(self.sizes[row] - here, self.sizes[others] - there)
                wanted = self.share * (self.sizes[row] + self.sizes[others])
                others = others[rest >= wanted - HAIR]
                if len(others):
                    yield row, others
            index.take(row)

    def are_near(self, row: int, others: np.ndarray) -> np.ndarray:
        """Which sets overlap with one of them as much as is asked for."""
        if not len(others):
            return np.zeros(0, dtype=bool)
        own, sizes = self.rows[row], self.sizes[others]
        self._is_own[own] = True
        is_common = self._is_own[self.flat[_ranges(self.starts[others], sizes)]]
        self._is_own[own] = False
        num_common = np.add.reduceat(is_common, np.cumsum(sizes) - sizes, dtype=int)
        return num_common / (len(own) + sizes - num_common) >= self.threshold


class _Index:
    """The sets that have an element among their rarest, and at which place, element by element."""

    def __init__(self, join: _Join, order: np.ndarray):
        self._lengths = _prefix(join.sizes, 2 * join.share)
        lengths = self._lengths[order]
        elements = join.flat[_ranges(join.starts[order], lengths)]
        by_element = np.argsort(elements, kind="stable")
        self._sets = np.repeat(order, lengths)[by_element]
        self._places = _ranges(np.zeros(len(order), dtype=int), lengths)[by_element]
        self._begins = np.searchsorted(elements[by_element], np.arange(join.num_elements))
        self._num_taken = [0] * join.num_elements
        self._rows = join.rows

    def take(self, row: int) -> None:
        """Let a set be met from now on; sets are taken in order."""
        for element in self._rows[row][: self._lengths[row]]:
            self._num_taken[element] += 1

    def met(self, elements: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Taken sets that share elements, and where the first of these stands here and there."""
        found = [(p, e, n) for p, e in enumerate(elements) if (n := self._num_taken[e])]
        if not found:
            return None
        places, known, counts = np.array(found).T
        entries = _ranges(self._begins[known], counts)
        others, first = np.unique(self._sets[entries], return_index=True)
        return others, np.repeat(places, counts)[first], self._places[entries][first]


def _prefix(sizes: np.ndarray, share: float) -> np.ndarray:
    """How many of the rarest elements two sets must meet in that have a share of one in common."""
    return sizes - np.ceil(share * sizes - HAIR).astype(int) + 1


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[i]`, `starts[i] + 1` and so on, `lengths[i]` numbers each, one after the other."""
    shifts = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(int(lengths.sum()))

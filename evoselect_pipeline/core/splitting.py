"""Deal labelled rows to several purposes so that no two near-copies serve different ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evoselect_pipeline.core.near_text import near_groups
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.core.text_keys import asked_text, prompt_key


def groups_of(
    samples: Sequence[Sample], near_text: float, named: Sequence[str] | None = None
) -> np.ndarray:
    """Number the groups of rows that belong together.

    Two rows do if their prompts are equal but for spelling, if these are near-copies, or if their
    user says so; and so does whatever hangs together through others.

    Parameters
    ----------
    samples : sequence of Sample, length n
    near_text : float
        Jaccard index of the prompts' word triples from which on rows are near-copies; 1 for equal
        prompts alone.
    named : sequence of str, length n, optional
        The user's own groups; rows with an empty name have none.

    Returns
    -------
    array of int, shape [n]
    """
    numberings: list[Sequence[str | int]] = [[prompt_key(s) for s in samples], named or ()]
    if near_text < 1:
        numberings.append(near_groups([asked_text(s) for s in samples], near_text).tolist())
    edges: list[tuple[int, int]] = []
    for keys in numberings:
        first: dict[str | int, int] = {}
        edges += [(first.setdefault(key, row), row) for row, key in enumerate(keys) if key != ""]
    one, other = np.array(edges, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(samples),) * 2)
    return connected_components(graph, directed=False)[1]


def deal(samples: Sequence[Sample], groups: np.ndarray, wanted: Sequence[int]) -> list[list[int]]:
    """Deal whole groups to purposes, each subtask spread over them as evenly as can be.

    The next group goes where the largest share is still wanting; of a group that is larger than
    what is wanting there, the rest serves no purpose. The order is that of hashes of the rows, so
    that it is arbitrary, but the same whatever the order of the rows.

    Parameters
    ----------
    samples : sequence of Sample, length n
    groups : array of int, shape [n]
        See `groups_of`.
    wanted : sequence of int
        Rows for each purpose.

    Returns
    -------
    list of list of int
        Row numbers for each purpose; fewer than wanted if there are no more.
    """
    rows_of: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted(range(len(samples)), key=lambda row: samples[row].sample_id):
        rows_of[int(groups[row])].append(row)
    dealt: list[list[int]] = [[] for _ in wanted]
    for rows in _spread_over_subtasks(samples, list(rows_of.values())):
        wanting = [(n - len(has)) / n for n, has in zip(wanted, dealt, strict=True)]
        purpose = int(np.argmax(wanting))
        if wanting[purpose] == 0:
            break
        dealt[purpose] += rows[: wanted[purpose] - len(dealt[purpose])]
    return dealt


def _spread_over_subtasks(
    samples: Sequence[Sample], in_order: Sequence[list[int]]
) -> list[list[int]]:
    """Groups in an order in which every stretch holds each subtask as often as the whole does."""
    of_subtask: defaultdict[str, list[list[int]]] = defaultdict(list)
    for rows in in_order:
        of_subtask[samples[rows[0]].subtask].append(rows)
    placed = [
        ((number + 0.5) / len(groups), subtask, rows)
        for subtask, groups in of_subtask.items()
        for number, rows in enumerate(groups)
    ]
    return [rows for _, _, rows in sorted(placed)]

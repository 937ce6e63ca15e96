"""Where a round's rows lie: a plane to look at, and the chosen rows beside random ones.

Large pools are looked at through seeded samples, so that time and memory stay within bounds.
Legend: n rows, M targets, D width of a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evoselect_pipeline.core.metrics import ot_distance, vendi_score
from evoselect_pipeline.report.facts import Cloud, Comparison, Spread
from evoselect_pipeline.rounds.data import split_rows
from evoselect_pipeline.rounds.line import Line, read_json
from evoselect_pipeline.rounds.problem import read_features

MOST_DRAWN = 2_500
MOST_CHOSEN = 1_000
MOST_TARGETS = 500
DRAWS = 5
DIGITS = 4  # of a coordinate: threads must not move a point


def cloud_and_spread(
    line: Line, round_number: int, chosen_ids: Sequence[str]
) -> tuple[Cloud, Spread | None]:
    """The map of a round, and what random choices of the same size would have come to."""
    represented = line.artifact(round_number, "projected_gradients")
    ids = read_json(represented.path / "ids.json")
    rng = np.random.default_rng(line.round_seed(round_number, "report"))
    target_ids = [target.sample_id for target in split_rows(line, "targets")]
    chosen = _some(rng, chosen_ids, MOST_CHOSEN)
    targets = _some(rng, target_ids, MOST_TARGETS)
    pool = _some(rng, ids, MOST_DRAWN)
    draws = [_some(rng, ids, len(chosen)) for _ in range(DRAWS)]

    wanted = list(dict.fromkeys([*pool, *chosen, *targets, *(i for draw in draws for i in draw)]))
    vectors = read_features(line, represented, wanted).vectors
    row_of = {i: n for n, i in enumerate(wanted)}
    mean = vectors[[row_of[i] for i in pool]].mean(axis=0) if line.config.gradients.centre else 0.0
    vectors = vectors - mean
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def rows(sample_ids: Sequence[str]) -> np.ndarray:
        return vectors[[row_of[i] for i in sample_ids]]

    plane, explained = _plane(rows(pool))
    cloud = Cloud(
        candidates=_placed(rows(pool), plane),
        chosen=_placed(rows(chosen), plane),
        targets=_placed(rows(targets), plane),
        explained=explained,
        num_candidates=len(ids),
        num_chosen=len(chosen_ids),
        num_targets=len(target_ids),
    )
    if not chosen:
        return cloud, None
    spread = Spread(
        num_rows=len(chosen),
        num_targets=len(targets),
        vendi=Comparison(
            vendi_score(rows(chosen)), tuple(vendi_score(rows(draw)) for draw in draws)
        ),
        distance=Comparison(
            ot_distance(rows(chosen), rows(targets)),
            tuple(ot_distance(rows(draw), rows(targets)) for draw in draws),
        ),
    )
    return cloud, spread


def _some(rng: np.random.Generator, ids: Sequence[str], most: int) -> list[str]:
    """All ids, or as many as are allowed, drawn without replacement and in their order."""
    if len(ids) <= most:
        return list(ids)
    places: list[int] = np.sort(rng.choice(len(ids), most, replace=False)).tolist()
    return [ids[place] for place in places]


def _plane(vectors: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The first two principal directions [D, 2] of rows, and their shares of the variance."""
    from sklearn.decomposition import PCA

    if len(vectors) < 2:
        return np.eye(vectors.shape[1], 2), (0.0, 0.0)
    found = PCA(2, svd_solver="randomized", random_state=0).fit(vectors.astype(np.float64))
    first, second = np.nan_to_num(found.explained_variance_ratio_).tolist()
    return np.asarray(found.components_).T, (first, second)


def _placed(vectors: np.ndarray, plane: np.ndarray) -> np.ndarray:
    return np.round(vectors @ plane, DIGITS)

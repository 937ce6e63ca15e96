"""Make the picture of docs/how-selection-works.md: `python docs/pictures.py [IMAGES]`.

It runs the package's own selection, with the settings that a line has by default, on candidates of
the playground's weak generator: about two minutes on one core. What the generator did on purpose
colours the points; selection never sees it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from evoselect_pipeline.commands.select import choose
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.core.features import selection_problem
from evoselect_pipeline.core.gates import gate
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.rounds.candidates import load_generator
from evoselect_pipeline.rounds.data import load_task
from evoselect_pipeline.rounds.representation import represent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = ("random", "attribution", "evoselect")
DRAWN = 4  # every fourth row is drawn; all are counted
NARROW = 0.04  # of a bar: too little for a number
INK, TARGET = "#333333", "#f0e442"
# Okabe and Ito's colours, which colour-blind readers tell apart; shapes say the same again.
KINDS = {
    "good": ("good", "#009e73", "o"),
    "near_copy": ("near-copy", "#56b4e9", "^"),
    "wrong_answer": ("wrong answer or format", "#d55e00", "s"),
    "off_target": ("another task", "#999999", "D"),
}


@dataclass(frozen=True)
class Scene:
    """Points of candidates [N, 2] and targets [M, 2], the candidates' kinds, and who was chosen."""

    candidates: np.ndarray
    targets: np.ndarray
    explained: float
    kinds: np.ndarray
    chosen: Mapping[str, np.ndarray]


def main(images: Path) -> None:
    """Select by each method and draw what was chosen."""
    torch.set_num_threads(1)  # sums in another order would move points
    found = scene()
    for method, chosen in found.chosen.items():
        print(method, dict(Counter(found.kinds[chosen].tolist())))
    draw(found, images / "how_selection_works.png")


def scene() -> Scene:
    """One pool, represented once, and the choice of every method."""
    config = LineConfig()
    task = load_task(config)
    written = load_generator(config).generate(Assignment(task.targets, 0, config.seed))
    kinds = map(kind_of, written.truth or ())
    kind_by_id = dict(zip((row.sample_id for row in written.samples), kinds, strict=True))
    trusted = [*task.targets, *task.validation, *task.test]
    pool = gate(written.samples, trusted, config.gates).passed
    pool.sort(key=lambda row: row.sample_id)
    represented = represent(pool, task.targets, config)
    problem = selection_problem(
        pool, represented.of(pool), task.targets, represented.of(task.targets)
    )
    chosen = {}
    for method in METHODS:
        settings = config.selection.model_copy(update={"method": method})
        asked = config.model_copy(update={"selection": settings})
        budget = settings.budget(len(pool))
        selection, _ = choose(pool, task.targets, budget, represented, asked)
        ids = set(selection.selected_ids)
        chosen[method] = np.array([row.sample_id in ids for row in pool])
    plane = PCA(2, svd_solver="full").fit(problem.candidates.gradients)
    return Scene(
        candidates=plane.transform(problem.candidates.gradients),
        targets=plane.transform(problem.targets.gradients),
        explained=float(plane.explained_variance_ratio_.sum()),
        kinds=np.array([kind_by_id[row.sample_id] for row in pool]),
        chosen=chosen,
    )


def kind_of(truth: str) -> str:
    """An answer in the wrong form is a wrong answer here."""
    return "wrong_answer" if truth == "wrong_format" else truth


def draw(found: Scene, file: Path) -> None:
    """A map and a bar of counts for each method."""
    figure = Figure((11.0, 5.0), dpi=110)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    maps, bars = figure.subplots(2, len(METHODS), height_ratios=(9, 1), sharex="row", sharey="row")
    for column, (method, chosen) in enumerate(found.chosen.items()):
        draw_map(maps[column], found, chosen)
        maps[column].set_title(f"{method}: {chosen.sum()} rows", fontsize=11, color=INK)
        draw_counts(bars[column], Counter(found.kinds[chosen].tolist()))
    figure.suptitle(
        f"{len(found.kinds)} candidates on the first two principal directions of their centred"
        f" gradients ({found.explained:.0%} of the variance); chosen ones are ringed",
        fontsize=10,
        color=INK,
    )
    handles, labels = maps[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(file, metadata={"Software": None})  # matplotlib's version would change the file


def draw_map(panel: Axes, found: Scene, chosen: np.ndarray) -> None:
    """Candidates by kind, faint unless chosen, and the targets as stars."""
    drawn = np.arange(len(chosen)) % DRAWN == 0
    for kind, (label, colour, marker) in KINDS.items():
        here = drawn & (found.kinds == kind)
        faint, ringed = found.candidates[here & ~chosen], found.candidates[here & chosen]
        panel.scatter(*faint.T, s=10, c=colour, marker=marker, alpha=0.3, lw=0)
        panel.scatter(*ringed.T, s=20, c=colour, marker=marker, ec=INK, lw=0.7, label=label)
    panel.scatter(*found.targets.T, s=70, c=TARGET, marker="*", ec=INK, lw=0.6, label="target row")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_color("#cccccc")


def draw_counts(panel: Axes, counts: Mapping[str, int]) -> None:
    """One bar: how many of all chosen rows are of which kind."""
    start, total = 0, sum(counts.values())
    for kind, (_, colour, _) in KINDS.items():
        count = counts.get(kind, 0)
        panel.barh(0, count, left=start, color=colour, ec="white")
        height = 0.0 if count > NARROW * total else 0.75
        if count:
            panel.text(start + count / 2, height, f"{count}", ha="center", va="center", fontsize=9)
        start += count
    panel.set_ylim(-0.5, 1.0)
    panel.axis("off")


if __name__ == "__main__":
    if len(sys.argv) not in (1, 2):
        raise SystemExit(__doc__)
    main(Path((sys.argv[1:] or ["docs/images"])[0]))

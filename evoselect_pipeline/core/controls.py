"""The two controls: every row, and rows at random."""

from __future__ import annotations

import numpy as np

from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.explain import equal_selection, not_needed
from evoselect_pipeline.core.ledger import Choice
from evoselect_pipeline.core.rounding import take_in_order
from evoselect_pipeline.core.selection import Selection, SelectionProblem
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings


def every_row(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """The control `all`: every usable row, whatever the budget; nearest rows are not looked for."""
    cost = cost_matrix(problem)
    choice = Choice(np.arange(len(cost)), cost.argmin(axis=1))
    sentences = ["every usable row is taken"] * len(cost)
    return equal_selection("all", problem, choice, cost, sentences, (), look_for_nearest=False)


def random_rows(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """The control `random`: rows drawn without replacement, each as likely as any other."""
    cost = cost_matrix(problem)
    order = np.random.default_rng(seed).permutation(len(cost))
    choice = take_in_order(problem, budget, order, cost.argmin(axis=1))
    sentences = [f"drawn at random with seed {seed}"] * len(choice.rows)
    rejections = not_needed(problem.candidates, choice, lambda i: f"not drawn with seed {seed}")
    return equal_selection("random", problem, choice, cost, sentences, rejections)

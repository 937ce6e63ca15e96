"""Rounds in memory: what the pipeline does between generation and evaluation, without its stores.

The same functions as in `rounds/`, with the same seeds: a chain comes to the pipeline's own
selections and scores. (The arms `all`, `random` and the oracle look at no gradient here, so no row
is set aside for its norm.) Nothing but what arms of a comparison share is kept between them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evoselect_pipeline.bench.arms import Arm, changed
from evoselect_pipeline.bench.summary import GOOD
from evoselect_pipeline.config import LineConfig, ModelSettings
from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.core.evolve_weights import effective_sample_size
from evoselect_pipeline.core.features import selection_problem
from evoselect_pipeline.core.gates import gate
from evoselect_pipeline.core.metrics import (
    near_duplicate_share,
    ot_distance,
    paired_bootstrap,
    target_coverage,
    vendi_score,
)
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.core.rounding import reach_cap
from evoselect_pipeline.core.selection import Candidates, Selection, SelectionProblem, Targets
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.core.settings import Budget
from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.evaluation.metrics import load_metric
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.progress import progress
from evoselect_pipeline.rounds.answers import EVALUATED
from evoselect_pipeline.rounds.candidates import load_generator
from evoselect_pipeline.rounds.data import load_task
from evoselect_pipeline.rounds.line import round_seed
from evoselect_pipeline.rounds.problem import judges_answers, problem_settings
from evoselect_pipeline.rounds.quality import answer_quality
from evoselect_pipeline.rounds.representation import Represented, join, represent


@dataclass(frozen=True)
class Pool:
    """One round's candidates, and what the generator knows of each, where it does."""

    samples: list[Sample]
    truth: dict[str, str] | None


class Block:
    """What all arms of one configuration share: rows, pools, features under the bare proxy."""

    def __init__(self, config: LineConfig) -> None:
        from evoselect_pipeline.training.models import load_encoder

        self.config = config
        self.task = load_task(config)
        self.generator = load_generator(config)
        self.encoder = load_encoder(config.model)
        self._pools: dict[int, Pool] = {}
        self._shared: dict[int, Represented] = {}
        self.base = self.answers(None)

    def pool(self, round_number: int) -> Pool:
        """What the generator writes for a round, less what the gates keep out."""
        if round_number not in self._pools:
            seed = round_seed(self.config.seed, round_number, "generate")
            written = self.generator.generate(Assignment(self.task.targets, round_number, seed))
            trusted = [*self.task.targets, *self.task.validation, *self.task.test]
            passed = gate(written.samples, trusted, self.config.gates).passed
            truth = None
            if written.truth is not None:
                pairs = zip(written.samples, written.truth, strict=True)
                truth = {sample.sample_id: kind for sample, kind in pairs}
            self._pools[round_number] = Pool(passed, truth)
        return self._pools[round_number]

    def represent(
        self, config: LineConfig, number: int, history: list[Sample], adapter: Path | None
    ) -> Represented:
        """Features of a round's candidates, the targets and earlier rows."""
        if adapter is not None and config.wears_adapter:
            rows = [*self.pool(number).samples, *history]
            return represent(rows, self.task.targets, config, adapter)
        shared = self.shared(number)
        return shared if config.gradients.target_span else shared.without_span()

    def shared(self, number: int) -> Represented:
        """Features of all candidates so far under the bare proxy, with the target span."""
        if number not in self._shared:
            # Whichever arm came first: one that wants no coordinates drops them.
            config = changed(self.config, ("gradients.target_span=true",))
            own = represent(self.pool(number).samples, self.task.targets, config)
            self._shared[number] = join([own, self.shared(number - 1)]) if number else own
        return self._shared[number]

    def encode(self, samples: Sequence[Sample], model: ModelSettings) -> dict[str, Encoded]:
        """Token ids and labels of the rows that a model can be trained on."""
        from evoselect_pipeline.training.models import load_encoder

        return {row.sample_id: row for row in load_encoder(model).encode(samples)[0]}

    def answers(self, adapter: Path | None) -> dict[str, np.ndarray]:
        """How right the answer to each validation and test row is, from 0 to 1."""
        from evoselect_pipeline.evaluation.answers import scored_answers
        from evoselect_pipeline.training.models import load_merged

        settings = self.config.evaluation
        model = load_merged(self.config.model, adapter, self.config.lora)
        return {
            split: np.array(
                [
                    answer.score
                    for answer in scored_answers(
                        model,
                        self.encoder,
                        getattr(self.task, split),
                        load_metric(self.config.task.metric).score,
                        max_new_tokens=settings.max_new_tokens,
                        batch_size=settings.batch_size,
                    )
                ]
            )
            for split in EVALUATED
        }


@dataclass(frozen=True)
class Chosen:
    """The rows of a round that an arm trains on, and what is to be said of them."""

    samples: list[Sample]
    facts: dict[str, Any]


def run_chain(block: Block, arm: Arm, num_rounds: int, work_dir: Path) -> dict[str, Any]:
    """Let an arm choose, train and be evaluated for some rounds; the record of it.

    The student goes on from its last adapter whether or not that would have been promoted; the
    champion under the promotion gate is worked out beside it, by its interval alone: how long
    answers are is not looked at here.
    """
    config = arm.config
    adapter: Path | None = None
    history: list[list[Sample]] = []
    champion_round, champion = None, block.base
    rounds = []
    for number in range(num_rounds):
        if arm.needs_features:
            block.shared(number)  # by the arms, so no arm's own time
        started = time.perf_counter()
        chosen = choose(block, arm, number, history, adapter, work_dir / "judges")
        selected_at = time.perf_counter()
        encoded = list(block.encode(chosen.samples, config.model).values())
        adapter = _train(config, encoded, number, adapter, work_dir)
        answers = block.answers(adapter)
        gain = paired_bootstrap(
            champion["validation"],
            answers["validation"],
            seed=config.seed,
            confidence=config.promotion.confidence,
        )
        promoted = gain.low > -config.promotion.tolerance
        if promoted:
            champion_round, champion = number, answers
        history.append(chosen.samples)
        rounds.append(
            {
                **_accuracies(answers),
                **chosen.facts,
                "num_selected_tokens": sum(row.num_trained for row in encoded),
                **_against_base(block, answers, config.seed),
                "promoted": promoted,
                "seconds_select": round(selected_at - started, 2),
                "seconds_train": round(time.perf_counter() - selected_at, 2),
            }
        )
    return {
        "base": _accuracies(block.base),
        "rounds": rounds,
        "champion": {
            "round": champion_round,
            **_accuracies(champion),
            **_against_base(block, champion, config.seed),
        },
    }


def choose(
    block: Block,
    arm: Arm,
    number: int,
    history: list[list[Sample]],
    adapter: Path | None,
    work_dir: Path,
) -> Chosen:
    """Choose one round's rows as an arm does it."""
    config, pool = arm.config, block.pool(number)
    earlier = {sample.sample_id for samples in history for sample in samples}
    candidates = [sample for sample in pool.samples if sample.sample_id not in earlier]
    budget = config.selection.budget(len(candidates))
    seed = round_seed(config.seed, number, "select")
    if not arm.needs_features:
        samples = _without_features(block, arm, candidates, pool, budget, seed)
        return Chosen(samples, _composition(samples, pool))
    remembered = [s for samples in history[-config.selection.memory_rounds :] for s in samples]
    if not config.selection.memory_rounds:
        remembered = []
    represented = block.represent(config, number, remembered, adapter)
    usable = [s for s in candidates if s.sample_id not in represented.unusable]
    problem = selection_problem(
        usable,
        represented.of(usable),
        block.task.targets,
        represented.of(block.task.targets),
        represented.of(remembered).vectors if remembered else None,
        history_ids=[sample.sample_id for sample in remembered],
        trained=[sample for samples in history for sample in samples],
        **problem_settings(config),
    )
    shown, shared = problem, block.shared(number)
    if represented is not shared:  # figures of the arms are compared in the features they share
        shown = selection_problem(
            usable,
            shared.of(usable),
            block.task.targets,
            shared.of(block.task.targets),
            **problem_settings(block.config),
        )
    if judges_answers(config):
        judgement = answer_quality(
            problem,
            budget,
            block.encode([*usable, *block.task.targets], config.proxy or config.model),
            config,
            adapter=adapter,
            seed=seed,
            work_dir=work_dir,
        )
        problem = problem.with_quality(judgement.quality)
    settings = config.selection
    aimed = _aimed_at_centroid(problem) if arm.to_centroid else problem
    selection = select(aimed, budget, seed, settings.method, settings.evoselect)
    sample_of = {sample.sample_id: sample for sample in usable}
    samples = [sample_of[sample_id] for sample_id in selection.selected_ids]
    return Chosen(samples, _composition(samples, pool) | _geometry(shown, selection))


def _train(
    config: LineConfig,
    rows: Sequence[Encoded],
    number: int,
    adapter: Path | None,
    work_dir: Path,
) -> Path:
    from evoselect_pipeline.training.lora import train_adapter

    trained = work_dir / f"adapter-{number}"
    train_adapter(
        config.model,
        adapter,
        rows,
        lora=config.lora,
        train=config.train,
        seed=round_seed(config.seed, number, "train"),
        adapter_seed=config.seed,
        work_dir=work_dir / "checkpoints",
        out_dir=trained,
        on_step=partial(progress, "training steps"),
    )
    return trained


def _oracle_rows(candidates: list[Sample], pool: Pool) -> list[Sample]:
    if pool.truth is None:
        raise ConfigError("the oracle needs a generator that knows which rows are good")
    good = [sample for sample in candidates if pool.truth[sample.sample_id] == GOOD]
    if not good:
        raise DataError("the oracle found no good row in the pool; generate more rows")
    return good


def _without_features(
    block: Block, arm: Arm, samples: list[Sample], pool: Pool, budget: Budget, seed: int
) -> list[Sample]:
    """What `all`, `random` and the oracle choose, which asks nothing of a row but its length.

    `random` itself draws, so that budgets and caps mean the same to every arm; it gets a vector
    that is the same for all rows.
    """
    method = arm.config.selection.method
    if arm.is_oracle:
        samples, method = _oracle_rows(samples, pool), "random"
    encoded = block.encode(samples, arm.config.model)
    sample_of = {s.sample_id: s for s in samples if s.sample_id in encoded}
    ids = tuple(sample_of)
    if method == "all":
        return list(sample_of.values())
    same = np.ones((len(ids), 1), np.float32)
    problem = SelectionProblem(
        candidates=Candidates(
            sample_ids=ids,
            gradients=same,
            norms=same[:, 0],
            losses=same[:, 0],
            num_tokens=np.array([encoded[i].num_trained for i in ids]),
            sources=tuple(sample.source for sample in sample_of.values()),
            text_keys=ids,
        ),
        targets=Targets(("",), same[:1], same[:1, 0], ("",)),
    )
    budget = replace(budget, rows=min(budget.rows or len(ids), len(ids)))  # good rows may be few
    chosen = select(problem, budget, seed, method).selected_ids
    return [sample_of[sample_id] for sample_id in chosen]


def _aimed_at_centroid(problem: SelectionProblem) -> SelectionProblem:
    """The problem with one target, the mean of all: what is left of transport without modes."""
    targets = problem.targets
    mean = targets.weights @ targets.gradients
    mean = (mean / np.linalg.norm(mean)).astype(targets.gradients.dtype)
    loss = float(np.mean(targets.losses))
    centroid = Targets((targets.sample_ids[0],), mean[None], np.array([loss]), ("",))
    return replace(problem, targets=centroid)


def _accuracies(answers: dict[str, np.ndarray]) -> dict[str, float]:
    return {split: float(answers[split].mean()) for split in EVALUATED}


def _against_base(block: Block, answers: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    """Interval of the gain over the base model on the test rows: says what is below it."""
    gain = paired_bootstrap(block.base["test"], answers["test"], seed=seed)
    return {"gain_over_base_low": gain.low, "gain_over_base_high": gain.high}


def _composition(samples: Sequence[Sample], pool: Pool) -> dict[str, Any]:
    facts: dict[str, Any] = {"num_candidates": len(pool.samples), "num_selected": len(samples)}
    if pool.truth is not None:
        facts["truth"] = dict(Counter(pool.truth[sample.sample_id] for sample in samples))
    return facts


def _geometry(problem: SelectionProblem, selection: Selection) -> dict[str, Any]:
    """Alignment and diversity of what was chosen, by the figures that the paper analyses."""
    place = {sample_id: n for n, sample_id in enumerate(problem.candidates.sample_ids)}
    chosen = problem.candidates.gradients[[place[i] for i in selection.selected_ids]]
    targets, reach = problem.targets, reach_cap(problem, None)
    return {
        "ot_distance": ot_distance(chosen, targets.gradients, targets.weights),
        "vendi": vendi_score(chosen),
        "near_duplicate_share": near_duplicate_share(chosen, 0.95),
        "target_coverage": target_coverage(chosen, targets.gradients, reach),
        "effective_sample_size": effective_sample_size(selection.weights),
    }

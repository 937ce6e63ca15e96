"""The middle stages of a round: gradient features, alignment weights, the selected subset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from evoselect_pipeline.core.encoding import Unusable
from evoselect_pipeline.core.evoselect import Alignment, align, restore_alignment
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.core.selection import (
    Candidates,
    Pick,
    Rejection,
    Selection,
    source_shares,
)
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.report.text import one_line
from evoselect_pipeline.rounds.data import published_target_set, selected_before, split_rows
from evoselect_pipeline.rounds.distributed import cluster_of
from evoselect_pipeline.rounds.line import (
    EXTRACTION,
    FACTS,
    Line,
    entered,
    made_from,
    read_facts,
    read_json,
    write_json,
)
from evoselect_pipeline.rounds.problem import OFF, SPAN_FILE, judged_problem, problem_settings
from evoselect_pipeline.rounds.representation import (
    compute_gradients,
    gradient_fingerprint,
    span_fingerprint,
    store_gradients,
)
from evoselect_pipeline.rounds.verdicts import (
    candidates_well_formed,
    gradients_finite,
    no_evaluation_row_among_candidates,
    require,
    transport_converged,
    weights_not_collapsed,
)
from evoselect_pipeline.stores.artifacts import (
    Artifact,
    find,
    open_artifact,
    publish,
    write_text_atomic,
)

MOST_SOURCES = 10


def projected_gradients(line: Line, round_number: int) -> Artifact:
    """Compute the features of candidates, targets and rows selected before; store them by content.

    Rows that were stored before cost nothing. Earlier rows are needed under the present proxy,
    because a refreshed proxy gives every row another gradient.
    """
    from evoselect_pipeline.training.models import load_encoder, load_proxy

    config = line.config
    start = entered(line, round_number)
    require(candidates_well_formed, line, round_number)
    require(no_evaluation_row_among_candidates, line, round_number)
    proxy_settings = config.proxy or config.model
    adapter = start.path if config.wears_adapter else None
    proxy = load_proxy(proxy_settings, adapter, config.lora, config.seed)
    encoder = load_encoder(proxy_settings)
    fingerprint = gradient_fingerprint(proxy, encoder, config.gradients, config.seed)

    pool = line.artifact(round_number, "candidates")
    candidate_ids = read_json(pool.path / "ids.json")
    history_ids = selected_before(line, round_number, config.selection.memory_rounds)
    inputs = made_from(
        line,
        {"dim": config.gradients.dim, "target_span": config.gradients.target_span},
        fingerprint=fingerprint,
        candidates=pool.digest,
        target_set=published_target_set(line).digest,
        history=digest(history_ids),
    )
    directory = line.stage_dir(round_number, "projected_gradients")
    if found := find(directory, inputs):
        return found
    targets = split_rows(line, "targets")
    span = span_fingerprint(fingerprint, targets) if config.gradients.target_span else None
    present = line.store.present(fingerprint, config.gradients.dim)
    if span:
        present &= line.store.placed(span, len(targets))
    pool_ids = [*candidate_ids, *history_ids]
    missing = {*pool_ids, *(target.sample_id for target in targets)} - present
    width = config.gradients.dim + (len(targets) if span else 0)
    line.store.refuse_small_disk(len(missing), width)
    begun = directory.parent / f"{EXTRACTION}{digest(inputs)}"
    batched = missing | _missing_at_first(begun, missing)
    rows = [
        *line.store.get_samples([i for i in dict.fromkeys(pool_ids) if i in batched]),
        *(target for target in targets if target.sample_id in batched),
    ]
    batches, unusable, folded = compute_gradients(
        rows,
        targets,
        proxy,
        encoder,
        config.gradients,
        config.seed,
        present=frozenset(present),
        cluster=cluster_of(config, adapter),
    )
    _refuse_unusable_targets(targets, unusable)
    unusable += store_gradients(line.store, fingerprint, span, batches)
    _refuse_unusable_targets(targets, unusable)
    left_out = {row.sample_id for row in unusable}
    with publish(directory, inputs=inputs) as folder:
        np.save(folder / SPAN_FILE, folded, allow_pickle=False)
        write_json(folder / "ids.json", [i for i in candidate_ids if i not in left_out])
        write_json(folder / "history.json", [i for i in history_ids if i not in left_out])
        write_json(folder / "unusable.json", [asdict(row) for row in unusable])
        write_json(
            folder / FACTS,
            {
                "fingerprint": fingerprint,
                "span": span,
                "dim": config.gradients.dim,
                "num_candidates": sum(i not in left_out for i in candidate_ids),
                "num_targets": len(targets),
                "num_history": len(history_ids),
                "num_unusable": len(unusable),
                "proxy": proxy_settings.name,
                "proxy_adapter_round": start.trained_in if config.wears_adapter else None,
            },
        )
    begun.unlink(missing_ok=True)
    return open_artifact(directory)


def _missing_at_first(begun: Path, missing: set[str]) -> set[str]:
    """The rows that an extraction lacked when it began, which is kept in a file until it ends.

    Batches are cut from these. So one that was interrupted computes every row in the company it
    would have had, and gets the same bits, while rows of earlier extractions are left alone.
    """
    if not begun.exists():
        write_text_atomic(begun, json.dumps(sorted(missing)))
    return set(read_json(begun))


def _refuse_unusable_targets(targets: Sequence[Sample], unusable: Sequence[Unusable]) -> None:
    detail_of = {row.sample_id: row.detail for row in unusable}
    blind = [target.sample_id for target in targets if target.sample_id in detail_of]
    if blind:
        raise DataError(
            f"{len(blind)} target rows cannot be represented, the first is {blind[0]}:"
            f" {detail_of[blind[0]]}. Mend or remove them: selection would be blind to them"
        )


def alignment_scores(line: Line, round_number: int) -> Artifact:
    """Weigh the candidates by transport to the targets and by diversity.

    Rows are weighed whichever selector is configured: the scores tell what EvoSelect thinks of a
    row that another method chose. Of a large pool only the rows that it weighs have scores.
    """
    require(gradients_finite, line, round_number)
    config = line.config
    represented = line.artifact(round_number, "projected_gradients")
    judged = line.artifact(round_number, "answer_quality")
    budget = config.selection.budget(read_facts(represented)["num_candidates"])
    settings = {
        **problem_settings(config),
        "evoselect": asdict(config.selection.evoselect),
        "budget": asdict(budget),
    }
    inputs = made_from(
        line, settings, projected_gradients=represented.digest, answer_quality=judged.digest
    )
    directory = line.stage_dir(round_number, "alignment_scores")
    if found := find(directory, inputs):
        return found
    problem = judged_problem(line, round_number)
    alignment = align(problem, budget, config.selection.evoselect)
    _put_scores(line, round_number, alignment, problem.candidates, read_facts(judged)["judge"])
    evolution = alignment.evolution
    with publish(directory, inputs=inputs) as folder:
        np.savez(
            folder / "evolution.npz",
            allow_pickle=False,
            rows=alignment.rows,
            weights=evolution.weights,
            f=evolution.transport.f,
            g=evolution.transport.g,
        )
        write_json(folder / "trace.json", [asdict(update) for update in evolution.trace])
        write_json(
            folder / FACTS,
            {
                "num_weighed": len(alignment.rows),
                "transport_cost": evolution.transport_cost,
                "energy": evolution.energy,
                "marginal_error": evolution.transport.marginal_error,
                "effective_sample_size": evolution.effective_sample_size,
                "effective_sample_size_floor": evolution.ess_floor,
                "num_updates": len(evolution.trace),
                "stop_reason": evolution.stop_reason,
            },
        )
    return open_artifact(directory)


def selected_subset(line: Line, round_number: int) -> Artifact:
    """Choose the rows to train on, and write down a decision and a reason for every candidate."""
    config = line.config.selection
    require(transport_converged, line, round_number)
    require(weights_not_collapsed, line, round_number)
    aligned = line.artifact(round_number, "alignment_scores")
    pool = line.artifact(round_number, "candidates")
    settings = {
        "method": config.method,
        "ratio": config.ratio,
        "max_tokens": config.max_tokens,
        "source_share": config.source_share,
    }
    inputs = made_from(line, settings, alignment_scores=aligned.digest, candidates=pool.digest)
    directory = line.stage_dir(round_number, "selected_subset")
    if found := find(directory, inputs):
        return found
    problem = judged_problem(line, round_number)
    budget = config.budget(len(problem.candidates))
    with np.load(aligned.path / "evolution.npz", allow_pickle=False) as kept:
        kept_of_it = kept["weights"], (kept["f"], kept["g"]), kept.get("rows")
    alignment = restore_alignment(problem, budget, config.evoselect, *kept_of_it)
    seed = line.round_seed(round_number, "select")
    selection = select(problem, budget, seed, config.method, config.evoselect, alignment)
    represented = line.artifact(round_number, "projected_gradients")
    rejections = [
        *(Rejection(**row) for row in read_json(pool.path / "rejected.json")),
        *_unusable_candidates(represented, set(read_json(pool.path / "ids.json"))),
        *selection.rejections,
    ]
    _put_decisions(line, round_number, selection.picks, rejections)
    line.store.tag_round(line.name, round_number)
    with publish(directory, inputs=inputs) as folder:
        write_json(folder / "picks.json", [asdict(pick) for pick in selection.picks])
        facts = _selection_facts(selection, rejections)
        write_json(folder / FACTS, facts | _influence(problem.candidates, alignment, selection))
    return open_artifact(directory)


def _unusable_candidates(represented: Artifact, candidate_ids: set[str]) -> list[Rejection]:
    rows = read_json(represented.path / "unusable.json")
    return [
        Rejection(row["sample_id"], row["reason"], row["detail"])
        for row in rows
        if row["sample_id"] in candidate_ids
    ]


def _selection_facts(selection: Selection, rejections: list[Rejection]) -> dict:
    return {
        "method": selection.method,
        "num_selected": len(selection.picks),
        "num_rejected": len(rejections),
        "rejected": dict(Counter(rejection.stage for rejection in rejections)),
        "num_short": selection.diagnostics["num_short"],
        "num_unreached_targets": selection.diagnostics.get("num_unreached_targets", 0),
        "unreached_targets": selection.diagnostics.get("unreached_targets", []),
        "selected_digest": digest(selection.selected_ids),
    }


def _influence(candidates: Candidates, alignment: Alignment, selection: Selection) -> dict:
    """How much each source had to say: one that floods the pool, or is crafted for it, shows."""
    mass = alignment.evolution.transport.plan().sum(axis=1).tolist()
    mass_of = dict(zip(alignment.sample_ids, mass, strict=True))
    shares = source_shares(candidates, mass_of, selection.selected_ids)
    return {
        "num_sources": len(shares),
        "top_source_mass": shares[0].mass,
        "top_source_chosen": max(share.chosen for share in shares),
        "sources": [
            asdict(share) | {"source": one_line(share.source)} for share in shares[:MOST_SOURCES]
        ],
    }


def _put_scores(
    line: Line, round_number: int, alignment: Alignment, candidates: Candidates, judge: str
) -> None:
    """Store what was found of each row; `prior` stays null where no answer was judged."""
    import polars as pl

    evolution, solved = alignment.evolution, alignment.evolution.transport
    nearest_N = solved.cost.argmin(axis=1)
    prior_of = dict(zip(candidates.sample_ids, candidates.quality.tolist(), strict=True))
    judged = judge != OFF
    frame = pl.DataFrame(
        {
            "sample_id": alignment.sample_ids,
            "weight": evolution.weights,
            "potential": solved.f,
            "energy": evolution.slope,
            "nearest_target": [alignment.target_ids[j] for j in nearest_N],
            "nearest_cosine": 1.0 - solved.cost.min(axis=1),
            "transport_mass": solved.plan().sum(axis=1),
            "prior": [prior_of[i] if judged else None for i in alignment.sample_ids],
        }
    )
    line.store.put_scores(line.name, round_number, frame)


def _put_decisions(
    line: Line, round_number: int, picks: tuple[Pick, ...], rejections: list[Rejection]
) -> None:
    import polars as pl

    chosen = [{"selected": True, "stage": "selected", **asdict(pick)} for pick in picks]
    left = [{"selected": False, **asdict(rejection)} for rejection in rejections]
    frame = pl.DataFrame(chosen + left, infer_schema_length=None)
    line.store.put_decisions(line.name, round_number, frame)

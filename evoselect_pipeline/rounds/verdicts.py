"""What must hold between two stages, read anew from the stores.

Dagster's blocking checks block within one run only; stages therefore ask for the same verdicts
before they start, so that nothing goes on from a bad artifact in a later run either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evoselect_pipeline.core.records import Sample, make_sample
from evoselect_pipeline.core.text_keys import evaluation_keys, prompt_key, text_key
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.rounds.data import SPLITS, split_rows
from evoselect_pipeline.rounds.line import PROMOTED, Line, adapter_named, read_facts, read_json

LARGEST_UNUSABLE_SHARE = 0.5
SMALLEST_DISTINCT_SHARE = 0.5
LARGEST_LENGTH_RATIO = 3.0
SMALLEST_FILLED_SHARE = 0.5
LEAST_KNOWN = 0.1
LARGEST_GROWTH = 2.0  # of the answers, and of the share that is cut off
LEAST_TRUNCATED = 0.1  # more of the answers cut off; less may be a matter of a few rows
WHEN, LENGTHS = ("before", "after"), ("answer_tokens", "truncated")  # facts of evaluation
ROUNDING_SLACK = 1e-6  # the guard stops on its floor, give or take the last digits


@dataclass(frozen=True)
class Verdict:
    """Whether something holds, in a sentence a person can act on, with the figures behind it."""

    passed: bool
    sentence: str
    figures: dict[str, Any]


def candidates_well_formed(line: Line, round_number: int) -> Verdict:
    """Enough candidates, each a well-formed conversation."""
    pool = line.artifact(round_number, "candidates")
    ids = read_json(pool.path / "ids.json")
    figures: dict[str, Any] = {"num_candidates": len(ids)}
    least = line.config.min_candidates
    if len(ids) < least:
        sentence = f"{len(ids)} usable candidates, fewer than min_candidates = {least}"
        rejected = Counter(row["stage"] for row in read_json(pool.path / "rejected.json"))
        rejected.update(read_facts(pool).get("refused_rows", {}))
        why = _why_left_out(rejected) if rejected else "generate more"
        return Verdict(False, f"{sentence}: {why}", figures)
    for sample in line.store.get_samples(ids):
        make_sample(sample.messages)
    return Verdict(True, f"{len(ids)} candidates, all well-formed", figures)


def no_evaluation_row_among_candidates(line: Line, round_number: int) -> Verdict:
    """No candidate asks what a target, validation or test row asks."""
    pool = line.artifact(round_number, "candidates")
    rejected = read_json(pool.path / "rejected.json")
    kept_out = sum(row["stage"] == "leaks_evaluation" for row in rejected)
    figures: dict[str, Any] = {"num_kept_out": kept_out}
    trusted = evaluation_keys(row for split in SPLITS for row in split_rows(line, split))
    for sample in line.store.get_samples(read_json(pool.path / "ids.json")):
        if found := trusted.get(prompt_key(sample)):
            return Verdict(
                False,
                f"candidate {sample.sample_id} asks what evaluation row {found} asks: materialize"
                " candidates again",
                figures,
            )
    return Verdict(True, f"no such candidate; the gates kept {kept_out} out", figures)


def candidates_distinct(line: Line, round_number: int) -> Verdict:
    """Most candidates say something of their own."""
    samples = _candidates(line, round_number)
    share = len({text_key(sample) for sample in samples}) / max(1, len(samples))
    return Verdict(
        share >= SMALLEST_DISTINCT_SHARE,
        f"{share:.0%} of {len(samples)} candidates are distinct in their words"
        f" (expected {SMALLEST_DISTINCT_SHARE:.0%} or more): if few are, give the generator more"
        " seeds or a higher temperature",
        {"distinct_share": share},
    )


def answers_as_long_as_targets(line: Line, round_number: int) -> Verdict:
    """The candidates' answers are about as long as the target rows' answers."""
    candidates = _median_answer(_candidates(line, round_number))
    targets = _median_answer(split_rows(line, "targets"))
    ratio = candidates / max(1.0, targets)
    return Verdict(
        1 / LARGEST_LENGTH_RATIO <= ratio <= LARGEST_LENGTH_RATIO,
        f"the median answer has {candidates:.0f} characters, the targets' has {targets:.0f}"
        f" (expected within {LARGEST_LENGTH_RATIO:g} times): if they differ, look at the"
        " generator's prompt and format",
        {"length_ratio": ratio},
    )


def gradients_finite(line: Line, round_number: int) -> Verdict:
    """Every stored feature is finite and of unit length, and most rows have one."""
    represented = line.artifact(round_number, "projected_gradients")
    facts = read_facts(represented)
    ids = read_json(represented.path / "ids.json")
    share = facts["num_unusable"] / max(1, facts["num_unusable"] + len(ids))
    figures: dict[str, Any] = {"num_rows": len(ids), "unusable_share": share}
    if not ids or share > LARGEST_UNUSABLE_SHARE:
        return Verdict(
            False,
            f"{facts['num_unusable']} rows have no usable gradient and {len(ids)} have one: look at"
            " unusable.json in the artifact for the reasons",
            figures,
        )
    stored = line.store.read_gradients(ids, facts["fingerprint"], facts["dim"])
    finite = np.isfinite(stored.vectors).all() and np.isfinite(stored.norms).all()
    figures["median_norm"] = float(np.median(stored.norms))
    figures["median_loss"] = float(np.median(stored.losses))
    if not finite or not (stored.norms > 0).all():
        sentence = "stored gradients are not finite: remove the stage's artifact"
        return Verdict(False, f"{sentence} and materialize projected_gradients again", figures)
    return Verdict(True, f"{len(ids)} gradients, all finite", figures)


def transport_converged(line: Line, round_number: int) -> Verdict:
    """The transport plan meets its marginals within the tolerance."""
    error = read_facts(line.artifact(round_number, "alignment_scores"))["marginal_error"]
    allowed = line.config.selection.evoselect.tolerance
    return Verdict(
        error <= allowed,
        f"marginals are met to {error:.2g}, selection.evoselect.tolerance is {allowed:.2g}: if"
        " they are not, raise selection.evoselect.epsilon",
        {"marginal_error": error},
    )


def weights_not_collapsed(line: Line, round_number: int) -> Verdict:
    """The weights are spread over as many rows as the guard demands."""
    facts = read_facts(line.artifact(round_number, "alignment_scores"))
    size, floor = facts["effective_sample_size"], facts["effective_sample_size_floor"]
    return Verdict(
        size >= floor * (1 - ROUNDING_SLACK),
        f"the weights count as {size:.0f} rows, the guard's floor is {floor:.0f}: if they count as"
        " fewer, lower selection.evoselect.step_size",
        {"effective_sample_size": size, "floor": floor},
    )


def training_rows_end_with_eos(line: Line, round_number: int) -> Verdict:
    """Every chosen row can be trained on, and ends with a token that stops the student."""
    from evoselect_pipeline.training.models import load_encoder

    subset = line.artifact(round_number, "selected_subset")
    picks = read_json(subset.path / "picks.json")
    if not picks:
        left_out = read_facts(subset)["rejected"]
        return Verdict(
            False,
            f"no row was chosen; {_why_left_out(left_out)}",
            {"num_rows": 0, "num_unusable": 0},
        )
    encoder = load_encoder(line.config.model)
    rows, unusable = encoder.encode(line.store.get_samples([p["sample_id"] for p in picks]))
    figures: dict[str, Any] = {"num_rows": len(rows), "num_unusable": len(unusable)}
    if unusable:
        return Verdict(
            False,
            f"{len(unusable)} chosen rows cannot be trained on, the first is"
            f" {unusable[0].sample_id}: {unusable[0].detail}. Has the proxy another tokenizer?",
            figures,
        )
    endless = [row.sample_id for row in rows if row.input_ids[-1] not in encoder.stop_ids]
    if endless:
        return Verdict(
            False,
            f"{len(endless)} of {len(rows)} chosen rows do not end with a stop token:"
            f" {', '.join(endless[:3])}; mend the model's chat template",
            figures,
        )
    return Verdict(True, f"{len(rows)} chosen rows, all end with a stop token", figures)


def targets_reached(line: Line, round_number: int) -> Verdict:
    """Every target row has a chosen row within its reach."""
    facts = read_facts(line.artifact(round_number, "selected_subset"))
    unreached = facts["unreached_targets"]
    named = ", ".join(str(target)[:8] for target in unreached[:5])
    sentence = "every target row has a chosen row within reach"
    if unreached:
        sentence = (
            f"{len(unreached)} target rows have no chosen row within reach, such as {named}:"
            " have the generator write rows like them"
        )
    return Verdict(not unreached, sentence, {"num_unreached": len(unreached)})


def budget_filled(line: Line, round_number: int) -> Verdict:
    """At least half as many rows were chosen as the budget has room for."""
    facts = read_facts(line.artifact(round_number, "selected_subset"))
    chosen, budget = facts["num_selected"], facts["num_selected"] + facts["num_short"]
    filled = chosen >= SMALLEST_FILLED_SHARE * budget
    sentence = f"{chosen} rows were chosen, the budget has room for {budget}"
    if not filled:
        sentence += f"; {_why_left_out(facts['rejected'])}"
    return Verdict(filled, sentence, {"num_selected": chosen, "budget": budget})


def not_worse_than_before(line: Line, round_number: int) -> Verdict:
    """The trained adapter answers at least as many validation rows as the one before."""
    scores = read_facts(line.artifact(round_number, "evaluation"))
    before, after = scores["before_validation"], scores["after_validation"]
    sentence = f"validation accuracy {before:.3f} before, {after:.3f} after"
    if after < before:
        sentence += (
            ": worth_promoting says whether that is more than chance; if it is, look at the chosen"
            " rows in round_report and at the last losses of lora_checkpoint"
        )
    return Verdict(
        after >= before,
        sentence,
        {"before": before, "after": after},
    )


def answers_not_drifting(line: Line, round_number: int) -> Verdict:
    """The trained adapter's answers have not become much longer, nor do many more not end.

    The share of validation answers that ran into `evaluation.max_new_tokens` must not have more
    than doubled by more than a tenth of all; their mean length in tokens must not have more than
    doubled while the accuracy did not rise. An adapter that fails is not promoted.
    """
    facts = read_facts(line.artifact(round_number, "evaluation"))
    if not has_lengths(facts):
        return Verdict(True, "an earlier version did not measure how long answers are", {})
    length, longer = (facts[f"{when}_answer_tokens"] for when in WHEN)
    share, more = (facts[f"{when}_truncated"] for when in WHEN)
    sentence = (
        f"answers have {longer:.1f} tokens in the mean, {length:.1f} before; {more:.1%} ran into"
        f" evaluation.max_new_tokens, {share:.1%} before"
    )
    endless = more > LARGEST_GROWTH * share and more - share > LEAST_TRUNCATED
    risen = facts["after_validation"] > facts["before_validation"]
    drifts = endless or (longer > LARGEST_GROWTH * length and not risen)
    if drifts:
        sentence += (
            ": look in round_report for chosen rows whose answers are long or do not end; if the"
            " task wants such answers, raise evaluation.max_new_tokens"
        )
    figures = {"answer_tokens": longer, "truncated": more}
    return Verdict(not drifts, sentence, figures)


def has_lengths(scores: Mapping[str, Any]) -> bool:
    """Whether facts of `evaluation` tell how long answers are: earlier versions did not ask."""
    return all(f"{when}_{what}" in scores for when in WHEN for what in LENGTHS)


def judge_knows_the_task(line: Line, round_number: int) -> Verdict:
    """The model whose word is taken for what is plausible answers some validation rows itself."""
    config = line.config
    before = read_facts(line.artifact(round_number, "evaluation"))["before_validation"]
    if config.selection.method != "evoselect" or config.quality.prior == "none" or config.proxy:
        return Verdict(True, "no judge, or another model than the student is it", {})
    sentence = f"the model answered {before:.1%} of the validation rows before this round"
    if before < LEAST_KNOWN:
        sentence += (
            f" (expected {LEAST_KNOWN:.0%} or more): what it finds plausible says little about"
            " what is right. Take a stronger model, or have the rows' answers checked before"
            " they come here; quality.prior: none saves the judge's time"
        )
    return Verdict(before >= LEAST_KNOWN, sentence, {"before": before})


def canaries_unchanged(line: Line, round_number: int) -> Verdict:
    """The trained adapter answers every canary prompt as the one before did."""
    facts = read_facts(line.artifact(round_number, "evaluation"))
    if "num_canaries" not in facts:
        return Verdict(True, "no canary is asked: evaluation.canaries names none", {})
    number, changed = facts["num_canaries"], facts["canaries_changed"]
    sentence = f"{changed} of {number} canary prompts are answered otherwise than before"
    if changed:
        sentence += (
            ": round_report lists them; if one should have kept its answer, look among the chosen"
            " rows for what taught the new one"
        )
    return Verdict(not changed, sentence, {"num_canaries": number, "canaries_changed": changed})


def worth_promoting(line: Line, round_number: int) -> Verdict:
    """The trained adapter is not worse than the incoming one, and its answers do not drift."""
    facts = read_facts(line.artifact(round_number, PROMOTED))
    gain, low, high = (facts[name] for name in ("gain_validation", "gain_low", "gain_high"))
    share = f"{line.config.promotion.confidence:.0%}"
    measured = (
        f"validation accuracy {'rose' if gain >= 0 else 'fell'} by {abs(gain):.3f}"
        f" ({share} interval {low:+.3f} to {high:+.3f}; tolerance {facts['tolerance']:g})"
    )
    if drift := facts.get("drift"):
        measured += f"; {drift}"
    if facts["promoted"]:
        sentence = f"promoted: {measured}"
    else:
        sentence = (
            f"not promoted, {adapter_named(facts['champion_round'])} stays champion: {measured}."
            " The next round starts from it; round_report shows the rows this one learned from, and"
            f" {line.command(f'promote --round {round_number}')} promotes it all the same"
        )
    return Verdict(
        facts["promoted"],
        sentence,
        {"gain": gain, "gain_low": low, "gain_high": high},
    )


def _why_left_out(rejected: Mapping[str, int]) -> str:
    return (
        f"left out were {_counted(rejected)}. Have the generator write rows more like the targets,"
        " or loosen what the largest of these reasons names (docs/how-selection-works.md)"
    )


def _counted(rejected: Mapping[str, int]) -> str:
    in_order = sorted(rejected.items(), key=lambda item: -item[1])
    return ", ".join(f"{number} as {stage}" for stage, number in in_order)


def _candidates(line: Line, round_number: int) -> list[Sample]:
    ids = read_json(line.artifact(round_number, "candidates").path / "ids.json")
    return line.store.get_samples(ids)


def _median_answer(rows: Sequence[Sample]) -> float:
    return float(np.median([len(row.messages[-1].content) for row in rows])) if rows else 0.0


def require(verdict: Callable[[Line, int], Verdict], line: Line, round_number: int) -> None:
    """Refuse to go on where a verdict is negative."""
    found = verdict(line, round_number)
    if not found.passed:
        raise DataError(f"round {round_number} of line {line.name!r}: {found.sentence}")

"""What a page says about a round, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evoselect_pipeline.core.selection import SourceShare
from evoselect_pipeline.report.facts import (
    Bill,
    Canaries,
    Change,
    Cloud,
    Comparison,
    Example,
    Funnel,
    Lengths,
    Promotion,
    Round,
    Spread,
    TargetShare,
    Training,
)
from evoselect_pipeline.report.reasons import in_words
from evoselect_pipeline.report.text import duration, number, percent, plain, points, table

SHORT_ID = 8
MOST_UNREACHED = 20
MOST_CANARIES = 20
WORST_SERVED = 5


def title(told: Round) -> str:
    """The page's title."""
    return f"Round {told.number} of line {told.line}"


def headline(told: Round) -> str:
    """Did it help, by how much, how sure; promoted or not, and why."""
    last, change = told.outcomes[-1], told.test
    if change.low > 0:
        verdict = "The round helped"
    elif change.high < 0:
        verdict = "The round did harm"
    else:
        verdict = "The round made no difference that could be told from chance"
    return (
        f"{verdict}: the trained adapter answers {percent(last.after)} of {number(change.num_rows)}"
        f" test rows, {points(change.mean)} points against the {percent(last.before)} before"
        f" ({_interval(change)}). {promotion_sentence(told.promotion)}"
    )


def promotion_sentence(promotion: Promotion) -> str:
    """What the promotion test decided and why."""
    change, floor = promotion.change, points(-promotion.tolerance)
    measured = (
        f"on {number(change.num_rows)} validation rows accuracy changed by {points(change.mean)}"
        f" points ({_interval(change)})"
    )
    if promotion.promoted:
        return f"It was promoted: {measured}, and the interval stays above the tolerated {floor}."
    reasons = []
    if change.low <= -promotion.tolerance:
        reasons.append(f"the interval reaches down to the tolerated {floor} or below")
    if promotion.drifts:
        reasons.append("its answers have grown too long or do not end")
    why = ", and ".join([measured, *reasons])
    return f"It was not promoted: {why}; {promotion.champion} stays champion."


def page(told: Round, images: Mapping[str, str]) -> str:
    """The page without its seconds.

    Parameters
    ----------
    images : mapping of str to str
        Where each figure is to be found, by its file name; one that is missing is left out.
    """
    parts = [
        f"# {title(told)}",
        f"**{headline(told)}**",
        "## Accuracy over the rounds",
        _image(images, "accuracy.svg", "Test accuracy of every round's adapter with its interval"),
        "Bars are 95 % intervals over the test rows. Grey dashes: what each round started from.",
        "## The promotion test",
        _image(images, "promotion.svg", "Change of validation accuracy with its interval"),
        promotion_sentence(told.promotion),
        *_lengths(told.lengths),
        *_canaries(told.canaries),
        "## Where the generated rows went",
        _image(images, "funnel.svg", "Rows left out, by reason"),
        _funnel(told.funnel),
        _sources(told.sources, told.num_sources),
        "## Gradient space",
        _image(images, "map.png", "Candidates, chosen rows and targets in gradient space"),
        _map(told.cloud),
        "## Targets",
        _image(images, "targets.svg", "How well the chosen rows serve each target row"),
        _targets(told.targets),
        "## Against random choices",
        _image(images, "spread.svg", "Diversity and distance of chosen and of random rows"),
        _spread(told.spread),
        f"## {_count(len(told.chosen), told.funnel.selected)} chosen rows",
        _examples("rank", told.chosen),
        f"## {_count(len(told.rejected), sum(told.funnel.rejected.values()))} rejected rows",
        _examples("left out", told.rejected),
        "## What was trained",
        _training(told.training),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def cost_section(seconds: Mapping[str, float], bill: Bill | None = None) -> str:
    """What the stages took, and a generator's server asked for, to be put at a page's end."""
    if not seconds:
        return ""
    paid = f"\n\n{_bill(bill)}" if bill else ""
    rows = [(f"`{stage}`", duration(spent)) for stage, spent in seconds.items()]
    rows.append(("**all**", f"**{duration(sum(seconds.values()))}**"))
    intro = "Time at work, repeated and failed attempts included; this report not."
    return f"\n## What it took\n\n{intro}\n\n{table(('stage', 'time'), rows, 'lr')}{paid}"


def _bill(bill: Bill) -> str:
    text = (
        f"The generator's LLM answered {number(bill.num_requests)} requests with"
        f" {number(bill.num_tokens)} tokens, prompts included: {bill.cost:.4g} at the configured"
        " prices."
    )
    if bill.stopped_by:
        text += f" There the asking ended: `generator.{bill.stopped_by}` was reached."
    return text


def _interval(change: Change) -> str:
    share = f"{100 * change.confidence:g} %"
    return f"{share} interval {points(change.low)} to {points(change.high)}"


def _image(images: Mapping[str, str], name: str, says: str) -> str:
    return f"![{says}]({images[name]})" if name in images else ""


def _count(shown: int, of: int) -> str:
    return f"{shown} of {number(of)}" if shown < of else f"All {number(of)}"


def _lengths(lengths: tuple[Lengths, Lengths] | None) -> list[str]:
    if lengths is None:
        return []
    before, after = lengths
    text = (
        f"Answers to validation rows have {after.tokens:.1f} tokens in the mean,"
        f" {before.tokens:.1f} before the round; {percent(after.truncated)} of them ran into"
        f" `evaluation.max_new_tokens`, {percent(before.truncated)} before."
    )
    return ["## How long answers are", text]


def _canaries(canaries: Canaries | None) -> list[str]:
    if canaries is None:
        return []
    changed = canaries.changed
    text = (
        f"{number(len(changed))} of {number(canaries.num_asked)} canary prompts are answered"
        " otherwise than before the round"
    )
    if len(changed) > MOST_CANARIES:
        text += f" (the first {MOST_CANARIES})"
    rows = [(plain(c.prompt), plain(c.before), plain(c.after)) for c in changed[:MOST_CANARIES]]
    shown = f":\n\n{table(('prompt', 'before', 'after'), rows)}" if rows else "."
    return ["## Canaries", text + shown]


def _funnel(funnel: Funnel) -> str:
    rejected = sum(funnel.rejected.values())
    text = (
        f"{number(funnel.generated)} rows were generated, {number(rejected + funnel.repeated)} were"
        f" left out and {number(funnel.selected)} chosen."
    )
    if funnel.short:
        text += f" The budget had room for {number(funnel.short)} more, but no further row was fit."
    if funnel.scarce:
        text += " **Not even half of the budget was filled: the picture above says why.**"
    return text


def _sources(shares: Sequence[SourceShare], num_sources: int) -> str:
    """Who had how much influence, where several wrote; one that floods the pool shows here."""
    if num_sources < 2:
        return ""
    rows = [
        (plain(share.source), percent(share.candidates), percent(share.mass), percent(share.chosen))
        for share in shares
    ]
    columns = ("written by", "of the candidates", "of the transport mass", "of the chosen rows")
    more = f" (the first {len(shares)})" if len(shares) < num_sources else ""
    return (
        f"{number(num_sources)} sources{more}; `selection.source_share` limits what one of them may"
        f" have of the chosen rows:\n\n{table(columns, rows, 'lrrr')}"
    )


def _map(cloud: Cloud) -> str:
    shown = sum(cloud.explained)
    return (
        "Each row's gradient, as selection compares them, on the plane of their first two principal"
        f" directions. Together these hold {percent(shown)} of the variance: rows far apart here"
        " differ, rows close together may differ all the same."
    )


def _targets(targets: Sequence[TargetShare]) -> str:
    unreached = [target for target in targets if not target.reached]
    counts = [target.num_rows for target in targets]
    text = (
        f"{number(len(targets) - len(unreached))} of {number(len(targets))} target rows have a"
        f" chosen row; the median has {number(float(np.median(counts)))}, the most {max(counts)}."
    )
    shown = unreached[:MOST_UNREACHED] or [t for t in targets if t.reached][:WORST_SERVED]
    if unreached:
        more = f" (the first {MOST_UNREACHED})" if len(unreached) > MOST_UNREACHED else ""
        text += f" **No row was chosen for these{more}:**"
    else:
        text += " The worst served:"
    rows = [
        (
            f"`{target.sample_id[:SHORT_ID]}`",
            plain(target.prompt),
            number(target.num_rows),
            "–" if target.covered is None else percent(target.covered),
        )
        for target in shown
    ]
    columns = ("target id", "its prompt", "chosen rows", "transport mass carried")
    return f"{text}\n\n{table(columns, rows, 'llrr')}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "No row was chosen, so there is nothing to compare."
    return (
        f"{number(spread.num_rows)} chosen rows count as {spread.vendi.chosen:.1f} distinct ones in"
        f" effect, as many random candidates as {_span(spread.vendi, 1)}. Their transport distance"
        f" to {number(spread.num_targets)} target rows is {spread.distance.chosen:.3f}, that of"
        f" random candidates {_span(spread.distance, 3)} ({len(spread.vendi.random)} draws)."
        " Rows from anywhere are the more diverse ones: what counts is diversity near the targets."
    )


def _span(values: Comparison, digits: int) -> str:
    low, high = (f"{bound:.{digits}f}" for bound in (min(values.random), max(values.random)))
    return low if low == high else f"{low} to {high}"


def _examples(head: str, examples: Sequence[Example]) -> str:
    rows = [
        (
            in_words(example.verdict),
            f"`{example.sample_id[:SHORT_ID]}`",
            plain(example.prompt),
            plain(example.answer),
            plain(example.reason, 240),
        )
        for example in examples
    ]
    return table((head, "row id", "prompt", "answer", "why"), rows) if rows else "None."


def _training(training: Training) -> str:
    passes = training.num_steps * training.rows_per_step / max(1, training.num_rows)
    return (
        f"{number(training.num_steps)} steps of {number(training.rows_per_step)} rows:"
        f" {passes:.1f} passes over {number(training.num_rows)} rows whose answers have"
        f" {number(training.num_tokens)} tokens, which makes"
        f" {number(passes * training.num_tokens)} tokens trained. The loss went from"
        f" {training.first_loss:.3f} to {training.last_loss:.3f}."
    )

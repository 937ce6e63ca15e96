"""The last stage of a round: one page that says what happened, whether it helped, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evoselect_pipeline.core.metrics import paired_bootstrap
from evoselect_pipeline.core.selection import SourceShare, target_weights
from evoselect_pipeline.report.facts import (
    Bill,
    Canaries,
    Change,
    ChangedAnswer,
    Example,
    Funnel,
    Lengths,
    Outcome,
    Promotion,
    Round,
    TargetShare,
    Training,
)
from evoselect_pipeline.rounds.adaptation import CANARIES_FILE
from evoselect_pipeline.rounds.candidates import has_answers
from evoselect_pipeline.rounds.costs import seconds_spent
from evoselect_pipeline.rounds.data import published_target_set, split_rows
from evoselect_pipeline.rounds.gradient_space import cloud_and_spread
from evoselect_pipeline.rounds.line import (
    FACTS,
    PROMOTED,
    Line,
    adapter_named,
    made_from,
    read_facts,
    read_json,
    write_json,
)
from evoselect_pipeline.rounds.verdicts import WHEN, budget_filled, has_lengths
from evoselect_pipeline.stores.artifacts import (
    Artifact,
    find,
    open_artifact,
    publish,
    write_text_atomic,
)

if TYPE_CHECKING:
    import polars as pl

LAYOUT = 2  # of the page: a report of another layout is made anew
REPORT = "round_report"
PAGE, FIGURES = "report.md", "figures"
HTML = "report.html"
READ = ("candidates", "projected_gradients", "alignment_scores", "selected_subset",
        "lora_checkpoint", "evaluation", PROMOTED)  # fmt: skip
EXAMPLES = 10


def round_report(line: Line, round_number: int) -> Artifact:
    """Write the round's page: did it help, how sure is that, which rows were chosen and why.

    The artifact holds the page and its figures without the seconds, so that equal results have
    equal digests. The page for people, `report.html` beside it, tells the seconds as well: it can
    be written anew from the artifact at any time.
    """
    artifact = _published(line, round_number)
    _write_html(line, round_number, artifact)
    return artifact


def page_of(line: Line, round_number: int, *, inline: bool = True) -> str:
    """The round's page with its seconds as Markdown, its figures in it or beside it."""
    from evoselect_pipeline.report.html import data_uri
    from evoselect_pipeline.report.page import cost_section

    artifact = line.artifact(round_number, REPORT)
    text = (artifact.path / PAGE).read_text(encoding="utf-8")
    if inline:
        for name, content in _figures(artifact).items():
            text = text.replace(f"]({FIGURES}/{name})", f"]({data_uri(name, content)})")
    return text + cost_section(_seconds(line, round_number), _bill(line, round_number))


def round_facts(line: Line, round_number: int) -> dict[str, Any]:
    """What a finished round comes to, for status and summary."""
    scores = read_facts(line.artifact(round_number, "evaluation"))
    funnel = _funnel(line, round_number)
    once = {"repeated": funnel.repeated} if funnel.repeated else {}
    return {
        "line": line.name,
        "round": round_number,
        "base": scores["base_test"],
        "before": scores["before_test"],
        "after": scores["after_test"],
        "after_low": scores["after_test_low"],
        "after_high": scores["after_test_high"],
        "promoted": read_facts(line.artifact(round_number, PROMOTED))["promoted"],
        "num_candidates": funnel.generated,
        "num_selected": funnel.selected,
        "budget": funnel.selected + funnel.short,
        "rejected": {**once, **funnel.rejected},
        "headline": _headline_of(line, round_number),
    }


def _headline_of(line: Line, round_number: int) -> str | None:
    """What the page says first: did it help, how sure is that; None where there is no page."""
    if not line.has(round_number, REPORT):
        return None
    return read_facts(line.artifact(round_number, REPORT))["headline"]


def html_file(line: Line, round_number: int) -> Path:
    """Where the page for people is."""
    return line.home.round_dir(line.name, round_number) / HTML


def promotion_of(line: Line, round_number: int) -> Promotion:
    """The promotion test of a round."""
    artifact = line.artifact(round_number, PROMOTED)
    facts, champion = read_facts(artifact), read_facts(artifact)["champion_round"]
    scored = read_json(line.artifact(round_number, "evaluation").path / "after.json")
    change = Change(
        facts["gain_validation"],
        facts["gain_low"],
        facts["gain_high"],
        artifact.inputs["settings"]["confidence"],
        len(scored["validation"]),
    )
    return Promotion(
        facts["promoted"],
        change,
        facts["tolerance"],
        adapter_named(champion),
        drifts=bool(facts.get("drift")),
    )


def rejected_rows(line: Line, round_number: int, most: int) -> list[dict[str, Any]]:
    """Some decisions about rows that were left out: of every reason some, the commonest first."""
    return _spread_over_reasons(line.store.read_decisions(line.name, round_number), most)


def _published(line: Line, round_number: int) -> Artifact:
    from evoselect_pipeline.report.page import headline, page
    from evoselect_pipeline.report.plots import draw

    inputs = _inputs(line, round_number)
    directory = line.stage_dir(round_number, REPORT)
    if found := find(directory, inputs):
        return found
    told = _gathered(line, round_number)
    figures = draw(told)
    with publish(directory, inputs=inputs) as folder:
        (folder / FIGURES).mkdir()
        for name, content in figures.items():
            (folder / FIGURES / name).write_bytes(content)
        text = page(told, {name: f"{FIGURES}/{name}" for name in figures})
        (folder / PAGE).write_text(text, encoding="utf-8")
        write_json(folder / FACTS, {"headline": headline(told), **_figures_of(told)})
    return open_artifact(directory)


def _inputs(line: Line, round_number: int) -> dict[str, Any]:
    """What the page is made from: this round's artifacts, and what earlier ones came to."""
    read = {name: line.artifact(round_number, name).digest for name in READ}
    earlier = [
        [line.artifact(number, name).digest for name in ("evaluation", PROMOTED)]
        for number in range(round_number)
    ]
    return made_from(
        line, {"layout": LAYOUT}, target_set=published_target_set(line).digest, **read
    ) | {"earlier": earlier}  # fmt: skip


def _write_html(line: Line, round_number: int, artifact: Artifact) -> None:
    from evoselect_pipeline.report.html import to_html

    figures = {f"{FIGURES}/{name}": content for name, content in _figures(artifact).items()}
    text = page_of(line, round_number, inline=False)
    title = f"Round {round_number} of line {line.name}"
    write_text_atomic(html_file(line, round_number), to_html(text, title, figures))


def _figures(artifact: Artifact) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((artifact.path / FIGURES).iterdir())}


def _seconds(line: Line, round_number: int) -> dict[str, float]:
    spent = seconds_spent(line, round_number)
    return {stage: seconds for stage, seconds in spent.items() if stage != REPORT}


def _figures_of(told: Round) -> dict[str, Any]:
    """What Dagster and MLflow plot over the rounds."""
    facts: dict[str, Any] = {
        "gain_test": told.test.mean,
        "gain_test_low": told.test.low,
        "gain_test_high": told.test.high,
    }
    if told.spread:
        for name, values in (("vendi", told.spread.vendi), ("ot_distance", told.spread.distance)):
            facts[name] = round(values.chosen, 6)
            facts[f"{name}_random"] = round(float(np.mean(values.random)), 6)
    return facts


def _gathered(line: Line, round_number: int) -> Round:
    subset = line.artifact(round_number, "selected_subset")
    picks, facts = read_json(subset.path / "picks.json"), read_facts(subset)
    decisions = line.store.read_decisions(line.name, round_number)
    cloud, spread = cloud_and_spread(line, round_number, [pick["sample_id"] for pick in picks])
    return Round(
        line=line.name,
        method=facts["method"],
        outcomes=tuple(_outcome(line, number) for number in range(round_number + 1)),
        test=_change_of_test(line, round_number),
        promotion=promotion_of(line, round_number),
        funnel=_funnel(line, round_number),
        cloud=cloud,
        targets=_target_shares(line, picks, set(facts["unreached_targets"])),
        spread=spread,
        chosen=_examples(line, _evenly(picks), "rank"),
        rejected=_examples(line, _spread_over_reasons(decisions, EXAMPLES), "stage"),
        training=_training(line, round_number),
        lengths=_lengths(line, round_number),
        canaries=_canaries(line, round_number),
        sources=tuple(SourceShare(**share) for share in facts.get("sources", ())),
        num_sources=facts.get("num_sources", 1),
    )


def _outcome(line: Line, number: int) -> Outcome:
    scores = read_facts(line.artifact(number, "evaluation"))
    return Outcome(
        number=number,
        base=scores["base_test"],
        before=scores["before_test"],
        after=scores["after_test"],
        low=scores["after_test_low"],
        high=scores["after_test_high"],
        promoted=read_facts(line.artifact(number, PROMOTED))["promoted"],
    )


def _change_of_test(line: Line, round_number: int) -> Change:
    folder = line.artifact(round_number, "evaluation").path
    before, after = (
        np.array(read_json(folder / f"{name}.json")["test"]) for name in ("before", "after")
    )
    confidence = line.artifact(round_number, PROMOTED).inputs["settings"]["confidence"]
    found = paired_bootstrap(before, after, seed=line.config.seed, confidence=confidence)
    return Change(*found, confidence, len(after))


def _lengths(line: Line, round_number: int) -> tuple[Lengths, Lengths] | None:
    facts = read_facts(line.artifact(round_number, "evaluation"))
    if not has_lengths(facts):
        return None
    before, after = (
        Lengths(facts[f"{when}_answer_tokens"], facts[f"{when}_truncated"]) for when in WHEN
    )
    return before, after


def _canaries(line: Line, round_number: int) -> Canaries | None:
    artifact = line.artifact(round_number, "evaluation")
    facts = read_facts(artifact)
    if "num_canaries" not in facts:
        return None
    changed = read_json(artifact.path / CANARIES_FILE)
    found = (ChangedAnswer(row["prompt"], row["before"], row["after"]) for row in changed)
    return Canaries(facts["num_canaries"], tuple(found))


def _funnel(line: Line, round_number: int) -> Funnel:
    pool = read_facts(line.artifact(round_number, "candidates"))
    subset = read_facts(line.artifact(round_number, "selected_subset"))
    decided = subset["num_selected"] + subset["num_rejected"]
    unread = pool.get("refused_rows", {})  # of files and of functions
    return Funnel(
        generated=pool["num_generated"] + sum(unread.values()),
        repeated=pool["num_generated"] - decided,
        rejected={**unread, **subset["rejected"]},
        selected=subset["num_selected"],
        short=subset["num_short"],
        scarce=not budget_filled(line, round_number).passed,
    )


def _target_shares(
    line: Line, picks: Sequence[Mapping[str, Any]], unreached: set[str]
) -> tuple[TargetShare, ...]:
    """Each target's chosen rows and what they carry of its mass, the worst served first."""
    targets = split_rows(line, "targets")
    weight_of = line.config.selection.subtask_weights
    due = target_weights([target.subtask for target in targets], weight_of)
    rows = Counter(pick["target_id"] for pick in picks)
    planned = all(pick["transport_mass"] is not None for pick in picks)
    mass: dict[str, float] = defaultdict(float)
    for pick in picks:
        mass[pick["target_id"]] += pick["transport_mass"] or 0.0
    shares = [
        TargetShare(
            sample_id=target.sample_id,
            prompt=target.prompt,
            num_rows=rows[target.sample_id],
            covered=mass[target.sample_id] / weight if planned else None,
            reached=rows[target.sample_id] > 0 and target.sample_id not in unreached,
        )
        for target, weight in zip(targets, due.tolist(), strict=True)
    ]
    return tuple(sorted(shares, key=lambda t: (t.covered or 0.0, t.num_rows, t.sample_id)))


def _evenly(picks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some picks, from the first to the last one."""
    places = np.linspace(0, len(picks) - 1, min(EXAMPLES, len(picks))).round().astype(int)
    return [picks[place] for place in places.tolist()]


def _spread_over_reasons(decisions: pl.DataFrame, most: int) -> list[dict[str, Any]]:
    """Rejected rows: the reasons take turns, the commonest first, rows in order of their ids."""
    import polars as pl

    rejected = decisions.filter(~pl.col("selected"))
    turn = pl.int_range(pl.len()).over("stage").alias("turn")
    chosen = (
        rejected.with_columns(turn, pl.len().over("stage").alias("size"))
        .sort("turn", "size", "stage", descending=[False, True, False])
        .head(most)
        .sort("size", "stage", "turn", descending=[True, False, False])
    )
    return chosen.select("sample_id", "stage", "reason").to_dicts()


def _examples(
    line: Line, decisions: Sequence[Mapping[str, Any]], verdict: str
) -> tuple[Example, ...]:
    samples = line.store.get_samples([decision["sample_id"] for decision in decisions])
    return tuple(
        Example(str(decision[verdict]), sample.sample_id, sample.prompt, sample.completion,
                decision["reason"])
        for decision, sample in zip(decisions, samples, strict=True)
    )  # fmt: skip


def _bill(line: Line, round_number: int) -> Bill | None:
    pool = line.artifact(round_number, "candidates")
    if not has_answers(pool):
        return None
    facts = read_facts(pool)
    return Bill(*(facts[field.name] for field in fields(Bill)))


def _training(line: Line, round_number: int) -> Training:
    artifact = line.artifact(round_number, "lora_checkpoint")
    facts, train = read_facts(artifact), artifact.inputs["settings"]["train"]
    return Training(
        num_rows=facts["num_rows"],
        num_steps=facts["num_steps"],
        rows_per_step=train["batch_size"] * train["accumulation"],
        num_tokens=facts["num_trained_tokens"],
        first_loss=facts["first_loss"],
        last_loss=facts["last_loss"],
    )

"""The figures of a page as bytes that are the same for the same data.

Charts are SVG, which stays sharp and small; the map of thousands of points is a PNG.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evoselect_pipeline.report.facts import (
    Cloud,
    Comparison,
    Funnel,
    Outcome,
    Promotion,
    Round,
    Spread,
    TargetShare,
)
from evoselect_pipeline.report.reasons import in_order, in_words
from evoselect_pipeline.report.text import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, FAINT, TARGET = "#333333", "#c2410c", "#9ca3af", "#1d4ed8"
WIDTH = 7.2  # inches
LINES_FROM = 80  # targets from which bars would be thinner than a line


def draw(told: Round) -> dict[str, bytes]:
    """All figures of a page by their file names."""
    figures = {
        "accuracy.svg": _figure(3.2, _accuracy, told.outcomes),
        "promotion.svg": _figure(1.7, _promotion, told.promotion),
        "funnel.svg": _figure(1.2 + 0.3 * (2 + len(_steps(told.funnel))), _funnel, told.funnel),
        "map.png": _figure(5.2, _map, told.cloud, format="png"),
        "targets.svg": _figure(3.0, _targets, told.targets),
    }
    if told.spread:
        figures["spread.svg"] = _figure(2.0, _spread, told.spread, panels=2)
    return figures


def _figure(height: float, plot: Any, facts: Any, *, format: str = "svg", panels: int = 1) -> bytes:
    """Draw into a figure of its own: no display, no state that others could have changed."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Ids in an SVG are hashes with a random salt, and dates are kept, unless told otherwise.
    fixed = {"svg.hashsalt": "evoselect", "svg.fonttype": "none", "font.size": 9}
    dates = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
    with matplotlib.style.context(fixed, after_reset=True):  # whatever a user's matplotlibrc says
        figure = Figure((WIDTH, height), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, panels, squeeze=False)[0]
        plot(axes if panels > 1 else axes[0], facts)
        for panel in axes:
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_axisbelow(True)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=format, metadata=dates)
    return _smaller(buffer.getvalue()) if format == "png" else buffer.getvalue()


def _smaller(png: bytes) -> bytes:
    """A PNG of a palette: a map has few colours, and Dagster keeps the page in its database."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
            buffer, "png", optimize=True
        )
    return buffer.getvalue()


def _percentages(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _accuracy(panel: Axes, outcomes: Sequence[Outcome]) -> None:
    """Test accuracy over the rounds, each trained adapter with its interval."""
    from matplotlib.ticker import MaxNLocator

    base = outcomes[-1].base
    panel.axhline(base, color=INK, linestyle="--", lw=1.2, label=f"base model, {percent(base)}")
    rounds = [outcome.number for outcome in outcomes]
    panel.plot(rounds, [o.before for o in outcomes], "_", color=FAINT, ms=16, mew=2.5,
               label="adapter that entered the round")  # fmt: skip
    for promoted, fill, label in (
        (True, ACCENT, "trained in the round, promoted"),
        (False, "white", "trained in the round, not promoted"),
    ):
        shown = [o for o in outcomes if o.promoted == promoted]
        if shown:
            after = np.array([o.after for o in shown])
            bounds = [after - [o.low for o in shown], [o.high for o in shown] - after]
            panel.errorbar(
                [o.number for o in shown], after, yerr=np.maximum(bounds, 0),
                fmt="o", color=ACCENT, mfc=fill, ms=7, capsize=3, lw=1.6, label=label,
            )  # fmt: skip
    for o in outcomes if len(outcomes) <= 12 else outcomes[-1:]:
        panel.annotate(percent(o.after), (o.number, o.after), xytext=(9, 0), va="center",
                       textcoords="offset points", fontsize=8, color=ACCENT)  # fmt: skip
    panel.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.7)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("round")
    panel.set_ylabel("test score")
    _percentages(panel.yaxis)
    panel.grid(axis="y", color="#eeeeee")
    panel.legend(
        frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2
    )


def _promotion(panel: Axes, promotion: Promotion) -> None:
    """The change on the validation rows, beside what is tolerated."""
    change, floor = promotion.change, -100 * promotion.tolerance
    mean, low, high = 100 * change.mean, 100 * change.low, 100 * change.high
    panel.errorbar(mean, 0, xerr=[[max(0, mean - low)], [max(0, high - mean)]], fmt="o",
                   color=ACCENT, ms=7, capsize=4, lw=1.8)  # fmt: skip
    panel.axvline(0, color=INK, lw=1.0)
    panel.axvline(floor, color=INK, linestyle=":", lw=1.4)
    left, right = min(low, floor, 0), max(high, 0)
    margin = 0.08 * (right - left) + 0.5
    panel.set_xlim(left - margin, right + margin)
    panel.axvspan(left - margin, floor, color="#fee2e2", lw=0)
    panel.set_ylim(-1, 1)
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.set_xlabel(
        "change of validation accuracy in points; in the red the interval may not reach"
    )


def _steps(funnel: Funnel) -> list[tuple[str, int]]:
    """What was left out, in the order in which a round asks."""
    steps = [(in_words("repeated"), funnel.repeated)] if funnel.repeated else []
    return steps + [
        (in_words(stage), funnel.rejected[stage]) for stage in in_order(funnel.rejected)
    ]


def _funnel(panel: Axes, funnel: Funnel) -> None:
    """From all generated rows to the chosen ones: each bar hangs where the one above ended."""
    steps, left = _steps(funnel), funnel.generated
    panel.barh(0, left, color=FAINT, height=0.7)
    _count(panel, 0, left, number(left), left)
    for place, (_, count) in enumerate(steps, start=1):
        panel.barh(place, count, left=left - count, color=INK, height=0.7)
        _count(panel, place, left, f"−{number(count)}", funnel.generated)
        left -= count
    last = len(steps) + 1
    panel.barh(last, funnel.selected, color=ACCENT, height=0.7)
    _count(panel, last, funnel.selected, number(funnel.selected), funnel.generated)
    panel.set_yticks(range(last + 1), ["generated", *(name for name, _ in steps), "chosen"])
    panel.tick_params(axis="y", length=0)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.12 * max(1, funnel.generated))
    panel.xaxis.set_major_formatter(lambda value, _: number(value))
    panel.set_xlabel("rows")


def _count(panel: Axes, place: int, end: float, text: str, scale: float) -> None:
    panel.text(end + 0.01 * scale, place, text, va="center", fontsize=8, color=INK)


def _map(panel: Axes, cloud: Cloud) -> None:
    """Candidates, chosen rows and targets on the plane that shows most of their differences."""
    panel.scatter(*cloud.candidates.T, s=7, color=FAINT, alpha=0.45, linewidths=0,
                  label=_shown("candidates", cloud.candidates, cloud.num_candidates))  # fmt: skip
    panel.scatter(*cloud.chosen.T, s=11, color=ACCENT, alpha=0.8, linewidths=0,
                  label=_shown("chosen rows", cloud.chosen, cloud.num_chosen))  # fmt: skip
    panel.scatter(*cloud.targets.T, s=42, marker="x", color=TARGET, linewidths=1.4,
                  label=_shown("target rows", cloud.targets, cloud.num_targets))  # fmt: skip
    panel.set_xlabel(f"first direction ({percent(cloud.explained[0])} of the variance)")
    panel.set_ylabel(f"second direction ({percent(cloud.explained[1])} of the variance)")
    panel.set(xticks=[], yticks=[])
    panel.set_aspect("equal", adjustable="datalim")
    panel.legend(
        frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3
    )


def _shown(what: str, drawn: np.ndarray, num_all: int) -> str:
    if len(drawn) == num_all:
        return f"{number(num_all)} {what}"
    return f"{number(len(drawn))} of {number(num_all)} {what}"


def _targets(panel: Axes, targets: Sequence[TargetShare]) -> None:
    """How well each target is served, the worst served first."""
    masses = all(target.covered is not None for target in targets)
    values = np.array([t.covered if masses else t.num_rows for t in targets], float)
    places = np.arange(1, len(targets) + 1)
    if len(targets) < LINES_FROM:
        panel.bar(places, values, color=ACCENT, width=0.8)
    else:
        panel.fill_between(places, values, step="mid", color=ACCENT, lw=0)
    unreached = places[[not target.reached for target in targets]]
    if len(unreached):
        panel.plot(unreached, np.zeros(len(unreached)), "x", color=INK, ms=7, mew=1.6,
                   clip_on=False, zorder=5, label=f"no chosen row: {len(unreached)}")  # fmt: skip
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    panel.set_xlim(0, len(targets) + 1)
    panel.set_ylim(0, 1.08 * max(values.max(initial=0), 1e-9))
    panel.set_xlabel("target rows, the worst served first")
    panel.grid(axis="y", color="#eeeeee")
    if masses:
        panel.set_ylabel("share of its transport mass\nthat chosen rows carry")
        _percentages(panel.yaxis)
    else:
        panel.set_ylabel("chosen rows")


def _spread(panels: Sequence[Axes], spread: Spread) -> None:
    """Chosen rows against random ones, in diversity and in distance to the targets."""
    _compare(panels[0], spread.vendi, "diversity: distinct rows in effect\n(Vendi score)")
    _compare(
        panels[1], spread.distance, "distance to the targets\n(transport cost; less is nearer)"
    )


def _compare(panel: Axes, values: Comparison, label: str) -> None:
    panel.plot(values.random, np.zeros(len(values.random)), "o", color=FAINT, ms=7, alpha=0.7)
    panel.plot(values.chosen, 1, "o", color=ACCENT, ms=9)
    panel.set_yticks([0, 1], ["random", "chosen"])
    panel.set_ylim(-0.6, 1.6)
    panel.set_xlim(0, 1.1 * max(values.chosen, *values.random))
    panel.set_xlabel(label)
    panel.grid(axis="x", color="#eeeeee")


def interval_svg(promotion: Promotion) -> str:
    """The promotion test in some hundred bytes, for places that show small pictures only."""
    change, floor = promotion.change, -promotion.tolerance
    left, right = min(change.low, floor, 0.0), max(change.high, 0.0)
    width = max(right - left, 1e-6)

    def x(value: float) -> str:
        return f"{10 + 300 * (value - left) / width:.1f}"

    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="320" height="52">'
        '<rect width="320" height="52" fill="#fff"/>'
        f'<path d="M{x(0)} 4V36" stroke="{INK}"/>'
        f'<path d="M{x(floor)} 4V36" stroke="{INK}" stroke-dasharray="3"/>'
        f'<path d="M{x(change.low)} 20H{x(change.high)}" stroke="{ACCENT}" stroke-width="3"/>'
        f'<circle cx="{x(change.mean)}" cy="20" r="5" fill="{ACCENT}"/>'
        f'<text x="{x(0)}" y="49" font-size="11" text-anchor="middle" fill="{INK}">0</text></svg>'
    )

"""One picture of a bench: accuracy with intervals, a panel for each world."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evoselect_pipeline.bench.adaptation import FILES_WORLD
from evoselect_pipeline.bench.summary import ALL_TASKS, BASE, ORACLE, REFERENCE
from evoselect_pipeline.stores.artifacts import write_bytes_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, FAINT = "#333333", "#c2410c", "#9ca3af"
LINES = {BASE: "--", ORACLE: ":"}
MARKERS = "^sDvPX"
PANEL_WIDTH, ROW_HEIGHT = 5.6, 0.34  # inches


def plot(results: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the final test accuracy of every method into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in results if row["mean"] is not None]
    worlds = list(dict.fromkeys(row["world"] for row in shown))
    tasks = [task for task in dict.fromkeys(row["task"] for row in shown) if task != ALL_TASKS]
    num_methods = len({row["method"] for row in shown} - LINES.keys())
    # A figure of its own, without pyplot's: no display, no state that others could have changed.
    figure = Figure((PANEL_WIDTH * len(worlds), 2.3 + ROW_HEIGHT * num_methods), dpi=150)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(worlds), squeeze=False, sharex=True)[0]
    for panel, world in zip(panels, worlds, strict=True):
        _draw(panel, world, [row for row in shown if row["world"] == world], tasks)
    figure.suptitle(title, fontsize=11, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes_atomic(path, buffer.getvalue())


def _draw(panel: Axes, world: str, rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> None:
    overall = {row["method"]: row for row in rows if row["task"] == ALL_TASKS}
    methods = [method for method in overall if method not in LINES][::-1]  # the best on top
    for name, style in LINES.items():
        if name in overall:
            mean = overall[name]["mean"]
            panel.axvline(mean, color=INK, linestyle=style, lw=1.2, label=f"{name}, mean")
    if methods and len(tasks) > 1:
        _draw_tasks(panel, rows, methods, tasks)
    for place, method in enumerate(methods):
        _draw_method(panel, place, overall[method])
    panel.set_yticks(range(len(methods)), methods)
    for label in panel.get_yticklabels():
        if label.get_text() == REFERENCE:
            label.set(color=ACCENT, fontweight="bold")
    panel.set_ylim(-0.6, len(methods) - 0.4)
    panel.set_xlabel("test score")
    panel.set_title("your files" if world == FILES_WORLD else f"{world} generator", fontsize=10)
    panel.grid(axis="y", color="#eeeeee")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_method(panel: Axes, place: int, row: Mapping[str, Any]) -> None:
    colour = ACCENT if row["method"] == REFERENCE else INK
    low, high = row["low"], row["high"]
    panel.errorbar(
        row["mean"],
        place,
        xerr=None if low is None else [[row["mean"] - low], [high - row["mean"]]],
        fmt="o",
        markersize=6,
        capsize=3,
        lw=1.8,
        color=colour,
        label=None if place else "mean, 95 % interval over seeds",  # once in the legend
    )
    panel.annotate(
        f"{row['mean']:.3f}",
        (row["mean"], place),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=7,
        color=colour,
    )


def _draw_tasks(
    panel: Axes, rows: Sequence[Mapping[str, Any]], methods: Sequence[str], tasks: Sequence[str]
) -> None:
    """Small markers: which tasks make up the mean."""
    for number, task in enumerate(tasks):
        points = [
            (row["mean"], methods.index(row["method"]))
            for row in rows
            if row["task"] == task and row["method"] in methods
        ]
        panel.plot(
            *zip(*points, strict=True),
            MARKERS[number % len(MARKERS)],
            color=FAINT,
            markersize=4,
            label=task,
        )

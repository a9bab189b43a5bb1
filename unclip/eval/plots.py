"""Plots of measured figures with their intervals. matplotlib is needed here alone, and only when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.files import atomic_path

WIDTH, HEIGHT, DPI = 4.6, 3.6, 110  # of a panel, in inches; dots per inch
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Point:
    """A place with the interval of y, and what stands beside it."""

    x: float
    y: float
    low: float
    high: float
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes: lines by name; or bars, where `bars` names the places 0, 1, 2, … of the only line."""

    title: str
    x: str
    y: str
    lines: dict[str, list[Point]]
    bars: tuple[str, ...] = ()


def require_matplotlib() -> Any:
    """matplotlib, which draws into files without a screen.

    Raises:
        UserError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "plots need matplotlib, which is not installed: pip install 'unclip[eval]', or pip install matplotlib"
        ) from error
    return matplotlib


def save_panels(panels: Sequence[Panel], path: Path) -> None:
    """Write a PNG of panels side by side."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * len(panels), HEIGHT), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _bars(axes, panel) if panel.bars else _lines(axes, panel)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.grid(axis="x" if panel.bars else "y", alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})  # the same figures, the same file


def _lines(axes: Any, panel: Panel) -> None:
    for number, (name, points) in enumerate(panel.lines.items()):
        axes.errorbar(
            [point.x for point in points],
            [point.y for point in points],
            yerr=_errors(points),
            marker=MARKERS[number % len(MARKERS)],
            capsize=2,
            linewidth=1.4,
            elinewidth=0.7,
            label=name,
        )
        for point in points:
            if point.label:
                axes.annotate(
                    point.label,
                    (point.x, point.y),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize="x-small",
                )
    if len(panel.lines) > 1:
        axes.legend(fontsize="small")


def _bars(axes: Any, panel: Panel) -> None:
    (points,) = panel.lines.values()
    axes.barh([point.x for point in points], [point.y for point in points], xerr=_errors(points), capsize=2)
    axes.set_yticks(range(len(panel.bars)), panel.bars, fontsize="small")
    axes.invert_yaxis()  # the first on top


def _errors(points: Sequence[Point]) -> list[list[float]]:
    return [[max(0.0, p.y - p.low) for p in points], [max(0.0, p.high - p.y) for p in points]]

"""The figures of a report: SVG whose colours are those of the page, so that they suit a light page, a dark one and paper.

matplotlib draws with stand-ins for colours, which become CSS variables. A unit of a figure is a pixel of the page, so that text is as
large as it says. Figures are drawn without pyplot, which keeps its state in globals.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH, HEIGHT = 352, 232  # pixels
_LEFT = 58  # of the axes, room for numbers of seven characters
_TEXT = 12
_POINTS = 300  # of a line, at most
PALETTE = ("blue", "orange", "green", "purple", "red", "teal", "brown", "pink")
# Stand-ins, none of which matplotlib uses by itself.
_INK = {name: f"#0101{i:02x}" for i, name in enumerate(("text", "muted", "rule", *PALETTE), 1)}
_RGB = {"blue": (64, 132, 214), "orange": (224, 112, 32)}  # in pictures, on light and dark alike
_STYLE = {
    "font.size": _TEXT,
    "font.family": "DejaVu Sans",
    "svg.fonttype": "none",
    "svg.hashsalt": "bt_jax",
    "text.color": _INK["text"],
    "axes.edgecolor": _INK["rule"],
    "axes.labelcolor": _INK["muted"],
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.labelsize": _TEXT,
    "xtick.color": _INK["rule"],
    "ytick.color": _INK["rule"],
    "xtick.labelcolor": _INK["muted"],
    "ytick.labelcolor": _INK["muted"],
    "xtick.labelsize": _TEXT,
    "ytick.labelsize": _TEXT,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": _TEXT,
    "legend.labelcolor": _INK["text"],
    "path.simplify": True,
    "text.parse_math": False,  # a class may have $ in its name
}


class Line(NamedTuple):
    """One line of a figure.

    Attributes:
      x, y: (n,) floats.
      label: in the legend; "" for none.
      colour: a name of `PALETTE`, "text" or "muted".
      style: "-", "--" or ":".
      marker: whether the points are marked.
    """

    x: Any
    y: Any
    label: str = ""
    colour: str = "blue"
    style: str = "-"
    marker: bool = False


def lines(
    series: Sequence[Line],
    *,
    levels: Sequence[tuple[float, str]] = (),
    marks: Sequence[float] = (),
    x_label: str = "epoch",
    log: bool = False,
    percent: bool = False,
    from_zero: bool = False,
) -> str:
    """Lines over epochs, or over anything else, as SVG.

    Args:
      levels: heights with dashed lines, and their names.
      marks: places on the x axis with dotted lines, such as restarts.
      percent: whether values are fractions that are shown as percentages.
    """

    def draw(axes):
        for line in series:
            x, y = _thinned(np.asarray(line.x, float), np.asarray(line.y, float))
            marker = {"marker": "o", "markersize": 4} if line.marker or len(x) == 1 else {}
            ink = _INK[line.colour]
            axes.plot(x, y, color=ink, linestyle=line.style, linewidth=1.6, label=line.label or None, **marker)
        for height, name in levels:
            axes.axhline(height, color=_INK["muted"], linestyle="--", linewidth=1, label=name)
        for place in marks:
            axes.axvline(place, color=_INK["muted"], linestyle=":", linewidth=1)
        axes.set_xlabel(x_label)
        axes.set_xlim(left=0)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            if from_zero:
                axes.set_ylim(bottom=0)
            _wide_enough(axes)
        _numbers(axes.yaxis, percent=percent)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _numbers(axes.xaxis)
        if any(line.label for line in series) or levels:
            _legend(axes)

    labels = sum(bool(line.label) for line in series) + len(levels)
    return _svg(draw, margins=(_LEFT, _above(labels), 10, 40))


def histogram(counts: Sequence[tuple[np.ndarray, str, str]], *, low: float, high: float, x_label: str) -> str:
    """Shares of equal parts of an interval, on a logarithmic scale, as SVG.

    Args:
      counts: (counts (n,), label, colour) for each.
    """

    def draw(axes):
        for found, label, colour in counts:
            edges = np.linspace(low, high, len(found) + 1)
            axes.stairs(found / max(1, found.sum()), edges, color=_INK[colour], linewidth=1.6, label=label)
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
        _numbers(axes.yaxis, percent=True)
        _numbers(axes.xaxis)
        axes.set_xlabel(x_label)
        _legend(axes)

    return _svg(draw, margins=(_LEFT, _above(len(counts)), 10, 40))


def correlations(matrix: np.ndarray) -> str:
    """A matrix of correlations as SVG: orange up to 1, blue down to -1, and nothing at 0."""

    def draw(axes):
        axes.imshow(_picture(matrix), interpolation="nearest", extent=(0, len(matrix), len(matrix), 0))
        _bare(axes)

    return _svg(draw, width=WIDTH, height=WIDTH, margins=(8, 8, 8, 8))


def confusion(counts: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix (K, K) as SVG, rows true and columns predicted, each row in shares; with names of up to 20 classes."""
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    named = len(names) <= 20
    left = 8 + (7.4 * min(14, max(map(len, names))) if named else 12)
    cell = max(14, (WIDTH - left - 8) / len(names)) if named else (WIDTH - left - 8) / len(names)
    side = cell * len(names)

    def draw(axes):
        axes.imshow(_picture(shares), interpolation="nearest", extent=(0, len(names), len(names), 0))
        _bare(axes)
        if named:
            axes.set_yticks(np.arange(len(names)) + 0.5, [_short(name) for name in names])
            axes.set_xticks(np.arange(len(names)) + 0.5, [_short(name) for name in names], rotation=90)
            axes.tick_params(length=0, pad=3)
            axes.xaxis.set_ticks_position("top")

    margins = (left, left if named else 8, 8, 8)
    return _svg(draw, width=left + side + 8, height=margins[1] + side + 8, margins=margins)


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def _picture(values: np.ndarray) -> np.ndarray:
    """(h, w, 4) uint8: the sign as colour, the root of the size as opacity, so that small values can be seen."""
    values = np.clip(np.asarray(values, np.float32), -1, 1)
    picture = np.where(values[..., None] > 0, (*_RGB["orange"], 0), (*_RGB["blue"], 0)).astype(np.uint8)
    picture[..., 3] = np.round(255 * np.sqrt(np.abs(values)))
    return picture


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring points, if there are too many."""
    if len(x) <= _POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def _numbers(axis: Any, *, percent: bool = False) -> None:
    def text(value: float, _: Any) -> str:
        if percent:
            return f"{100 * value:.3g}%"
        if 0 < abs(value) < 1e-3:
            digits, power = f"{value:.2e}".split("e")
            return f"{float(digits):g}e{int(power)}"
        return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.4g}"

    axis.set_major_formatter(FuncFormatter(text))


def _wide_enough(axes: Any) -> None:
    """Spans at least a fiftieth of the values: less is no movement worth a picture, and its numbers would be long."""
    low, high = axes.get_ylim()
    lacks = max(abs(low), abs(high)) / 50 - (high - low)
    if lacks > 0:
        axes.set_ylim(low - lacks / 2, high + lacks / 2)


def _above(labels: int) -> float:
    """Room above the axes for a legend, in pixels."""
    return 12 + 17 * -(-labels // 2)


def _legend(axes: Any) -> None:
    """Above the axes, so that it covers no line."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.16, 1.0), ncols=2, handlelength=1.4, columnspacing=1.0, borderaxespad=0.2,
        handletextpad=0.5, labelspacing=0.2,
    )  # fmt: skip


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


def _svg(
    draw: Callable[[Any], None],
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
    margins: tuple[float, float, float, float],
) -> str:
    """The SVG of a figure with one pair of axes.

    Args:
      margins: left, top, right, bottom, in pixels.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72))  # a point of the SVG counts as a pixel
        left, top, right, bottom = margins
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
        draw(figure.add_axes(box))
        file = io.StringIO()
        with warnings.catch_warnings():
            # The text stays text, which the browser draws in a font that has the glyph.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _for_a_page(file.getvalue(), width, height)


def _for_a_page(svg: str, width: float, height: float) -> str:
    """Only the element <svg>, with the page's colours and fonts, and without what a page does not need."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-hidden="true">', svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # which would be the whole page's
    svg = re.sub(r' id="[a-zA-Z.]+(\d*d)?_\d+"', "", svg)  # which would occur in every figure
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: [^;\"]*", f"font-size: {_TEXT}px", svg)
    for name, stand_in in _INK.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", svg).strip()

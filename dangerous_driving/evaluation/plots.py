"""The plots of a report, as PNG. matplotlib is used without its global state, so that runs may draw side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dangerous_driving.evaluation.comparison import Difference, Estimate
from dangerous_driving.evaluation.metrics import LEVELS, Bin, Floats

DPI = 110
#: Share of a row from which on its field is so dark that its words are white.
DARK = 0.55
BLUE, GREY, RED, GREEN = "#2563a8", "#8a94a0", "#b3261e", "#1d7a46"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def confusion_plot(matrix: Floats) -> bytes:
    """Which levels were answered for which true ones; darker is a larger share of the row."""
    figure, axes = _figure(5.6, 3.9)
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            count, share = int(matrix[row, column]), shares[row, column]
            words = f"{count}\n{share:.0%}" if count else "0"
            axes.text(
                column, row, words, ha="center", va="center", fontsize=9, color="white" if share > DARK else "#222222"
            )
    axes.set_xticks(range(matrix.shape[1]), [*(level.value for level in LEVELS), "no answer"])
    axes.set_yticks(range(matrix.shape[0]), [level.value for level in LEVELS])
    axes.set_xlabel("level that was answered")
    axes.set_ylabel("true level")
    axes.set_title("Answers by true level (share of the row)", fontsize=11)
    return _png(figure)


def reliability_plot(bins: Sequence[Bin]) -> bytes:
    """How often answers of a confidence are right; on the diagonal a model is as sure as it is right."""
    figure, axes = _figure(4.6, 3.9)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    total = max((item.answers for item in bins), default=1)
    axes.scatter(
        [item.confidence for item in bins],
        [item.right for item in bins],
        s=[30 + 220 * item.answers / total for item in bins],
        color=BLUE,
        alpha=0.85,
        label="answers (larger: more of them)",
    )
    axes.plot([item.confidence for item in bins], [item.right for item in bins], color=BLUE, linewidth=1)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("confidence that the model gave")
    axes.set_ylabel("share of answers that were right")
    axes.set_title("Reliability", fontsize=11)
    axes.legend(fontsize=8, frameon=False, loc="upper left", markerscale=0.4)
    return _png(figure)


def estimates_plot(rows: Sequence[tuple[str, Estimate]]) -> bytes:
    """Metrics with their 95 % intervals, by the words they are told with."""
    figure, axes = _figure(7.2, 0.42 * len(rows) + 1.1)
    for place, (_, item) in enumerate(rows):
        if item.value is None:
            axes.text(0.02, place, "cannot be measured", va="center", fontsize=8, color=GREY)
            continue
        if item.low is not None and item.high is not None:
            axes.plot([item.low, item.high], [place, place], color=BLUE, linewidth=2)
        axes.plot(item.value, place, "o", color=BLUE, markersize=6)
        axes.annotate(
            f"{item.value:.2f}", (item.value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    _named(axes, [words for words, _ in rows])
    # agreement beyond chance may be worse than chance
    least = min((side for _, item in rows for side in (item.value, item.low) if side is not None), default=0.0)
    axes.set_xlim(min(least - 0.04, -0.02), 1.02)
    axes.set_xlabel("0: never, 1: always (line: 95 % interval)")
    return _png(figure)


def differences_plot(
    words: Mapping[str, str], found: Mapping[str, Difference], significant: Mapping[str, bool]
) -> bytes:
    """Challenger less champion; what is right of zero is better."""
    figure, axes = _figure(7.2, 0.5 * len(found) + 1.2)
    axes.axvline(0, color=GREY, linewidth=1)
    for place, (name, item) in enumerate(found.items()):
        if item.difference is None:
            axes.text(0, place, " cannot be measured", va="center", fontsize=8, color=GREY)
            continue
        colour = GREY if not significant.get(name) else GREEN if item.difference > 0 else RED
        if item.low is not None and item.high is not None:
            axes.plot([item.low, item.high], [place, place], color=colour, linewidth=2.5)
        axes.plot(item.difference, place, "o", color=colour, markersize=7)
        axes.annotate(
            f"{item.difference:+.3f}",
            (item.difference, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    _named(axes, [words[name] for name in found])
    reach = max(
        (abs(side) for item in found.values() for side in (item.low, item.high) if side is not None), default=0.0
    )
    axes.set_xlim(-max(1.15 * reach, 0.05), max(1.15 * reach, 0.05))
    axes.set_xlabel("worse  <  challenger less champion, 95 % interval  >  better")
    return _png(figure)


def _named(axes: Axes, words: Sequence[str]) -> None:
    axes.set_yticks(range(len(words)), words, fontsize=9)
    axes.set_ylim(len(words) - 0.4, -0.7)
    axes.grid(axis="x", color="#e5e8eb", linewidth=0.8)
    axes.set_axisbelow(True)

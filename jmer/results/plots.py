"""The figures of a report: pure functions from data to a Matplotlib `Figure`.

Every figure is one panel, narrow enough to be read on a telephone; systems are told apart by colour *and* by
marker or line, in colours that colour-blind readers can tell apart (Okabe & Ito, 2008). Where a figure compares
systems, data are given by label, in an order that fixes each one's colour; None keeps the colour of a system that
has nothing to show. Metrics that are shares are drawn in percent.

Needs the extra `plots`; nothing here touches pyplot or any other state.
"""

import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jmer.results.table import Number, is_share, short, title

if TYPE_CHECKING:
    import matplotlib.figure

COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#555555')
MARKERS = 'osD^vPX'
LINES = ('-', '--', '-.', ':')
GREY = '#767676'
WIDTH = 4.6
"""Inches; a figure is shown at this width or narrower, so its 9 points stay legible."""

STYLE = {
    'font.family': 'DejaVu Sans', 'font.size': 9, 'axes.titlesize': 9, 'axes.labelsize': 9, 'legend.fontsize': 8.5,
    'xtick.labelsize': 8.5, 'ytick.labelsize': 8.5, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.edgecolor': GREY, 'xtick.color': GREY, 'ytick.color': GREY, 'xtick.labelcolor': '#333333',
    'ytick.labelcolor': '#333333', 'axes.labelcolor': '#222222', 'text.color': '#222222', 'axes.axisbelow': True,
    'grid.color': '#e6e6e6', 'grid.linewidth': 0.7, 'axes.linewidth': 0.7, 'lines.linewidth': 1.6,
    'lines.markersize': 4.5, 'legend.frameon': False, 'legend.handlelength': 2.2, 'figure.facecolor': 'white',
    'text.parse_math': False,   # names come from users' cards, and a $ in one is a $
}

Log = Sequence[Mapping[str, Any]]
"""The lines of a run's log, see `jmer.train.log`."""


class Band(NamedTuple):
    """A figure with the ends of its interval (NaN: none), as of `jmer.significance.Interval`."""

    value: float
    low: float
    high: float


def png(figure: 'matplotlib.figure.Figure') -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    file = io.BytesIO()
    with _matplotlib().rc_context(STYLE):
        figure.savefig(file, format='png', dpi=200, metadata={'Software': None})
    return file.getvalue()


def _matplotlib():
    try:
        import matplotlib
    except ImportError as fault:
        raise ValueError("figures need Matplotlib, which is not installed: pip install 'jmer[plots]'") from fault
    return matplotlib


def _styled(draw: Callable) -> Callable:
    """Draws in our style, and leaves the caller's settings as they were."""

    @functools.wraps(draw)
    def drawn(*arguments, **options):
        with _matplotlib().rc_context(STYLE):
            return draw(*arguments, **options)

    return drawn


@_styled
def learning_curves(
    logs: Mapping[str, Sequence[Log] | None], key: str, chosen: Mapping[str, Sequence[int]] | None = None
) -> 'matplotlib.figure.Figure':
    """A figure of the log, such as 'validation/uar', by epoch: mean, lowest and highest over each system's runs.

    chosen: the step of the weights that each run kept, drawn as a dot on its own curve.
    """
    figure, axes = _axes(2.9)
    for k, label, runs in _shown(logs):
        epochs, values = _by_epoch(runs, key)
        lowest, highest = _over_runs(np.nanmin, values), _over_runs(np.nanmax, values)
        axes.fill_between(epochs, lowest, highest, color=_colour(k), alpha=0.18, linewidth=0)
        axes.plot(epochs, _over_runs(np.nanmean, values), LINES[k % len(LINES)], color=_colour(k), label=_brief(label))
        size = 6.0 if len(runs) < 4 else 3.5
        for run, step in zip(runs, (chosen or {}).get(label, ()), strict=False):
            kept = [line for line in run if line['step'] == step and line.get(key) is not None]
            axes.plot([line['epoch'] for line in kept], [_scale(key) * line[key] for line in kept], MARKERS[k % 7],
                      color=_colour(k), markeredgecolor='white', markeredgewidth=0.4, markersize=size, alpha=0.8)
    axes.set_xlabel('epoch')
    axes.set_ylabel(_metric(key))
    axes.grid(axis='y')
    axes.margins(x=0.02)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _with_legend(figure, axes, logs)


@_styled
def confusion(counts: Int[np.ndarray, 'c c'], names: Sequence[str]) -> 'matplotlib.figure.Figure':
    """Truth by prediction: the share of the true class in percent, by colour too, with the count below it.

    Of more than 14 classes, only shares of 5 % and more are written out.
    """
    many = len(names) > 14
    side = min(max(2.4, 0.42 * len(names) + 1.25), 8.0)
    figure, axes = _axes(side, side)
    items = counts.sum(1, keepdims=True)
    share = np.divide(100 * counts, items, out=np.zeros(counts.shape), where=items > 0)
    axes.imshow(share, cmap='Blues', vmin=0, vmax=100)
    for row, column in np.argwhere(share >= 5 * many):
        written = {(0, 0): (f'{share[row, column]:.0f}', 6.5)} if many else {
            (0, 2): (f'{share[row, column]:.0f}', 9), (0, -8): (str(counts[row, column]), 5.5)}
        for place, (text, size) in written.items():
            axes.annotate(text, (column, row), place, textcoords='offset points', ha='center', va='center',
                          color='white' if share[row, column] > 55 else '#222222', fontsize=size)
    axes.set_xticks(range(len(names)), _all_brief(names), rotation=45, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(len(names)), _all_brief(names))
    axes.set_xlabel('predicted')
    axes.set_ylabel('true')
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@_styled
def agreement(
    truth: Float[np.ndarray, 'n'], predicted: Float[np.ndarray, 'n']
) -> 'matplotlib.figure.Figure':
    """Predicted against true values of a regression, with the line where both are the same."""
    figure, axes = _axes(3.6, 3.8)
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
    axes.plot(ends, ends, color='#bbbbbb', linewidth=1)
    axes.plot(truth, predicted, 'o', color=COLOURS[0], markeredgewidth=0, markersize=3.5,
              alpha=float(np.clip(60 / len(truth), 0.08, 0.6)))
    axes.set_xlabel('true')
    axes.set_ylabel('predicted')
    axes.set_aspect('equal')
    axes.grid()
    return figure


@_styled
def per_class(
    figures: Mapping[str, Sequence[Band] | None], names: Sequence[str], metric: str
) -> 'matplotlib.figure.Figure':
    """A metric of every class, label or dimension, with its interval."""
    systems = max(len(figures), 1)
    figure, axes = _axes(0.9 + len(names) * max(0.26, 0.15 * systems))
    for k, label, bands in _shown(figures):
        at = np.arange(len(names)) + (k - (systems - 1) / 2) * 0.7 / systems
        value, low, high = _scale(metric) * np.array(bands, float).T
        axes.hlines(at, low, high, color=_colour(k), linewidth=1.4, alpha=0.55)
        axes.plot(value, at, MARKERS[k % 7], color=_colour(k), label=_brief(label), markersize=5)
    axes.set_yticks(range(len(names)), _all_brief(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(_metric(metric))
    axes.grid(axis='x')
    axes.tick_params(axis='y', length=0)
    return _with_legend(figure, axes, figures)


@_styled
def levels(
    curves: Mapping[str, tuple[Sequence[Number], Sequence[Number | None]] | None],
    metric: str,
    disturbance: str,
    clean: Sequence[Number | None] = (),
    limits: tuple[Number, Number] | None = None,
) -> 'matplotlib.figure.Figure':
    """A metric by the level of a disturbance, weak to the left: (levels, values) of each system.

    clean: the figures without any disturbance, dotted. limits: the lowest and the highest value of several figures
    that are to share a scale.
    """
    figure, axes = _axes(2.6)
    for k, label, (x, y) in _shown(curves):
        values = _scale(metric) * np.array(y, float)
        axes.plot(x, values, f'{MARKERS[k % 7]}{LINES[k % len(LINES)]}', color=_colour(k), label=_brief(label))
        edge = 0.03 * (x[-1] - x[0])
        axes.set_xlim(x[0] - edge, x[-1] + edge)   # a level may count down, as dB do
    steps = sorted({level for _, _, (x, _) in _shown(curves) for level in x})
    if len(steps) <= 8:
        axes.set_xticks(steps, [f'{level:g}' for level in steps])
    for k, value in enumerate(clean):
        if value is not None:
            axes.axhline(_scale(metric) * value, color=_colour(k) if len(clean) > 1 else GREY, linestyle=':',
                         linewidth=1)
    if limits:
        low, high = (_scale(metric) * limit for limit in limits)
        edge = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - edge, high + edge)
    axes.set_xlabel(disturbance)
    axes.set_ylabel(_metric(metric))
    axes.grid(axis='y')
    return _with_legend(figure, axes, curves)


@_styled
def bars(
    values: Mapping[str, Mapping[str, Number] | None], xlabel: str, digits: int = 1
) -> 'matplotlib.figure.Figure':
    """Horizontal bars: for every name (a modality, a subset of them) one of each system, with its number."""
    systems = max(len(values), 1)
    names = list(dict.fromkeys(name for _, _, row in _shown(values) for name in row))
    figure, axes = _axes(0.8 + len(names) * max(0.3, 0.2 * systems))
    for k, label, row in _shown(values):
        at = [names.index(name) + (k - (systems - 1) / 2) * 0.78 / systems for name in row]
        drawn = axes.barh(at, list(row.values()), 0.72 / systems, color=_colour(k), label=_brief(label))
        axes.bar_label(drawn, fmt=f'%.{digits}f', padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), _all_brief(names, 36))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.margins(x=0.16)
    axes.tick_params(axis='y', length=0)
    axes.axvline(0, color=GREY, linewidth=0.7)
    return _with_legend(figure, axes, values)


@_styled
def reliability(
    before: tuple[np.ndarray, np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
) -> 'matplotlib.figure.Figure':
    """Hits by confidence, and how the items spread: (confidence, accuracy, count) of each bin.

    after: the same with the temperature that was fitted on the validation side.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(WIDTH, 4.6), layout='constrained')
    axes, spread = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    both = [('as trained', before, GREY, 's--')] + ([('with temperature', after, COLOURS[0], 'o-')] if after else [])
    edges = np.linspace(0, 100, len(before[2]) + 1)
    axes.plot([0, 100], [0, 100], color='#bbbbbb', linewidth=1)
    for label, (confidence, accuracy, count), colour, line in both:
        some = count > 0
        axes.plot(100 * confidence[some], 100 * accuracy[some], line, color=colour, label=_brief(label))
        spread.stairs(100 * count / count.sum(), edges, color=colour, linestyle=line[1:], linewidth=1.3)
    axes.set_ylabel('share of hits, %')
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.grid()
    spread.set_xlabel('probability of the predicted class, %')
    spread.set_ylabel('items, %')
    spread.set_ylim(0)
    return _with_legend(figure, axes, dict.fromkeys(label for label, *_ in both))


@_styled
def abstention(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray] | None]
) -> 'matplotlib.figure.Figure':
    """Errors among the items that are answered, by the share that is: (coverage [n], risk [n]) of each system."""
    figure, axes = _axes(2.9)
    for k, label, (coverage, risk) in _shown(curves):
        kept = coverage >= 0.05   # the risk of the few surest items is one hit or miss, which would hide the rest
        axes.plot(100 * coverage[kept], 100 * risk[kept], LINES[k % len(LINES)], color=_colour(k), label=_brief(label))
    axes.set_xlabel('items answered, the surest first, %')
    axes.set_ylabel('errors among them, %')
    axes.set_xlim(0, 100)
    axes.set_ylim(0)
    axes.grid(axis='y')
    return _with_legend(figure, axes, curves)


@_styled
def selection_gap(
    pairs: Mapping[str, tuple[Sequence[Number], Sequence[Number]] | None], metric: str
) -> 'matplotlib.figure.Figure':
    """Honest (filled) and test-selected (open) figure of every run, joined; (honest [n], selected [n])."""
    rows = [(k, label, pair) for k, label, pair in _shown(pairs)]
    figure, axes = _axes(1.0 + sum(0.22 + min(0.1 * len(pair[0]), 4.0) for _, _, pair in rows))
    top, ticks = 0.0, []
    for k, _, (honest, selected) in rows:
        at = top + np.arange(len(honest))
        a, b = _scale(metric) * np.array(sorted(zip(honest, selected, strict=True)), float).T
        axes.hlines(at, a, b, color=_colour(k), linewidth=1.2, alpha=0.6)
        axes.plot(a, at, 'o', color=_colour(k), markersize=4.5)
        axes.plot(b, at, 'o', color=_colour(k), markerfacecolor='white', markersize=4.5)
        ticks.append(top + (len(honest) - 1) / 2)
        top += len(honest) + 2
    axes.set_yticks(ticks, _all_brief(label for _, label, _ in rows))
    axes.set_ylim(top - 1.5, -1)
    axes.set_xlabel(_metric(metric))
    axes.grid(axis='x')
    axes.tick_params(axis='y', length=0)
    for face, label in ((GREY, 'chosen without the test side'), ('white', 'chosen on it')):
        axes.plot([], [], 'o', color=GREY, markerfacecolor=face, label=label)
    figure.legend(loc='outside upper left', ncols=2)
    return figure


@_styled
def cost(values: Mapping[str, Mapping[str, Number | None]]) -> 'matplotlib.figure.Figure':
    """One row of bars for every quantity (name with unit -> number), with the numbers; each has its own scale."""
    names = [name for name in dict.fromkeys(name for row in values.values() for name in row)
             if any(row.get(name) is not None for row in values.values())]
    import matplotlib.figure

    height = 0.3 + len(names) * (0.42 + 0.22 * len(values))
    figure = matplotlib.figure.Figure(figsize=(WIDTH, height), layout='constrained')
    for axes, name in zip(np.ravel(figure.subplots(len(names), squeeze=False)), names, strict=True):
        numbers = [row.get(name) for row in values.values()]
        drawn = axes.barh(range(len(numbers)), [x or 0 for x in numbers], 0.7,
                          color=[_colour(k) for k in range(len(numbers))])
        axes.bar_label(drawn, [short(x) or 'not measured' for x in numbers], padding=3, fontsize=8)
        axes.set_title(name, loc='left')
        axes.set_yticks(range(len(values)), _all_brief(values))
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xticks([])
        axes.margins(x=0.15)
        axes.spines['bottom'].set_visible(False)
        axes.tick_params(axis='y', length=0)
    return figure


def _axes(height: float, width: float = WIDTH):
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots()


def _with_legend(figure, axes, systems):
    """Adds a legend above where there are several systems to tell apart."""
    shown = len(axes.get_legend_handles_labels()[1])
    if len(systems) > 1 and shown:
        letters = [len(label) + 7 for label in _all_brief(systems)]   # with the sample of the line
        columns = shown if sum(letters) <= 60 else max(1, 60 // max(letters))
        figure.legend(loc='outside upper left', ncols=columns)
    return figure


def _all_brief(names: Iterable[str], most: int = 24) -> list[str]:
    return [_brief(name, most) for name in names]


def _brief(name: str, most: int = 24) -> str:
    """A name short enough to leave room for the figure."""
    return name if len(name) <= most else f'{name[:most - 10]}...{name[-7:]}'


def _shown(systems: Mapping[str, Any]):
    """(place, label, data) of the systems that have data."""
    return [(k, label, data) for k, (label, data) in enumerate(systems.items()) if data]


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def _metric(key: str) -> str:
    """'validation/uar' -> 'validation UAR, %'."""
    *side, name = key.split('/')
    return ' '.join([*side, title(name)])


def _scale(key: str) -> float:
    return 100.0 if is_share(key.split('/')[-1]) else 1.0


def _by_epoch(runs: Sequence[Log], key: str) -> tuple[np.ndarray, Float[np.ndarray, 'runs epochs']]:
    """All epochs in which a run has the figure, and the runs' values; NaN where one has none."""
    found = [{line['epoch']: line[key] for line in run if line.get(key) is not None} for run in runs]
    epochs = np.array(sorted({epoch for run in found for epoch in run}))
    values = [[run.get(epoch, math.nan) for epoch in epochs] for run in found]
    return epochs, _scale(key) * np.array(values, float).reshape(len(runs), len(epochs))


def _over_runs(figure: Callable, values: np.ndarray) -> np.ndarray:
    """By epoch, over the runs that got so far; every epoch has one."""
    return figure(values, axis=0) if values.size else np.zeros(values.shape[1])

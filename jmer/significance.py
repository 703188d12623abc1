"""How far a figure may be trusted, and whether two systems differ: intervals and paired tests.

Utterances of one speaker, video or dialogue resemble each other, so what is drawn anew is always whole
groups (clusters), never single items. Because the metrics rest on sums that add up (`jmer.metrics`), a
resample is a weighted sum of the sums of the groups: all of them together are one matrix product, for every
metric of a target at once.

A *system* stands here as the sums of its groups: a named tuple of `jmer.metrics` whose leaves are [s g ...],
s seeds by g groups, made by `item_sums` and `add_by`. Every figure is computed seed by seed and averaged over
the seeds, inside each resample too. Items are drawn and seeds are not: an interval says what another set of
speakers would change, `summary` over seeds what another start of the training would change.

    question                                      answer
    how much does the seed move a figure?         summary
    how much do the speakers move it?             bootstrap of one system
    how large is the difference of two systems?   bootstrap of both, drawn together
    could it be chance, for any metric?           paired_permutation, over groups
    could it be chance, for hits and misses?      mcnemar, over items
    does it hold from run to run?                 wilcoxon, over seeds and folds

Testing many metrics finds a small p sooner or later: name the metric that decides beforehand.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float, Int, Shaped

from jmer.metrics import Metric
from jmer.types import Label

Figures = Callable[[Any], dict[str, float]]
"""The sums of a set of items -> its figures by name, such as `Metric.compute`."""


class Summary(NamedTuple):
    """mean and sample standard deviation (n - 1; NaN for a single value) of `items` values."""

    mean: float
    sd: float
    items: int


class Interval(NamedTuple):
    """value: on the items as they are. low, high: the ends of the interval."""

    value: float
    low: float
    high: float


class McNemar(NamedTuple):
    """The 2 x 2 counts of items that both systems, one, or neither got right; p, two-sided."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float


class Wilcoxon(NamedTuple):
    """pairs: those that differ. p: two-sided. least_p: what so many pairs can give at best, 2 / 2^pairs.

    Fewer than 6 pairs cannot reach 0.05, whatever the systems are: `enough` is False then.
    """

    pairs: int
    p: float
    least_p: float
    enough: bool


def summary(values: Float[np.ndarray, 'n']) -> Summary:
    """Mean and sample standard deviation of at least one value."""
    _refuse_empty('values', values)
    sd = values.std(ddof=1) if len(values) > 1 else np.nan
    return Summary(float(values.mean()), float(sd), len(values))


def item_sums(
    metric: Metric,
    kind: str,
    scores: Float[np.ndarray, 's n c'],
    truth: Int[np.ndarray, 'n'] | Float[np.ndarray, 'n c'],
) -> Any:
    """The sums of every single item, leaves [s n ...] in float64, of s seeds that saw the same items.

    metric: `metrics.for_target` of the kind. scores: probabilities, or values of a regression. A probability
    of 0 (in several labels, 1 too) counts as the nearest that float32 can tell from it, so that no loss is infinite.
    Raises ValueError where there are no items, or where scores or truth are not finite.
    """
    for name, array in (('truth', truth), ('scores', scores)):
        _refuse_empty(name, array)
        if not np.isfinite(array).all():
            raise ValueError(f'{name}: found {np.count_nonzero(~np.isfinite(array))} values that are NaN or '
                             'infinite, expected finite numbers')
    if scores.shape[1] != len(truth):
        raise ValueError(f'truth: found {len(truth)} items, expected {scores.shape[1]}, as many as scores')
    label = Label(truth[:, None], np.ones((len(truth), 1), bool))
    found = _each(metric.sums, _logits(scores, kind)[:, :, None], label)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


@functools.partial(jax.jit, static_argnames='sums')
def _each(sums, logits, label):
    """The sums of batches of one item, over seeds and items."""
    return jax.vmap(jax.vmap(sums), in_axes=(0, None))(logits, label)


def _logits(scores, kind):
    """What the metrics take: logits, of which probabilities are softmax or sigmoid."""
    if kind == 'regression':
        return scores
    tiny, step = np.finfo(np.float32).tiny, np.finfo(np.float32).epsneg
    if kind == 'multilabel':
        return scipy.special.logit(np.clip(scores, tiny, 1 - step))
    return np.log(np.maximum(scores, tiny))


def add_by(sums: Any, groups: Shaped[np.ndarray, 'n']) -> Any:
    """Adds the sums of items, leaves [s n ...], by group: leaves [s g ...], groups in sorted order."""
    order = np.argsort(groups, kind='stable')
    starts = np.unique(groups[order], return_index=True)[1]
    return jax.tree.map(lambda x: np.add.reduceat(x[:, order], starts, axis=1), sums)


def by_seed(figures: Figures, system: Any) -> dict[str, Float[np.ndarray, 's']]:
    """The figures of all groups together, seed by seed."""
    return _columns([figures(one) for one in _rows(_total(system))])


def bootstrap(
    figures: Figures,
    system: Any,
    other: Any = None,
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals of all figures, from drawing whole groups with replacement (Efron, 1979).

    system: leaves [s g ...]. other: a second system on the same groups; the figures are then the differences
    system - other, both drawn together, and the interval is that of a paired comparison.
    With fewer than some 20 groups such intervals are too narrow; the number of groups belongs beside them.
    The weights of the groups are multinomial counts [samples g] of `np.random.default_rng(seed)`. Resamples
    on which a figure is undefined (NaN) are left out of its interval.
    """
    _check_draws(samples, level)
    count = _groups(system, other)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), samples)
    weights = np.concatenate([np.ones((1, count)), weights])   # the first row: the items as they are
    values = _resampled(figures, system, weights)
    if other is not None:
        minus = _resampled(figures, other, weights)
        values = {name: values[name] - minus[name] for name in values}
    return {name: _percentiles(column, level) for name, column in values.items()}


def paired_permutation(
    figures: Figures, a: Any, b: Any, *, samples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Two-sided p of every figure's difference, when the systems are exchanged on whole groups at random.

    Under the hypothesis that it does not matter which system judged a group, each exchange is as likely as
    what was seen. p = (1 + exchanges at least as far apart) / (1 + samples), never 0 (Phipson & Smyth,
    2010). g groups have 2^g exchanges, so p cannot be expected below 2 / 2^g. Seed k of `a` is exchanged
    with seed k of `b`: both need equally many.
    """
    _check_draws(samples)
    count = _groups(a, b)
    seeds = [len(jax.tree.leaves(system)[0]) for system in (a, b)]
    if seeds[0] != seeds[1]:
        raise ValueError(f'seeds: found {seeds[0]} and {seeds[1]}, expected equally many')
    exchanged = np.random.default_rng(seed).random((samples, count)) < 0.5
    exchanged = np.concatenate([np.zeros((1, count), bool), exchanged]).astype(np.float64)
    both = jax.tree.map(lambda x, y: np.concatenate([x, y], 1), a, b)   # [s 2g ...]
    ones = _resampled(figures, both, np.concatenate([1 - exchanged, exchanged], 1))
    others = _resampled(figures, both, np.concatenate([exchanged, 1 - exchanged], 1))
    return {name: _two_sided(ones[name] - others[name]) for name in ones}


def mcnemar(correct_a: Bool[np.ndarray, 'n'], correct_b: Bool[np.ndarray, 'n']) -> McNemar:
    """McNemar's test of two systems on the same items, exact: the discordant items as tosses of a fair coin.

    It takes items for independent, which those of one speaker are not: where groups are few and alike,
    believe `paired_permutation`.
    """
    _refuse_empty('correct_a', correct_a)
    if len(correct_a) != len(correct_b):
        raise ValueError(f'correct_b: found {len(correct_b)} items, expected {len(correct_a)}, as in correct_a')
    table = [int((one & other).sum()) for one in (correct_a, ~correct_a) for other in (correct_b, ~correct_b)]
    both, only_a, only_b, neither = table
    tosses = only_a + only_b
    p = scipy.stats.binomtest(only_a, tosses, 0.5).pvalue if tosses else 1.0
    return McNemar(both, only_a, only_b, neither, float(p))


def wilcoxon(a: Float[np.ndarray, 'n'], b: Float[np.ndarray, 'n']) -> Wilcoxon:
    """Wilcoxon's signed-rank test over paired runs: a figure of two systems by seed, fold, or both.

    Pairs without a difference are dropped. p is 1 where none is left, NaN where a figure is. Folds share
    training items, which makes p somewhat too small (Dietterich, 1998).
    """
    if a.shape != b.shape:
        raise ValueError(f'b: found {len(b)} values, expected {len(a)}, one for each of a')
    gap = np.round(a - b, 12)   # equal gaps of unequal figures differ by rounding
    pairs = int(np.count_nonzero(gap))
    p = np.nan if np.isnan(gap).any() else scipy.stats.wilcoxon(gap[gap != 0]).pvalue if pairs else 1.0
    return Wilcoxon(pairs, float(p), min(1.0, 2.0 ** (1 - pairs)), pairs >= 6)


def _groups(system, other) -> int:
    """The number of groups, which two systems must share."""
    counts = [jax.tree.leaves(one)[0].shape[1] for one in (system, other) if one is not None]
    if len(set(counts)) > 1:
        raise ValueError(f'groups: found {counts[0]} and {counts[1]}, expected the same groups in both systems')
    return counts[0]


def _resampled(figures: Figures, system, weights) -> dict[str, np.ndarray]:
    """Figures of weighted groups, averaged over the seeds: weights [r g] -> [r] by name."""
    drawn = jax.tree.map(lambda x: np.tensordot(weights, x, (1, 1)), system)   # [r s ...]
    by_row = [_columns([figures(one) for one in _rows(row)]) for row in _rows(drawn)]
    return _columns([{name: values.mean() for name, values in row.items()} for row in by_row])


def _total(system):
    return jax.tree.map(lambda x: x.sum(1), system)


def _rows(state) -> list:
    """Leaves [r ...] as r states of leaves [...]."""
    leaves, form = jax.tree.flatten(state)
    return [jax.tree.unflatten(form, row) for row in zip(*leaves, strict=True)]


def _columns(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _percentiles(column, level) -> Interval:
    """Of a column whose first value is the figure itself."""
    value, drawn = column[0], column[1:]
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(drawn):
        return Interval(float(value), np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def _two_sided(column) -> float:
    """p of differences of which the first is the one seen; an undefined one speaks against it."""
    seen, drawn = abs(column[0]), np.abs(column[1:])
    if np.isnan(seen):
        return float('nan')
    nearer = drawn < seen - 1e-9   # exchanges that change nothing differ by rounding
    return float((1 + np.count_nonzero(~nearer)) / (1 + len(drawn)))


def _refuse_empty(name, array) -> None:
    if not len(array):
        raise ValueError(f'{name}: found nothing, expected at least one')


def _check_draws(samples, level=0.95) -> None:
    if samples < 1:
        raise ValueError(f'samples: found {samples}, expected 1 or more')
    if not 0 < level < 1:
        raise ValueError(f'level: found {level}, expected a share between 0 and 1')

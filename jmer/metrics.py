"""Metrics of the whole field as sums, which add up over batches, devices and processes.

For each label kind there is a pure function (scores [*b c], Label) -> sums, a named tuple, for use
inside a compiled step, and a NumPy function sums -> {name: number}. `for_target` picks the pair.
Sums of parts added leaf by leaf (`merge`, `psum`) are the sums of the whole. They are int32 counts
and float32 sums; add those of many steps on the host in float64 (`total`): the error of a variance
stays below 1e-6 of the mean square then, which serves every rating scale in use.

What stands under a False mask cannot matter, be it NaN. A figure with nothing to stand on is NaN.
Where conventions differ, the convention is part of the name:

    class         accuracy            share of hits; weighted accuracy (WA) in the speech literature
                  uar                 mean recall of the classes that occur; balanced accuracy
                  weighted_f1         mean F1, weighted by how often the class occurs
                  macro_f1            mean F1 of the classes that occur or are predicted
                  micro_f1_without_K  F1 of the pooled counts of all classes but K (DailyDialog)
                  nll                 mean -log p of the true class
                  brier_multiclass    squared distance of p from the one-hot truth, 0 to 2
                  ece15               calibration error of the top class, 15 bins of equal width
    multilabel    subset_accuracy     share of items with all labels right
                  hamming_loss        share of wrong labels
                  micro_f1, macro_f1  of the pooled counts; mean over all labels
                  mosei_weighted_accuracy  mean over labels of (tp n / p + tn) / 2n with p positives
                                      and n negatives; labels that have none of either left out
                  mosei_weighted_f1   mean over labels of weighted F1, present against absent
                  bce                 binary cross entropy in nats, mean over labels
    regression    mae, rmse, pearson, ccc  mean over dimensions; CCC with moments divided by n
    sentiment     those, and
                  acc2_has0, weighted_f1_has0   >= 0 against < 0 (papers before 2019)
                  acc2_non0, weighted_f1_non0   > 0 against <= 0 where the truth is not 0 (since)
                  acc3_, acc5_, acc7_round      clipped to 1, 2, 3, then rounded half to even (MMSA)
                  acc3_, acc5_, acc7_outward    rounded away from 0, then clipped (CMU SDK's bins)
    distribution  kl, js              KL(truth || prediction); Jensen-Shannon divergence; in nats
                  chebyshev, clark, canberra (distances), cosine (similarity)

An F1, precision or recall of 0 / 0 counts as 0, as with zero_division=0 in scikit-learn.
Multi-label predictions are positive where p > 0.5.
"""

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jmer.types import Label

Scores = Float[Array | np.ndarray, '*b c']
State = TypeVar('State')
ECE_BINS = 15


class ClassSums(NamedTuple):
    """confusion: counts, truth by prediction, [c c]. nll, brier: sums over items, [].

    bin_items, bin_hits, bin_confidence: items, hits and the sum of the top class's probability, in
    each of 15 bins of that probability: (0, 1/15], ..., (14/15, 1].
    """

    confusion: Int[Array, 'c c']
    nll: Float[Array, '']
    brier: Float[Array, '']
    bin_items: Int[Array, 'bins']
    bin_hits: Int[Array, 'bins']
    bin_confidence: Float[Array, 'bins']


class MultilabelSums(NamedTuple):
    """items: their number, []. exact: those with all labels right, []. bce: sum over items, [].

    confusion: counts for each label, truth (absent, present) by prediction, [c 2 2].
    """

    items: Int[Array, '']
    exact: Int[Array, '']
    bce: Float[Array, '']
    confusion: Int[Array, 'c 2 2']


class RegressionSums(NamedTuple):
    """items: their number, []. absolute, squared: errors, [c].

    x, y, xx, yy, xy: raw moments of the prediction x and the truth y, [c].
    """

    items: Int[Array, '']
    absolute: Float[Array, 'c']
    squared: Float[Array, 'c']
    x: Float[Array, 'c']
    y: Float[Array, 'c']
    xx: Float[Array, 'c']
    yy: Float[Array, 'c']
    xy: Float[Array, 'c']


class SentimentSums(NamedTuple):
    """values: as of any regression. has0, non0: truth (negative, positive) by prediction, [2 2].

    nearest, outward: hits of acc3, acc5 and acc7 by either rule of rounding, [3].
    """

    values: RegressionSums
    has0: Int[Array, '2 2']
    non0: Int[Array, '2 2']
    nearest: Int[Array, '3']
    outward: Int[Array, '3']


class DistributionSums(NamedTuple):
    """items: their number. All others: sums of the distance (cosine: similarity) over items, []."""

    items: Int[Array, '']
    kl: Float[Array, '']
    js: Float[Array, '']
    chebyshev: Float[Array, '']
    clark: Float[Array, '']
    canberra: Float[Array, '']
    cosine: Float[Array, '']


class Metric(NamedTuple):
    """sums: (scores [*b c], Label) -> state, inside a step. compute: state -> {name: number}."""

    sums: Callable[[Any, Label], Any]
    compute: Callable[[Any], dict[str, float]]


def for_target(
    kind: str, classes: int, *, without: int | None = None, sentiment: bool = False
) -> Metric:
    """The metrics of a target (`data.corpus.Target`), given its kind and its number of names.

    without: adds the micro-F1 without this class. sentiment: adds the MOSI suite, to one regression
    target on the scale -3 to 3. ValueError where these do not go together, and from `sums` where
    the scores are not `classes` wide.
    """
    if kind not in _PAIRS:
        raise ValueError(f'label kind: found {kind!r}, expected one of {", ".join(_PAIRS)}')
    if without is not None and (kind != 'class' or not 0 <= without < classes):
        raise ValueError(f'without: found {without}, expected a class (kind {kind!r}, {classes})')
    if sentiment and (kind, classes) != ('regression', 1):
        raise ValueError(f'sentiment: found {classes} x {kind!r}, expected 1 x \'regression\'')
    sums, compute = (sentiment_sums, sentiment_metrics) if sentiment else _PAIRS[kind]
    if without is not None:
        compute = functools.partial(class_metrics, without=without)

    def checked(scores: Scores, label: Label):
        if scores.shape[-1] != classes:
            raise ValueError(f'scores: found shape {scores.shape}, expected {classes} at the end')
        return sums(scores, label)

    return Metric(checked, compute)


def merge(a: State, b: State) -> State:
    """The sums over both."""
    return jax.tree.map(operator.add, a, b)


def total(states: Iterable[State]) -> State:
    """The sums over all of at least one, fetched to the host and added in float64."""
    on_host = (jax.tree.map(lambda x: np.asarray(x, np.float64), state) for state in states)
    return functools.reduce(merge, on_host)


def class_sums(logits: Scores, label: Label) -> ClassSums:
    """Sums of integer labels against logits (log-probabilities serve too)."""
    logits, y, mask = _rows(logits, label)
    classes = logits.shape[-1]
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    truth = jax.nn.one_hot(y, classes, dtype=bool) & mask[:, None]
    top, confidence = logits.argmax(-1), p.max(-1)
    place = jnp.clip(jnp.ceil(confidence * ECE_BINS).astype(jnp.int32) - 1, 0, ECE_BINS - 1)
    bins = jax.nn.one_hot(place, ECE_BINS, dtype=bool) & mask[:, None]
    return ClassSums(
        confusion=_crossed(truth, jax.nn.one_hot(top, classes, dtype=bool)),
        nll=-jnp.where(truth, log_p, 0).sum(),
        brier=jnp.where(mask[:, None], jnp.square(p - truth), 0).sum(),
        bin_items=_count(bins),
        bin_hits=_count(bins & (top == y)[:, None]),
        bin_confidence=jnp.where(bins, confidence[:, None], 0).sum(0),
    )


def class_metrics(state: ClassSums, without: int | None = None) -> dict[str, float]:
    """The figures named above; `without` adds micro_f1_without_<class>."""
    state = _float64(state)
    confusion = state.confusion
    items = confusion.sum()
    each = _of_classes(confusion)
    occurs, named = confusion.sum(1) > 0, confusion.sum(0) > 0
    figures = {
        'accuracy': _ratio(np.trace(confusion), items),
        'uar': _mean(each['recall'][occurs]),
        'weighted_f1': _weighted_f1(confusion),
        'macro_f1': _mean(each['f1'][occurs | named]),
        'nll': _ratio(state.nll, items),
        'brier_multiclass': _ratio(state.brier, items),
        'ece15': _ratio(np.abs(state.bin_hits - state.bin_confidence).sum(), items),
    }
    if without is not None:
        mentions = np.delete(confusion.sum(0) + confusion.sum(1), without).sum()
        hits = np.delete(confusion.diagonal(), without).sum()
        figures[f'micro_f1_without_{without}'] = _f1(hits, mentions) if items else np.nan
    return _plain(figures)


def multilabel_sums(logits: Scores, label: Label) -> MultilabelSums:
    """Sums of 0/1 labels against logits; a logit above 0 says present."""
    logits, y, mask = _rows(logits, label)
    truth, said = y > 0.5, logits > 0
    present = jnp.stack([~truth, truth], -1) & mask[:, None, None]
    return MultilabelSums(
        items=_count(mask),
        exact=_count((truth == said).all(-1) & mask),
        bce=jnp.where(mask, (jax.nn.softplus(logits) - y * logits).mean(-1), 0).sum(),
        confusion=_crossed(present, jnp.stack([~said, said], -1)),
    )


def multilabel_metrics(state: MultilabelSums) -> dict[str, float]:
    """The figures named above. Average precision needs all scores: `mean_average_precision`."""
    state = _float64(state)
    hits, wrong = state.confusion[:, 1, 1], state.confusion[:, 0, 1] + state.confusion[:, 1, 0]
    each = _of_labels(state.confusion)
    both = ~np.isnan(each['weighted_accuracy'])
    return _plain(
        {
            'subset_accuracy': _ratio(state.exact, state.items),
            'hamming_loss': _ratio(wrong.mean(), state.items),
            'micro_f1': _f1(hits.sum(), (2 * hits + wrong).sum()) if state.items else np.nan,
            'macro_f1': each['f1'].mean() if state.items else np.nan,
            'mosei_weighted_accuracy': _mean(each['weighted_accuracy'][both]),
            'mosei_weighted_f1': each['weighted_f1'].mean(),
            'bce': _ratio(state.bce, state.items),
        }
    )


def regression_sums(values: Scores, label: Label) -> RegressionSums:
    """Sums of errors and moments, each dimension by itself."""
    x, y, mask = _rows(values, label)
    error = x - y  # 0 under the mask, as both are
    parts = (jnp.abs(error), error * error, x, y, x * x, y * y, x * y)
    return RegressionSums(_count(mask), *(part.sum(0) for part in parts))


def regression_metrics(state: RegressionSums) -> dict[str, float]:
    """The figures named above, averaged over the dimensions; `per_class` has each one's."""
    return _plain({name: values.mean() for name, values in _of_dimensions(state).items()})


def sentiment_sums(values: Scores, label: Label) -> SentimentSums:
    """Sums of a sentiment score of -3 to 3, [*b 1]."""
    x, y, mask = (a.reshape(-1) for a in _rows(values, label))

    def signs(truth, said, counted):
        sides = jnp.stack([~truth, truth], -1) & counted[:, None]
        return _crossed(sides, jnp.stack([~said, said], -1))

    def hits(rounded):
        return jnp.stack([_count((rounded(x, n) == rounded(y, n)) & mask) for n in (1, 2, 3)])

    return SentimentSums(
        values=regression_sums(values, label),
        has0=signs(y >= 0, x >= 0, mask),
        non0=signs(y > 0, x > 0, mask & (y != 0)),
        nearest=hits(lambda a, n: jnp.round(jnp.clip(a, -n, n))),
        outward=hits(lambda a, n: jnp.clip(jnp.sign(a) * jnp.ceil(jnp.abs(a)), -n, n)),
    )


def sentiment_metrics(state: SentimentSums) -> dict[str, float]:
    """The figures of a regression and the sentiment suite named above."""
    state = _float64(state)
    figures = regression_metrics(state.values)
    for name, confusion in (('has0', state.has0), ('non0', state.non0)):
        figures[f'acc2_{name}'] = _ratio(np.trace(confusion), confusion.sum())
        figures[f'weighted_f1_{name}'] = _weighted_f1(confusion)
    for name, hits in (('round', state.nearest), ('outward', state.outward)):
        for classes, hit in zip((3, 5, 7), hits, strict=True):
            figures[f'acc{classes}_{name}'] = _ratio(hit, state.values.items)
    return _plain(figures)


def distribution_sums(logits: Scores, label: Label) -> DistributionSums:
    """Sums of distances of softmax(logits) from label distributions (Geng, TKDE 2016)."""
    logits, y, mask = _rows(logits, label)
    log_p, log_y = jax.nn.log_softmax(logits), jnp.log(jnp.where(y > 0, y, 1))
    p = jnp.exp(log_p)
    both, gap = p + y, jnp.abs(p - y)
    some = jnp.where(both > 0, both, 1)
    share, log_middle = gap / some, jnp.log(some / 2)

    def divergence(a, log_a, log_b):
        return jnp.where(a > 0, a * (log_a - log_b), 0).sum(-1)

    def mean(distance):
        return jnp.where(mask, distance, 0).sum()

    norms = jnp.sqrt(jnp.square(p).sum(-1) * jnp.square(y).sum(-1))
    return DistributionSums(
        items=_count(mask),
        kl=mean(divergence(y, log_y, log_p)),
        js=mean(divergence(y, log_y, log_middle) + divergence(p, log_p, log_middle)) / 2,
        chebyshev=mean(gap.max(-1)),
        clark=mean(jnp.sqrt(jnp.square(share).sum(-1))),
        canberra=mean(share.sum(-1)),
        cosine=mean((p * y).sum(-1) / jnp.where(norms > 0, norms, 1)),
    )


def distribution_metrics(state: DistributionSums) -> dict[str, float]:
    """The mean distances named above."""
    names = DistributionSums._fields[1:]
    return _plain({name: _ratio(getattr(state, name), state.items) for name in names})


def per_class(state: Any) -> dict[str, np.ndarray]:
    """Figures of each class, label or dimension, [c], from the sums of any kind but distributions.

    Classes: precision, recall, f1, support. Labels: these, weighted_accuracy and weighted_f1.
    Dimensions: mae, rmse, pearson, ccc.
    """
    match state:
        case ClassSums():
            return _of_classes(_float64(state).confusion)
        case MultilabelSums():
            return _of_labels(_float64(state).confusion)
        case RegressionSums():
            return _of_dimensions(state)
        case SentimentSums():
            return _of_dimensions(state.values)
    raise ValueError(f'per_class: found {type(state).__name__}, which has no classes')


def mean_average_precision(
    scores: Float[np.ndarray, 'n c'],
    truth: Float[np.ndarray, 'n c'] | Int[np.ndarray, 'n c'] | Bool[np.ndarray, 'n c'],
    mask: Bool[np.ndarray, 'n'] | None = None,
) -> float:
    """mAP: average precision, the sum of precision x gain in recall down the ranking, over labels.

    Items of equal score enter together; labels without a positive item are left out. It takes all
    scores at once, because the rank of an item is no sum over batches.
    """
    kept = slice(None) if mask is None else mask
    columns = zip(scores[kept].T, truth[kept].T > 0.5, strict=True)
    return float(_mean([_average_precision(score, true) for score, true in columns if true.any()]))


def _average_precision(scores, truth):
    if np.isnan(scores).any():
        return np.nan
    order = np.argsort(-scores, kind='stable')
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(truth[order])[ends]
    return (np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / truth.sum()


def recall_at(scores: Float[np.ndarray, 'q n'], match: Int[np.ndarray, 'q'], k: int) -> float:
    """Share of the queries whose one true match is among the k best of n candidates.

    A candidate that ties with the match counts as better, so that a constant scorer gains nothing.
    """
    own = np.take_along_axis(scores, match[:, None], 1)
    return float(_mean((~(scores < own)).sum(1) <= k))  # so that NaN, too, gains nothing


def _rows(scores, label: Label) -> tuple[Array, Array, Array]:
    """Scores [n c] in at least float32, label values [n] or [n c], mask [n]; 0 under the mask."""
    scores, value, mask = (jnp.asarray(a) for a in (scores, label.value, label.mask))
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    axes, mask = mask.ndim, mask.reshape(-1)
    scores, value = (a.reshape(mask.shape + a.shape[axes:]) for a in (scores, value))
    return _where(mask, scores), _where(mask, value), mask


def _where(mask, a):
    return jnp.where(mask if a.ndim == 1 else mask[:, None], a, 0)


def _count(flags) -> Array:
    return flags.sum(0, dtype=jnp.int32)


def _crossed(truth, said) -> Array:
    """Counts of truth by prediction [... c c], from flags [n ... c]; integers, hence exact."""
    return _count(truth[..., :, None] & said[..., None, :])


def _float64(state: State) -> State:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), state)


def _ratio(a, b):
    """a / b, NaN where there is nothing to divide by."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)


def _mean(values):
    return _ratio(np.sum(values), len(values))


def _f1(hits, mentions):
    """2 tp / (2 tp + fp + fn); mentions are those of the class in truth and prediction together."""
    return np.nan_to_num(_ratio(2 * hits, mentions))


def _of_classes(confusion) -> dict[str, np.ndarray]:
    hits, support, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return {
        'precision': np.nan_to_num(_ratio(hits, said)),
        'recall': np.nan_to_num(_ratio(hits, support)),
        'f1': _f1(hits, support + said),
        'support': support,
    }


def _of_labels(confusion) -> dict[str, np.ndarray]:
    """Of [c 2 2]: the figures of 'present', and two that weigh present and absent."""
    tables = [_of_classes(table) for table in confusion]
    recalls = _ratio(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2))
    return {
        **{name: np.array([table[name][1] for table in tables]) for name in tables[0]},
        'weighted_accuracy': recalls.mean(1),
        'weighted_f1': np.array([_weighted_f1(table) for table in confusion]),
    }


def _weighted_f1(confusion):
    each = _of_classes(confusion)
    return _ratio((each['f1'] * each['support']).sum(), confusion.sum())


def _of_dimensions(state: RegressionSums) -> dict[str, np.ndarray]:
    absolute, squared, x, y, xx, yy, xy = (_ratio(part, state.items) for part in state[1:])
    # A smaller variance is the rounding of float32 sums: a constant, which correlates with nothing.
    var_x, var_y = (np.where(v > 1e-6 * s, v, 0) for v, s in ((xx - x * x, xx), (yy - y * y, yy)))
    cov = np.where((var_x > 0) & (var_y > 0), xy - x * y, 0)
    return {
        'mae': absolute,
        'rmse': np.sqrt(squared),
        'pearson': _ratio(cov, np.sqrt(var_x * var_y)),
        'ccc': _ratio(2 * cov, var_x + var_y + np.square(x - y)),
    }


def _plain(figures) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}


_PAIRS: dict[str, tuple[Callable, Callable]] = {
    'class': (class_sums, class_metrics),
    'multilabel': (multilabel_sums, multilabel_metrics),
    'regression': (regression_sums, regression_metrics),
    'distribution': (distribution_sums, distribution_metrics),
}

"""Do probabilities mean what they say? Temperature scaling, the reliability diagram, abstention.

The temperature is fitted on the validation side and never sees the test side. All functions take
probabilities [n c] and true classes [n]; items are independent of each other and need no order.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float, Int

from jmer import metrics
from jmer.types import Label

COLDEST, HOTTEST = 0.01, 100.0
"""Between these the temperature is sought. Where every validation item is right, colder is always better."""

_sums = jax.jit(metrics.class_sums)
_TINY = float(np.finfo(np.float32).tiny)   # stands for a probability of 0, whose logarithm is infinite


@runtime_checkable
class Predictions(Protocol):
    """One side of a run: scores, probabilities [n c]; truth, class codes [n]."""

    @property
    def scores(self) -> np.ndarray: ...

    @property
    def truth(self) -> np.ndarray: ...


class Reliability(NamedTuple):
    """By bin of the top class's probability: its mean, the share of hits (NaN in empty bins), the number of items."""

    confidence: Float[np.ndarray, 'bins']
    accuracy: Float[np.ndarray, 'bins']
    items: Int[np.ndarray, 'bins']


class Abstention(NamedTuple):
    """What a system that answers only its surest items gets wrong.

    coverage: share answered, 1/n, 2/n, ..., 1. risk: share of errors among those. aurc: the mean of the
    risks, the area under the risk-coverage curve (Geifman & El-Yaniv, NeurIPS 2017); less is better.
    """

    coverage: Float[np.ndarray, 'n']
    risk: Float[np.ndarray, 'n']
    aurc: float


def fit_temperature(probabilities: Float[np.ndarray, 'n c'], truth: Int[np.ndarray, 'n']) -> float:
    """The temperature T in [0.01, 100] of least NLL on validation items (Guo et al., ICML 2017).

    Log-probabilities serve as logits, as softmax does not see what is added to all of them. The NLL is
    convex in 1/T, hence has one valley in log T, where it is sought. Never worse than T = 1.
    """
    _check(probabilities, truth)
    logits = _log(probabilities)

    def nll(log_t):
        log_p = scipy.special.log_softmax(logits / np.exp(log_t), axis=-1)
        return -np.take_along_axis(log_p, truth[:, None], 1).mean()

    found = scipy.optimize.minimize_scalar(nll, bounds=(np.log(COLDEST), np.log(HOTTEST)), method='bounded',
                                           options={'xatol': 1e-6})
    return float(np.exp(found.x)) if found.fun < nll(0.0) else 1.0


def apply_temperature(probabilities: Float[np.ndarray, 'n c'], temperature: float) -> Float[np.ndarray, 'n c']:
    """softmax(log p / T), in float64: above 1 more modest, below 1 more certain; the order of classes stays."""
    if not 0 < temperature < np.inf:
        raise ValueError(f'temperature: found {temperature}, expected a positive number')
    return scipy.special.softmax(_log(probabilities) / temperature, axis=-1)


def reliability(
    probabilities: Float[np.ndarray, 'n c'], truth: Int[np.ndarray, 'n'], bins: int = 15
) -> Reliability:
    """The reliability diagram of the top class, in bins (0, 1/bins], ..., (1 - 1/bins, 1].

    The mean of |accuracy - confidence|, weighted by items, is the ECE (`ece15` for 15 bins).
    """
    _check(probabilities, truth)
    if bins < 1:
        raise ValueError(f'bins: found {bins}, expected 1 or more')
    confidence, hit = _top(probabilities, truth)
    # In float32 as in `metrics`, so that an item on an edge falls into the same bin.
    place = np.ceil(confidence.astype(np.float32) * np.float32(bins)).astype(int) - 1
    place = place.clip(0, bins - 1)
    items = np.bincount(place, minlength=bins)

    def mean(values):
        empty = np.full(bins, np.nan)
        return np.divide(np.bincount(place, values, bins), items, out=empty, where=items > 0)

    return Reliability(mean(confidence), mean(hit), items)


def abstention(probabilities: Float[np.ndarray, 'n c'], truth: Int[np.ndarray, 'n']) -> Abstention:
    """The selective risk at every coverage, when the items of lowest top probability are left unanswered.

    Items of equal probability are answered in random order: the risk among them is the expected one.
    """
    _check(probabilities, truth)
    confidence, hit = _top(probabilities, truth)
    order = np.argsort(-confidence, kind='stable')
    ends = np.append(np.flatnonzero(np.diff(confidence[order])) + 1, len(order))   # behind each tie
    errors = np.cumsum(~hit[order])[ends - 1]
    answered = np.arange(1, len(order) + 1)
    risk = np.interp(answered, np.append(0, ends), np.append(0, errors)) / answered
    return Abstention(answered / len(order), risk, float(risk.mean()))


def calibrate(validation: Predictions, test: Predictions) -> dict[str, Any]:
    """Fits the temperature on validation and says what it does to both sides, ready for JSON.

    {'temperature': T, 'validation': {'before': figures, 'after': figures}, 'test': the same}, where figures
    are accuracy, nll, brier_multiclass and ece15 of `metrics`.
    """
    temperature = fit_temperature(validation.scores, validation.truth)
    result: dict[str, Any] = {'temperature': temperature}
    for name, side in (('validation', validation), ('test', test)):
        _check(side.scores, side.truth)
        after = apply_temperature(side.scores, temperature)
        result[name] = {'before': _figures(side.scores, side.truth), 'after': _figures(after, side.truth)}
    return result


def _figures(probabilities, truth) -> dict[str, float]:
    label = Label(truth, np.ones(len(truth), bool))
    figures = metrics.class_metrics(_sums(_log(probabilities), label))
    return {name: figures[name] for name in ('accuracy', 'nll', 'brier_multiclass', 'ece15')}


def _log(probabilities):
    return np.log(np.maximum(probabilities, _TINY), dtype=np.float64)


def _top(probabilities, truth) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the top class, and whether it is the true one."""
    return probabilities.max(-1), probabilities.argmax(-1) == truth


def _check(probabilities, truth) -> None:
    if not len(probabilities):
        raise ValueError('probabilities: found no items, expected at least one')
    if len(truth) != len(probabilities):
        raise ValueError(f'truth: found {len(truth)} items, expected {len(probabilities)}, as in probabilities')
    bad = ~((probabilities >= 0) & (probabilities <= 1)).all(-1)   # NaN is neither
    bad |= abs(probabilities.sum(-1) - 1) > 1e-3
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(f'probabilities: found {probabilities[at]} at item {at}, expected numbers of 0 to 1 '
                         'that sum to 1')
    classes = probabilities.shape[1]
    if truth.min() < 0 or truth.max() >= classes:
        raise ValueError(f'truth: found classes {truth.min()} to {truth.max()}, expected 0 to {classes - 1}')

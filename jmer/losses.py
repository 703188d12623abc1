"""Losses of every label kind, as terms that add up over devices, accumulation and padding.

A loss is a pure function (scores [*b c], Label) -> Term and reduces nothing over the items: the
trainer divides sum(value * weight) by sum(weight), both taken over the *global* batch. Masks and
class weights therefore live in the weight, and a weighted cross entropy is divided by the sum of
its class weights, as in torch. `ccc` alone couples the items; its term is one number with the
number of items as weight.

What stands under a False mask touches neither value nor gradient, be it NaN. Half precision is
computed in float32.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import xlogy
from jaxtyping import Float

from jmer.types import Label

Scores = Float[Array | np.ndarray, '*b c']


class Term(NamedTuple):
    """One summand of a training loss: sum(value * weight) / sum(weight) over the global batch.

    value: the loss of each item, [*b], 0 under the mask; [] for a loss that couples the items.
    weight: how much the item counts, 0 under the mask, the shape of value.
    """

    value: Float[Array, '*b']
    weight: Float[Array, '*b']


def cross_entropy(
    logits: Scores,
    label: Label,
    *,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
) -> Term:
    """-log softmax(logits)[y] of integer labels; log-probabilities serve as logits too.

    class_weights: one for each class; an item weighs as its true class does.
    label_smoothing: epsilon of Szegedy et al. (CVPR 2016): the target is 1 - epsilon on the true
        class plus epsilon / c on all. Class weights then weigh each class's part, as in torch,
        except that an item of a class of weight 0 does not count at all.
    """
    logits, y = _under_mask(logits, label)
    nll = -jax.nn.log_softmax(logits)
    weights = _class_weights(class_weights, logits.shape[-1])
    true = weights[y]
    value = _pick(nll, y)
    if label_smoothing:
        # Relative to the item's own weight, which multiplies the value later.
        spread = nll @ weights / logits.shape[-1] / jnp.where(true > 0, true, 1)
        value = (1 - label_smoothing) * value + label_smoothing * spread
    return _term(value, label, true)


def focal(
    logits: Scores,
    label: Label,
    *,
    gamma: float = 2.0,
    detach: bool = False,
    class_weights: tuple[float, ...] | None = None,
) -> Term:
    """-(1 - p)^gamma log p of the true class's probability p (Lin et al., ICCV 2017).

    detach: take no gradient through the factor (1 - p)^gamma, as several dialogue systems do.
    """
    logits, y = _under_mask(logits, label)
    log_p = _pick(jax.nn.log_softmax(logits), y)
    # 1 - p by expm1 is exact near p = 1; the floor keeps the slope of x^gamma finite at p = 1.
    miss = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny)
    factor = miss**gamma
    value = -(jax.lax.stop_gradient(factor) if detach else factor) * log_p
    return _term(value, label, _class_weights(class_weights, logits.shape[-1])[y])


def binary_cross_entropy(logits: Scores, label: Label) -> Term:
    """Cross entropy of independent sigmoids against labels 0 to 1, averaged over the labels."""
    logits, y = _under_mask(logits, label)
    return _term((jax.nn.softplus(logits) - y * logits).mean(-1), label)


def mae(values: Scores, label: Label) -> Term:
    """Absolute error, averaged over the targets."""
    values, y = _under_mask(values, label)
    return _term(jnp.abs(values - y).mean(-1), label)


def mse(values: Scores, label: Label) -> Term:
    """Squared error, averaged over the targets."""
    values, y = _under_mask(values, label)
    return _term(jnp.square(values - y).mean(-1), label)


def ccc(values: Scores, label: Label) -> Term:
    """1 - the concordance correlation coefficient (Lin, Biometrics 1989), averaged over targets.

    The coefficient is 2 cov / (var + var + (difference of means)^2) over all present items, moments
    divided by n; 0 where truth and prediction are one and the same constant. The items are coupled:
    the term is one number, weighted by the number of items, so over accumulation steps (or pmap's
    devices) the total is the mean of the parts' values and not the value of the whole.
    """
    values, y = _under_mask(values, label)
    x, y = (a.reshape(-1, a.shape[-1]) for a in (values, y))
    mask = jnp.asarray(label.mask).reshape(-1, 1)
    items = mask.sum(dtype=x.dtype)

    def mean(a):
        return jnp.where(mask, a, 0).sum(0, keepdims=True) / jnp.maximum(items, 1)

    gap = mean(x) - mean(y)
    x, y = x - mean(x), y - mean(y)
    spread = mean(x * x) + mean(y * y) + gap * gap
    coefficient = 2 * mean(x * y) / jnp.where(spread > 0, spread, 1)
    return Term(jnp.where(items > 0, 1 - coefficient.mean(), 0), items)


def kl(logits: Scores, label: Label) -> Term:
    """KL(label || softmax(logits)) of label distributions, in nats."""
    logits, y = _under_mask(logits, label)
    return _term((xlogy(y, y) - y * jax.nn.log_softmax(logits)).sum(-1), label)


LOSSES: dict[str, tuple[Callable[..., Term], ...]] = {
    'class': (cross_entropy, focal),
    'multilabel': (binary_cross_entropy,),
    'regression': (mae, mse, ccc),
    'distribution': (kl,),
}
"""The losses that each label kind (`data.corpus.Target.kind`) takes, its default first."""


def supervised(
    kind: str,
    name: str | None = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    gamma: float | None = None,
) -> Callable[[Scores, Label], Term]:
    """The loss called `name` for labels of this kind, with its options: (scores, Label) -> Term.

    Without a name: cross_entropy, binary_cross_entropy, mae or kl, by kind. ValueError for a kind
    or name that does not exist, a loss that does not take this kind, or an option that the loss
    does not have.
    """
    if kind not in LOSSES:
        raise ValueError(f'label kind: found {kind!r}, expected one of {", ".join(LOSSES)}')
    choices = {loss.__name__: loss for loss in LOSSES[kind]}
    name = next(iter(choices)) if name is None else name
    if name not in choices:
        expected = ', '.join(choices)
        raise ValueError(f'loss: found {name!r}, expected {expected} (the label kind is {kind!r})')
    loss = choices[name]
    given = {
        option: value
        for option, value, default in (
            ('class_weights', class_weights, None),
            ('label_smoothing', label_smoothing, 0.0),
            ('gamma', gamma, None),
        )
        if value != default
    }
    for option in given:
        if option not in inspect.signature(loss).parameters:
            raise ValueError(f'loss {name}: takes no {option}, found {given[option]!r}')
    if not 0 <= label_smoothing < 1:
        raise ValueError(f'label_smoothing: found {label_smoothing}, expected 0 <= it < 1')
    return functools.partial(loss, **given)


def _under_mask(scores, label: Label) -> tuple[Array, Array]:
    """Scores in at least float32 and label values, both 0 where nothing is labelled."""
    scores, value, mask = (jnp.asarray(a) for a in (scores, label.value, label.mask))
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if value.ndim == mask.ndim:
        return jnp.where(mask[..., None], scores, 0), jnp.where(mask, value, 0)
    value = value.astype(scores.dtype)
    return jnp.where(mask[..., None], scores, 0), jnp.where(mask[..., None], value, 0)


def _pick(values, index):
    return jnp.take_along_axis(values, index[..., None], -1)[..., 0]


def _class_weights(weights: tuple[float, ...] | None, classes: int) -> Array:
    if weights is None:
        return jnp.ones(classes, jnp.float32)
    if len(weights) != classes or min(weights) < 0 or not np.isfinite(weights).all():
        raise ValueError(f'class_weights: found {weights}, expected {classes} numbers >= 0')
    return jnp.asarray(weights, jnp.float32)


def _term(value, label: Label, weight=1.0) -> Term:
    weight = jnp.where(label.mask, weight, 0).astype(value.dtype)
    return Term(jnp.where(label.mask, value, 0), weight)

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
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import xlogy
from jaxtyping import Bool, Float, Int

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
    logits, y = _classes(logits, label)
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
    logits, y = _classes(logits, label)
    log_p = _pick(jax.nn.log_softmax(logits), y)
    # 1 - p by expm1 is exact near p = 1; the floor keeps the slope of x^gamma finite at p = 1.
    miss = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny)
    factor = miss**gamma
    value = -(jax.lax.stop_gradient(factor) if detach else factor) * log_p
    return _term(value, label, _class_weights(class_weights, logits.shape[-1])[y])


def log_focal(logits: Scores, label: Label, *, gamma: float = 2.5) -> Term:
    """The focal loss of MMGCN's and M3NET's code for MELD, which is another than Lin's in two points.

    Every class counts, -log p averaged over them, and where the true class has its factor (1 - p)^gamma, p
    is its log-probability: the factor grows beyond 1. Here because published figures were trained with it.
    """
    logits, y = _classes(logits, label)
    log_p = jax.nn.log_softmax(logits)
    true = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    return _term(-(jnp.where(true, 1 - log_p, 1) ** gamma * log_p).mean(-1), label)


def arcface(cosines: Scores, label: Label, *, scale: float = 64.0, margin: float = 0.5) -> Term:
    """Cross entropy with an additive angular margin (ArcFace, Deng et al., CVPR 2019).

    The score of the true class is scale cos(theta + margin) in place of scale cos(theta), that of the others
    scale cos(theta). Where theta + margin would exceed pi, the score goes on as scale (cos(theta) - margin
    sin(margin)), so that it falls with theta everywhere.

    cosines: of the angles theta between an item's vector and the vector of each class.
    margin: in radians.
    """
    cosines, y = _classes(cosines, label)
    cosines = jnp.clip(cosines, -1, 1)
    squares = 1 - jnp.square(cosines)
    inside = squares > 1e-12        # where the slope of the root is finite
    sines = jnp.where(inside, jnp.sqrt(jnp.where(inside, squares, 1)), 0)
    turned = jnp.where(cosines > -math.cos(margin), cosines * math.cos(margin) - sines * math.sin(margin),
                       cosines - margin * math.sin(margin))
    true = jax.nn.one_hot(y, cosines.shape[-1], dtype=bool)
    return cross_entropy(scale * jnp.where(true, turned, cosines), Label(y, label.mask))


def binary_cross_entropy(logits: Scores, label: Label) -> Term:
    """Cross entropy of independent sigmoids against labels 0 to 1, averaged over the labels."""
    logits, y = _values(logits, label)
    return _term((jax.nn.softplus(logits) - y * logits).mean(-1), label)


def mae(values: Scores, label: Label) -> Term:
    """Absolute error, averaged over the targets."""
    values, y = _values(values, label)
    return _term(jnp.abs(values - y).mean(-1), label)


def mse(values: Scores, label: Label) -> Term:
    """Squared error, averaged over the targets."""
    values, y = _values(values, label)
    return _term(jnp.square(values - y).mean(-1), label)


def ccc(values: Scores, label: Label, *, unbiased: bool = False) -> Term:
    """1 - the concordance correlation coefficient (Lin, Biometrics 1989), averaged over targets.

    The coefficient is 2 cov / (var + var + (difference of means)^2) over all present items, moments
    divided by n (variances and covariance by n - 1 if `unbiased`, as some authors do); 0 where truth and
    prediction are one and the same constant. The items are coupled: the term is one number, weighted by the
    number of items, so over accumulation steps (or pmap's devices) the total is the mean of the parts'
    values and not the value of the whole.
    """
    values, y = _values(values, label)
    x, y = (a.reshape(-1, a.shape[-1]) for a in (values, y))
    mask = jnp.asarray(label.mask).reshape(-1, 1)
    items = mask.sum(dtype=x.dtype)

    def mean(a):
        return jnp.where(mask, a, 0).sum(0, keepdims=True) / jnp.maximum(items, 1)

    gap = mean(x) - mean(y)
    x, y = x - mean(x), y - mean(y)
    # n / (n - 1) on variances and covariance is (n - 1) / n on what stands beside them.
    far = gap * gap * ((items - 1) / jnp.maximum(items, 1) if unbiased else 1)
    spread = mean(x * x) + mean(y * y) + far
    coefficient = 2 * mean(x * y) / jnp.where(spread > 0, spread, 1)
    return Term(jnp.where(items > 0, 1 - coefficient.mean(), 0), items)


def kl(logits: Scores, label: Label) -> Term:
    """KL(label || softmax(logits)) of label distributions, in nats."""
    logits, y = _values(logits, label)
    return _term((xlogy(y, y) - y * jax.nn.log_softmax(logits)).sum(-1), label)


def task(scores: Scores, labels: Mapping[str, Label], regression: Callable[..., Term] | None = None) -> Term:
    """The loss of a batch's one target, for models with a loss of their own.

    Cross entropy of class indices, `regression` (default: mae) of real values. ValueError unless there is
    exactly one target.
    """
    label = target(labels)
    classes = jnp.issubdtype(jnp.result_type(label.value), jnp.integer)
    return cross_entropy(scores, label) if classes else (regression or mae)(scores, label)


def target(labels: Mapping[str, Label]) -> Label:
    """The one target of a batch, for models with a loss of their own; ValueError unless there is exactly one."""
    if len(labels) != 1:
        raise ValueError(f'labels: found {sorted(labels)}, expected one target')
    label, = labels.values()
    return label


def weighted(terms: Mapping[str, Term], **weights: float) -> dict[str, Term]:
    """The terms, those named with their values multiplied."""
    return {name: Term(weights.get(name, 1.0) * term.value, term.weight) for name, term in terms.items()}


def class_balance(counts: Int[np.ndarray, 'c'], beta: float) -> tuple[float, ...]:
    """Weights of the classes by how rare they are in training (Cui et al., CVPR 2019); one for each.

    In proportion to (1 - beta) / (1 - beta^n), the inverse of the effective number of n items: beta 0 gives
    all classes one weight, beta 1 the inverse frequency. Items weigh 1 on average; a class without items
    weighs 0.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f'balance: found {beta}, expected 0 to 1')
    items = np.asarray(counts, np.float64)
    effective = items if beta == 1 else (1 - beta**items) / (1 - beta)
    weights = np.where(items > 0, 1 / np.where(items > 0, effective, 1), 0)
    return tuple((weights * items.sum() / max((weights * items).sum(), 1e-300)).tolist())


def reweighted(terms: Mapping[str, Term], label: Label, class_weights: tuple[float, ...]) -> dict[str, Term]:
    """The terms of any loss, in which labelled items weigh as their class does.

    It concerns the terms with one value for each item; others, such as those that couple items, stay as they are.
    """
    index = jnp.where(label.mask, label.value, 0)
    factor = jnp.where(label.mask, _class_weights(class_weights, len(class_weights))[index], 1)
    return {name: Term(term.value, term.weight * factor) if term.weight.shape == factor.shape else term
            for name, term in terms.items()}


def coupled(value: Float[Array | np.ndarray, ''], mask: Bool[Array | np.ndarray, '*b']) -> Term:
    """The term of a loss that couples the items: one number, weighted by how many there are."""
    items = jnp.sum(mask, dtype=jnp.float32)
    return Term(jnp.where(items > 0, value, 0), items)


def central_moment_discrepancy(
    x: Float[Array | np.ndarray, 'b d'],
    y: Float[Array | np.ndarray, 'b d'],
    mask: Bool[Array | np.ndarray, 'b'],
    moments: int = 5,
) -> Float[Array, '']:
    """How far two distributions are apart by their moments (Zellinger et al., ICLR 2017), without a range.

    The sum of the distances of the means and of the central moments of order 2 to `moments`, over the items
    under the mask; 0 where there are none.
    """
    mean_x, mean_y = _mean(x, mask), _mean(y, mask)
    distance = _norm(mean_x - mean_y)
    for order in range(2, moments + 1):
        distance += _norm(_mean((x - mean_x) ** order, mask) - _mean((y - mean_y) ** order, mask))
    return distance


def difference(
    x: Float[Array | np.ndarray, 'b d'], y: Float[Array | np.ndarray, 'b e'], mask: Bool[Array | np.ndarray, 'b']
) -> Float[Array, '']:
    """How much two representations of the same items share (Hazarika et al., ACM MM 2020): 0 if orthogonal.

    The mean squared entry of X^T Y, whose columns are centred and whose rows then have unit length; the
    length takes no gradient.
    """
    def rows(z):
        z = jnp.where(mask[:, None], z - _mean(z, mask), 0)
        length = jax.lax.stop_gradient(jnp.linalg.norm(z, axis=-1, keepdims=True))
        return z / (length + 1e-6)

    return jnp.mean(jnp.square(rows(x).T @ rows(y)))


def distillation(
    student: Scores, teacher: Scores, mask: Bool[Array | np.ndarray, '*b'], *, temperature: float = 1.0
) -> Term:
    """KL(teacher || student) of two softmax distributions, in nats, both logits divided by the temperature.

    As in self-distillation (Ma et al., TMM 2024) the teacher learns too; `jax.lax.stop_gradient` keeps it
    from that. There is no factor temperature^2.
    """
    mask = jnp.asarray(mask)
    q, p = (jax.nn.log_softmax(jnp.where(mask[..., None], logits, 0).astype(jnp.float32) / temperature)
            for logits in (student, teacher))
    return Term(jnp.sum(jnp.exp(p) * (p - q), -1), mask.astype(jnp.float32))


def nt_xent(x: Float[Array | np.ndarray, '*b d'], label: Label, *, temperature: float = 0.1) -> Term:
    """The supervised contrastive loss NT-Xent, over all labelled items of the batch.

    For every two items a and b of one class, -log(e^ab / (e^ab + sum over items n of other classes e^an)),
    where ab is the cosine of their vectors divided by the temperature; the mean over all such pairs, 0 where
    there is none. Rows of the pairs are made one block after another, so memory grows with the items only.
    """
    x, y, mask = _flat(x, label)
    unit = _unit(x)

    def row(item):
        a, own, there, index = item
        score = unit @ a / temperature
        positive = there & mask & (y == own) & (jnp.arange(len(y)) != index)
        negative = jax.nn.logsumexp(jnp.where(mask & (y != own), score, -1e30))
        loss = jnp.logaddexp(score, negative) - score
        return jnp.sum(jnp.where(positive, loss, 0)), jnp.sum(positive)

    total, pairs = _rows(row, unit, y, mask)
    return coupled(jnp.sum(total) / jnp.maximum(jnp.sum(pairs), 1), mask)


def swfc(
    x: Float[Array | np.ndarray, '*b d'],
    label: Label,
    *,
    temperature: float = 0.8,
    focus: float = 2.4,
    class_weights: tuple[float, ...] | None = None,
) -> Term:
    """The sample-weighted focal contrastive loss (Shi & Huang, ACL 2023), over all labelled items.

    p_ij is the softmax over the others j of the cosine of items i and j, divided by the temperature. An
    item's loss is the mean over the others of its class of -(1 - p)^focus log p, times its class weight; 0
    where it is alone in its class, and such an item still counts in the mean over the items.
    """
    x, y, mask = _flat(x, label)
    unit = _unit(x)
    weight = _class_weights(class_weights, len(class_weights))[y] if class_weights else jnp.ones(len(y))

    def row(item):
        a, own, there, index = item
        other = mask & (jnp.arange(len(y)) != index)
        log_p = jax.nn.log_softmax(jnp.where(other, unit @ a / temperature, -1e30))
        positive = there & other & (y == own)
        log_p = jnp.where(positive, log_p, -1.0)
        miss = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny)
        loss = jnp.where(positive, -(miss**focus) * log_p, 0)
        return jnp.sum(loss), jnp.sum(positive)

    total, pairs = _rows(row, unit, y, mask)
    value = (weight * total / jnp.maximum(pairs, 1)).reshape(np.shape(label.mask))
    return _term(value, label)


def soft_hgr(
    f: Float[Array | np.ndarray, '*b d'],
    g: Float[Array | np.ndarray, '*b d'],
    mask: Bool[Array | np.ndarray, '*b'],
    *,
    over_channels: bool = False,
) -> Float[Array, '']:
    """Soft Hirschfeld-Gebelein-Renyi correlation of two views of the n items (Wang et al., AAAI 2019); 0 of none.

    The mean of f . g minus trace(cov(f) cov(g)) / 2, both views centred over the items, covariances [d d]
    divided by n - 1.

    over_channels: as MultiEMO's code has it. f . g is not centred, and the covariance is that of the items
        [n n], whose samples are the d channels; its part is divided by n once more. The trace is had from a
        product [d d] all the same.
    """
    mask = jnp.asarray(mask).reshape(-1, 1)
    f, g = (jnp.where(mask, jnp.asarray(z, jnp.float32).reshape(len(mask), -1), 0) for z in (f, g))
    items = jnp.maximum(jnp.sum(mask), 1)
    if over_channels:
        centred_f, centred_g = (z - z.mean(-1, keepdims=True) for z in (f, g))
        trace = jnp.sum(jnp.square(centred_f.T @ centred_g)) / max(f.shape[-1] - 1, 1) ** 2
        return jnp.sum(f * g) / items - trace / (2 * items)
    f, g = (jnp.where(mask, z - z.sum(0, keepdims=True) / items, 0) for z in (f, g))
    trace = jnp.sum((f.T @ f) * (g.T @ g)) / jnp.maximum(items - 1, 1) ** 2
    return jnp.sum(f * g) / items - trace / 2


def emotion_shift(scores: Float[Array | np.ndarray, 'b u u c'], label: Label, *, weights: tuple[float, float]) -> Term:
    """Cross entropy of whether the labels of two turns of a dialogue differ (Li et al., TAFFC 2024).

    scores: of 'the same' and 'changed' for every two labelled turns of a dialogue, a turn with itself included.
    weights: of these two classes.
    """
    value, mask = jnp.asarray(label.value), jnp.asarray(label.mask)
    changed = (value[:, :, None] != value[:, None, :]).astype(jnp.int32)
    return cross_entropy(scores, Label(changed, mask[:, :, None] & mask[:, None, :]), class_weights=weights)


def ctc(
    logits: Float[Array | np.ndarray, 'b t c'],
    mask: Bool[Array | np.ndarray, 'b t'],
    labels: Int[Array | np.ndarray, 'b n'],
    label_mask: Bool[Array | np.ndarray, 'b n'],
) -> Float[Array, 'b']:
    """-log p of a sequence under connectionist temporal classification (Graves et al., ICML 2006); blank is 0.

    Steps and labels must be present from the first on; the loss of each item, not divided by any length.
    """
    import optax

    absent = [1 - jnp.asarray(present, jnp.float32) for present in (mask, label_mask)]
    return optax.ctc_loss(jnp.where(mask[..., None], logits, 0), absent[0], labels, absent[1])


LOSSES: dict[str, tuple[Callable[..., Term], ...]] = {
    'class': (cross_entropy, focal),
    'multilabel': (binary_cross_entropy,),
    'regression': (mae, mse, ccc),
    'distribution': (kl,),
}
"""The losses that each label kind (`data.corpus.Target.kind`) takes, its default first."""


def rank_n_contrast(
    x: Float[Array | np.ndarray, 'b d'],
    label: Label,
    *,
    temperature: float = 2.0,
    slack: float = 0.0,
) -> Term:
    """Distances in the order of the labels' (Zha et al., NeurIPS 2023): a contrast of every pair i, j.

    -log of exp(-|x_i - x_j| / temperature) over its sum with all k whose label is as far from that of i as
    the label of j, or farther; averaged over the pairs. Real values are apart by the sum of absolute
    differences, classes by 0 or 1. The items are coupled.

    slack: how much nearer than j a k may be.
    """
    mask = jnp.asarray(label.mask)
    x, value = jnp.where(mask[:, None], x, 0), jnp.asarray(label.value)
    if value.ndim == 1:
        apart = (value[:, None] != value[None]).astype(x.dtype)
    else:
        apart = jnp.abs(value[:, None] - value[None]).sum(-1)
    pair = mask[:, None] & mask[None] & ~jnp.eye(len(x), dtype=bool)
    squares = jnp.square(x[:, None] - x[None]).sum(-1)
    near = -jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0) / temperature
    farther = apart[:, None] >= apart[:, :, None] - slack
    # An item counts for itself: else a sum might be empty, and its logarithm without a gradient.
    among = farther & pair[:, None] | jnp.eye(len(x), dtype=bool)[None]
    total = jax.nn.logsumexp(jnp.broadcast_to(near[:, None], among.shape), -1, where=among)
    contrast = jnp.where(pair, total - near, 0)
    return coupled(contrast.sum() / jnp.maximum(pair.sum(), 1), mask)


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


def _classes(scores, label: Label) -> tuple[Array, Array]:
    """Scores in at least float32 and class indices, both 0 where nothing is labelled; ValueError for other labels."""
    scores, value, mask = (jnp.asarray(a) for a in (scores, label.value, label.mask))
    if value.shape != mask.shape or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(f'label: found {value.dtype} {value.shape}, expected class indices, int {mask.shape}')
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    return jnp.where(mask[..., None], scores, 0), jnp.where(mask, value, 0)


def _values(scores, label: Label) -> tuple[Array, Array]:
    """Scores in at least float32 and as many real values, 0 where nothing is labelled; ValueError for other labels."""
    scores, value, mask = (jnp.asarray(a) for a in (scores, label.value, label.mask))
    if value.shape != scores.shape:
        raise ValueError(f'label: found {value.dtype} {value.shape}, expected a real value for every score, '
                         f'{scores.shape}')
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    return jnp.where(mask[..., None], scores, 0), jnp.where(mask[..., None], value.astype(scores.dtype), 0)


def _mean(x, mask) -> Array:
    """Mean over the items under the mask, [1 d]."""
    count = jnp.maximum(jnp.sum(mask), 1)
    return jnp.sum(jnp.where(mask[:, None], x, 0), 0, keepdims=True) / count


def _norm(x) -> Array:
    """Euclidean length, whose gradient is 0 at 0."""
    squares = jnp.sum(jnp.square(x))
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _flat(x, label: Label) -> tuple[Array, Array, Array]:
    """Vectors [n d], classes and mask [n] of all items; zeros under the mask."""
    x, y = _classes(x, label)
    return x.reshape(-1, x.shape[-1]), y.reshape(-1), jnp.asarray(label.mask).reshape(-1)


def _unit(x) -> Array:
    """Rows of length 1; a row of zeros stays, and so does its gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))


def _rows(row: Callable, *arrays: Array) -> tuple[Array, Array]:
    """`row` of every item, some hundreds at a time; the backward pass makes each block again."""
    items = (*arrays, jnp.arange(len(arrays[0])))
    return jax.lax.map(jax.checkpoint(row), items, batch_size=min(256, len(arrays[0])))


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

"""M3ER: multiplicative fusion with a check of the modalities (Mittal et al., AAAI 2020, arXiv:1911.05659).

After the paper. Streams that say of an item what no other stream agrees with are ineffectual: sensor noise,
not emotion. Canonical correlation analysis of the training data tells by which projections two streams agree;
where those of an item correlate less than `threshold` with every other stream, the stream is replaced by proxy
features, a linear map of what the effective streams hold. LSTMs read the streams; a memory with attention, as
in the memory fusion network (Zadeh et al., AAAI 2018), sees all their states; it and the last states are
scored. The multiplicative loss on a decision of each stream lets those count more that are right with
confidence, and lets the others be.

Read: the abstract, and second-hand the widths of the LSTMs (32) and of the memory (128), the 100 dimensions
of the check, its threshold of about 0.1, and the loss -sum_i p_i^(beta / (M - 1)) log p_i. The rest is inferred:

- The check and the proxies look at the mean of the features over time. Both are had from running moments of the
  items of which all streams are there, in closed form with a ridge; the paper analyses the training set, and
  maps one basis of training features to another. Projections are correlated about 0, for their signs are free.
- An item is checked when it is tested. In training only absent streams get proxies. Where no stream passes,
  those that are there stay. A proxy is a sequence of one step, and the mean of the maps of all effective streams.
- Streams need not be aligned: the memory sees each at `moments` steps, equally far apart.
- The decisions, beta, the weight of their loss beside that of the fused scores, `hidden` and dropout.

The multiplicative loss pulls a probability below exp(-(M - 1) / beta) further down, so beta should grow no
larger than (M - 1) / log(classes).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap
from jaxtyping import Bool, Float

from jmer import losses
from jmer.collectives import total
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.mlp import MLP
from jmer.layers.pooling import pooled_streams
from jmer.layers.recurrent import LSTM
from jmer.types import Array, Batch, Label, Output, Stream

TAGS = ('deep fusion', 'data translation', 'joint representation', 'gated', 'recurrent', 'unaligned',
        'missing modality')
LABELS = ('class',)

# Seeds are trained by `jax.vmap`, and XLA's factorisations of several matrices at once can wait for one another
# for ever on a CPU: one matrix after the other.
_svd = sequential_vmap(lambda x: jnp.linalg.svd(x, full_matrices=False))
_eigh = sequential_vmap(lambda x: jnp.linalg.eigh(x))
_solve = sequential_vmap(lambda a, b: jnp.linalg.solve(a, b))


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: what is read; the paper's are face, text and speech.
    states: of each LSTM.
    memory: width of the memory.
    moments: steps of every stream that the memory sees.
    hidden: width inside the networks of the memory and of the fused scores.
    threshold: of the correlation with another stream, below which a stream is ineffectual; -1: no check.
    projections: canonical directions that are correlated, the best first.
    ridge: added to the variances, relative to them, where correlations are inverted.
    momentum: weight of a new batch in the running moments, once there have been more than 1 / momentum.
    beta: how much more the confident decisions count. decision_weight: of their loss.
    dropout: rate in front of every linear layer of the memory's attention and of the fused scores.
    """

    classes: int
    streams: tuple[str, ...] = ('vision', 'text', 'audio')
    states: int = 32
    memory: int = 128
    moments: int = 8
    hidden: int = 64
    threshold: float = 0.1
    projections: int = 100
    ridge: float = 0.01
    momentum: float = 0.02
    beta: float = 1.0
    decision_weight: float = 1.0
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        """aux: 'decisions' [b m c], log-probabilities; 'effective' [b m]; 'proxies' [b d] by stream; 'memory'."""
        vectors, there = pooled_streams(batch, self.streams, 'mean')
        known = _Moments(self.momentum, name='moments')(vectors, there, batch.present, train=train)
        z = [(x - mean[None]) / std[None] for x, mean, std in zip(vectors, known.mean, known.std, strict=True)]
        passed = there
        if not train and self.threshold > -1:
            passed = effective(agreement(known, z, self.projections, self.ridge), there, self.threshold)
        proxies = [y * std[None] + mean[None] for y, mean, std in
                   zip(translated(known, z, passed, self.ridge), known.mean, known.std, strict=True)]
        seen = []
        for m, name in enumerate(self.streams):
            x, mask = replaced(batch.streams[name], proxies[m], passed[:, m])
            seen.append(at_moments(LSTM(self.states, name=f'encode_{name}')(x, mask), mask, self.moments))

        last = [states[:, -1] for states in seen]
        memory = _Memory(self.memory, self.hidden, self.dropout, name='memory')(
            jnp.concatenate(seen, -1), train=train)
        logits = MLP((self.hidden, self.classes), self.dropout, name='head')(
            jnp.concatenate([*last, memory], -1), train=train)
        decisions = jnp.stack([Dense(self.classes, name=f'decide_{name}')(x)
                               for name, x in zip(self.streams, last, strict=True)], 1)
        return Output(logits, {'decisions': jax.nn.log_softmax(decisions), 'effective': passed, 'memory': memory,
                               'proxies': dict(zip(self.streams, proxies, strict=True))})


class Known(NamedTuple):
    """What is known of the streams' vectors: means and standard deviations of each, correlations of every two.

    correlation: of the streams i and j at [i][j], [d_i d_j]. batches: how many were seen.
    """

    mean: Sequence[Float[Array, '_']]
    std: Sequence[Float[Array, '_']]
    correlation: Sequence[Sequence[Float[Array, '_ _']]]
    batches: Float[Array, '']


class _Moments(nn.Module):
    """Running mean and covariance of all streams' vectors together, over the items that lack none.

    momentum: weight of a new batch; the first ones weigh alike. A batch without such an item changes nothing.
    """

    momentum: float

    @nn.compact
    def __call__(
        self, vectors: Sequence[Float[Array, 'b _']], there: Bool[Array, 'b m'], present: Bool[Array, 'b'], *,
        train: bool
    ) -> Known:
        widths = [x.shape[-1] for x in vectors]
        mean = self.variable('batch_stats', 'mean', jnp.zeros, sum(widths))
        covariance = self.variable('batch_stats', 'covariance', jnp.eye, sum(widths))
        batches = self.variable('batch_stats', 'batches', jnp.zeros, ())
        if train and not self.is_initializing():
            whole = jnp.all(there, 1) & present
            own_mean, own_covariance, count = _moments(jnp.concatenate(vectors, -1), whole)
            seen = (count > 0).astype(jnp.float32)
            rate = seen * jnp.maximum(self.momentum, 1 / (batches.value + 1))
            gap = own_mean - mean.value
            # The covariance of a mixture of two distributions, so that nothing large is ever subtracted.
            covariance.value = ((1 - rate) * (covariance.value + rate * gap[:, None] * gap[None])
                                + rate * own_covariance)
            mean.value = mean.value + rate * gap
            batches.value = batches.value + seen
        variance = jnp.diagonal(covariance.value)
        std = jnp.sqrt(jnp.where(variance > 1e-12, variance, 1))
        correlation = covariance.value / (std[:, None] * std[None])
        cuts = np.cumsum(widths)[:-1].tolist()
        blocks = [jnp.split(rows, cuts, 1) for rows in jnp.split(correlation, cuts)]
        return Known(jnp.split(mean.value, cuts), jnp.split(std, cuts), blocks, batches.value)


def _moments(x, mask):
    """Mean, covariance and number of the rows under the mask, on all devices."""
    count = total(jnp.sum(mask, dtype=jnp.float32))
    rows = jnp.maximum(count, 1)
    mean = total(jnp.sum(jnp.where(mask[:, None], x, 0), 0)) / rows
    centred = jnp.where(mask[:, None], x - mean[None], 0)
    return mean, total(centred.T @ centred) / rows, count


def canonical(
    x: Float[Array, 'd d'], xy: Float[Array, 'd e'], y: Float[Array, 'e e'], count: int, ridge: float
) -> tuple[Float[Array, 'd k'], Float[Array, 'e k']]:
    """The k = min(count, d, e) pairs of directions along which two vectors correlate best, best first.

    x, y: correlations of the vectors with themselves. xy: with one another.
    """
    of_x, of_y = _whitening(x, ridge), _whitening(y, ridge)
    u, _, v = _svd(of_x.T @ xy @ of_y)
    return of_x @ u[:, :count], of_y @ v[:count].T


def _whitening(correlation, ridge):
    """[d d] W with W^T (correlation + ridge) W = 1."""
    values, vectors = _eigh(correlation)
    return vectors * jax.lax.rsqrt(jnp.maximum(values, 0) + ridge)[None]


def agreement(
    known: Known, z: Sequence[Float[Array, 'b _']], count: int, ridge: float
) -> Float[Array, 'b m m']:
    """The correlation of every two streams' canonical projections of an item; 1 before anything is known.

    z: the vectors at zero mean and unit variance.
    """
    found = {(i, i): jnp.ones(len(x)) for i, x in enumerate(z)}
    for i, j in itertools.combinations(range(len(z)), 2):
        of_i, of_j = canonical(known.correlation[i][i], known.correlation[i][j], known.correlation[j][j], count, ridge)
        a, b = z[i] @ of_i, z[j] @ of_j
        size = jnp.sqrt(jnp.sum(jnp.square(a), -1) * jnp.sum(jnp.square(b), -1))
        cosine = jnp.sum(a * b, -1) / jnp.maximum(size, 1e-12)
        found[i, j] = found[j, i] = jnp.where(known.batches > 0, cosine, 1)
    return jnp.stack([jnp.stack([found[i, j] for j in range(len(z))], -1) for i in range(len(z))], 1)


def effective(
    correlation: Float[Array, 'b m m'], there: Bool[Array, 'b m'], threshold: float
) -> Bool[Array, 'b m']:
    """Which streams agree with another one, or are alone; where none is left, those that are there."""
    pairs = there[:, :, None] & there[:, None] & ~jnp.eye(there.shape[1], dtype=bool)[None]
    agrees = jnp.any(pairs & (correlation >= threshold), -1)
    passed = there & (agrees | ~jnp.any(pairs, -1))
    return jnp.where(jnp.any(passed, -1, keepdims=True), passed, there)


def translated(
    known: Known, z: Sequence[Float[Array, 'b _']], passed: Bool[Array, 'b m'], ridge: float
) -> Sequence[Float[Array, 'b _']]:
    """What the effective streams let expect of each other one: the mean of their linear regressions.

    z and the result: at zero mean and unit variance; 0 where no other stream is effective.
    """
    expected = []
    for j, own in enumerate(z):
        others = [i for i in range(len(z)) if i != j]
        summed = jnp.zeros_like(own)
        for i in others:
            ridged = known.correlation[i][i] + ridge * jnp.eye(z[i].shape[-1])
            summed += jnp.where(passed[:, i, None], z[i] @ _solve(ridged, known.correlation[i][j]), 0)
        count = sum((passed[:, i, None].astype(own.dtype) for i in others), jnp.zeros((len(own), 1)))
        expected.append(summed / jnp.maximum(count, 1))
    return expected


def replaced(stream: Stream, proxy: Float[Array, 'b d'], passed: Bool[Array, 'b']) -> Stream:
    """The stream, or where it did not pass the proxy as its only step."""
    first = jnp.broadcast_to((jnp.arange(stream.mask.shape[1]) == 0)[None], stream.mask.shape)
    return Stream(jnp.where(passed[:, None, None], stream.x, proxy[:, None]),
                  jnp.where(passed[:, None], stream.mask, first))


def at_moments(x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], count: int) -> Float[Array, 'b {count} d']:
    """`count` of the present steps, of which there must be one, equally far apart; the last is the last step."""
    rank = jnp.cumsum(mask, 1)
    wanted = -(-jnp.arange(1, count + 1)[None] * rank[:, -1:] // count)
    index = jnp.sum(rank[:, None] < wanted[..., None], -1)
    return jnp.take_along_axis(x, index[..., None], 1)


class _Memory(nn.Module):
    """The memory of the memory fusion network: attention over what changed, kept and written by two gates.

    width: of the memory. hidden: inside the networks. dropout: rate in front of their layers.
    """

    width: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, 'b s d'], *, train: bool) -> Float[Array, 'b {self.width}']:
        pair = jnp.concatenate([jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1], x], -1)
        scores = MLP((self.hidden, pair.shape[-1]), self.dropout, name='attention')(pair, train=train)
        attended = nn.softmax(scores) * pair
        written = jnp.tanh(MLP((self.hidden, self.width), self.dropout, name='candidate')(attended, train=train))
        keep, write = (Dense(self.width, name=name) for name in ('keep', 'write'))
        memory = jnp.zeros((len(x), self.width))
        for k in range(x.shape[1]):
            seen = jnp.concatenate([attended[:, k], memory], -1)
            memory = nn.sigmoid(keep(seen)) * memory + nn.sigmoid(write(seen)) * written[:, k]
        return memory


def multiplicative(
    log_p: Float[Array, 'b m c'], label: Label, there: Bool[Array, 'b m'], beta: float
) -> losses.Term:
    """-sum_i p_i^(beta / (m - 1)) log p_i over the streams that are there, p_i their true class's probability.

    beta = 0 is the sum of their cross entropies.
    """
    truth = jnp.where(label.mask, label.value, 0)
    true = jnp.take_along_axis(log_p, truth[:, None, None], -1)[..., 0]
    each = -jnp.exp(beta / max(true.shape[1] - 1, 1) * true) * true
    counts = jnp.asarray(label.mask) & jnp.any(there, 1)
    value = jnp.sum(jnp.where(there & counts[:, None], each, 0), 1)
    return losses.Term(value, counts.astype(value.dtype))


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """Cross entropy of the fused scores and the multiplicative loss of the streams' decisions."""
    label = losses.target(batch.labels)
    if not jnp.issubdtype(jnp.result_type(label.value), jnp.integer):
        raise ValueError(f'm3er: label: found values of type {jnp.result_type(label.value)}, '
                         'expected class indices, whose probabilities the loss multiplies')
    decisions = multiplicative(out.aux['decisions'], label, out.aux['effective'], model.beta)
    return losses.weighted({'label': losses.cross_entropy(out.logits, label), 'decisions': decisions},
                           decisions=model.decision_weight)

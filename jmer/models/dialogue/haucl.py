"""HAUCL: fusion by a hypergraph autoencoder and contrastive learning (Yi et al., ACM MM 2024, arXiv:2408.00970).

Every modality of every turn is a node of a hypergraph: one hyperedge holds the nodes of a modality, one those of a
turn. A variational autoencoder encodes nodes and hyperedges and says of every node which of its two hyperedges it
stays in. It is sampled twice; a convolution over each of the two hypergraphs gives a view of the nodes, and their sum
is scored. Besides the focal loss, the two views of a node are drawn together and apart from all other nodes of the
dialogue, and the autoencoder has to tell where nodes belong. Text may come as several vectors of a turn.

Written from a specification of the authors' code, whose recorded outputs are random, so that there is nothing to be
equal to, and whose parameters' names are not known here. Where this differs from that code on purpose: sampling
belongs to training, and evaluation takes the means of codes and memberships; the second view in the contrast is the
second one, theirs by mistake the first again; the decoder's two scores are one, their difference; wrong memberships
are one hyperedge of either kind for every node, those of another turn and of another modality; padding is masked; a
modality missing in a turn is a node that is not there, and speakers beyond the last known one share its vector.
Inferred: three convolutions as in M3NET, whose means over a hyperedge count the members that stay; dropout and ReLU
in front of the scores; the contrast of each dialogue by itself, at a temperature of 0.5, behind two layers;
divergences averaged over nodes, or hyperedges, and over features.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtr
from jaxtyping import Bool, Float, PRNGKeyArray

from jmer import losses
from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.diffusion import noise
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Label, Output

TAGS = ('deep fusion', 'joint representation', 'graph-based', 'contrastive', 'recurrent', 'context', 'speaker-aware',
        'missing modality')
LABELS = ('class',)
Code = tuple[Array, Array]


class Model(Checked):
    """The defaults are the authors' for MELD. Attributes:
    classes: number of scores of a turn.
    texts: names of the streams that are normalised, averaged to one and read by a bidirectional GRU.
    streams: names of the others.
    width: of the nodes, both directions of the GRU together.
    hidden: width of the autoencoder and of the convolutions.
    layers: convolutions over the hypergraph.
    speakers: how many speakers have a vector, which is added to the text.
    dropout: rate in the GRU and in front of the scores.
    sample_temperature: of the memberships' gradient in training.
    contrast_temperature: by which the contrast divides its cosines.
    gamma: exponent of the focal loss.
    contrast_weight, generator_weight: of the losses besides the focal one.
    """

    classes: int
    texts: tuple[str, ...] = ('text',)
    streams: tuple[str, ...] = ('audio', 'vision')
    width: int = 512
    hidden: int = 512
    layers: int = 3
    speakers: int = 9
    dropout: float = 0.4
    sample_temperature: float = 0.1
    contrast_temperature: float = 0.5
    gamma: float = 2.5
    contrast_weight: float = 0.5
    generator_weight: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        texts = graph.modal_nodes(batch, self.texts)
        nodes = jnp.concatenate([texts.any(1, keepdims=True), graph.modal_nodes(batch, self.streams)], 1)
        others = [Dense(self.width, name=f'project_{name}')(turn_vectors(batch.streams[name]))
                  for name in self.streams]
        x: Array = jnp.stack([self._text(batch, texts, nodes[:, 0], train), *others], 1)
        told = (True, *(False for _ in self.streams))
        x = graph.NodeVectors(self.speakers, told, name='vectors')(x, batch)
        x, nodes = x.swapaxes(1, 2), nodes.swapaxes(1, 2)
        h = jnp.where(nodes[..., None], Dense(self.hidden, name='graph_in')(x), 0)
        key = self.make_rng('dropout') if train else None
        made = Generator(self.hidden, self.sample_temperature, name='generator')(h, nodes, key)
        biases = self.param('biases', nn.initializers.zeros, (self.layers, self.hidden))
        views = jax.vmap(lambda keep: _convolve(h, keep, nodes, biases))(made.keep)
        seen = Dense(self.hidden, name='contrast_1')(nn.relu(Dense(self.hidden, name='contrast_0')(views)))
        h = jnp.where(nodes[..., None], jnp.concatenate([x, 2 * views.mean(0)], -1), 0)
        h = h.reshape(*h.shape[:2], -1)
        aux = {'nodes': nodes, 'generated': made, 'views': seen, 'graph': h}
        h = nn.relu(Dropout(self.dropout, name='dropout_head')(h, train=train))
        h = Dense(12 * self.classes, name='hidden')(h)
        return Output(Dense(self.classes, name='head')(h), aux)

    def _text(self, batch: Batch, there: Array, present: Array, train: bool) -> Array:
        """The mean of the normalised texts that are there, read by the GRU."""
        texts = [BatchNorm(name=f'norm_{k}')(turn_vectors(batch.streams[name]), there[:, k], train=train)
                 for k, name in enumerate(self.texts)]
        mask = there[..., None]
        x = jnp.where(mask, jnp.stack(texts, 1), 0).sum(1) / jnp.maximum(mask.sum(1), 1)
        x = Dense(self.width, name='project_text')(x)
        return BiGRU(self.width // 2, 2, self.dropout, name='context')(x, present, train=train)


class Generated(NamedTuple):
    """What the autoencoder makes of a hypergraph.

    keep: for every sample, how much each node [b u m] stays in the hyperedges of its modality and of its turn,
        [n b u m 2]: 0 or 1 in training, otherwise the probability.
    error: mean cross entropy of the right and wrong memberships of a turn, in all samples, [b u].
    pairs: how many memberships those are, [b u].
    nodes, edges: divergence of the codes of nodes [b u m] and hyperedges [b m+u] from the standard normal.
    there: which hyperedges have a member, [b m+u].
    """

    keep: Array
    error: Array
    pairs: Array
    nodes: Array
    edges: Array
    there: Array


class Generator(nn.Module):
    """Variational autoencoder of a hypergraph: what belongs where, from the features of its nodes.

    Attributes:
        width: of the nodes and of everything inside.
        temperature: of the gradient through a sampled membership.
    """

    width: int
    temperature: float

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u m {self.width}'], nodes: Bool[Array, 'b u m'], key: PRNGKeyArray | None
    ) -> Generated:
        """With a key two samples, without one the means."""
        pool, there = SetPooling(self.width, name='to_edges'), jnp.concatenate([nodes.any(1), nodes.any(2)], 1)
        edges = nn.relu(jnp.concatenate([pool(x.swapaxes(1, 2), nodes.swapaxes(1, 2)), pool(x, nodes)], 1))
        both = jnp.broadcast_to(nodes[..., None], (*nodes.shape, 2))
        x = nn.relu(SetPooling(self.width, name='to_nodes')(_of_nodes(edges, nodes), both))
        codes = self._code('node', x), self._code('edge', edges)
        keep, error, pairs = self._decode(codes, nodes, there, key)
        nodes_apart, edges_apart = (_divergence(code) for code in codes)
        return Generated(keep, error, pairs, nodes_apart, edges_apart, there)

    def _decode(self, codes: tuple[Code, Code], nodes: Array, there: Array, key: PRNGKeyArray | None):
        """`keep`, `error` and `pairs` of what is made; samples are rows of a larger batch meanwhile."""
        samples = 1 if key is None else 2
        noise_of = _draw(key, samples, nodes.shape, self.width)
        (node, edge), mask, there = jax.tree.map(lambda a: jnp.concatenate([a] * samples), (codes, nodes, there))
        node, edge = (mean + deviation * noise_of[name] for name, (mean, deviation) in
                      (('node', node), ('edge', edge)))
        elsewhere, wrong = _elsewhere(edge, mask, there, noise_of['step'])
        hidden, out = Dense(self.width, name='decode_0'), Dense(1, name='decode_1')
        scores, misplaced = (out(nn.relu(hidden(node[..., None, :] * of)))[..., 0]
                             for of in (_of_nodes(edge, mask), elsewhere))
        right = jnp.broadcast_to(mask[..., None], scores.shape)
        error = jnp.where(right, nn.softplus(-scores), 0) + jnp.where(wrong, nn.softplus(misplaced), 0)
        pairs = (right.astype(jnp.int32) + wrong).sum((2, 3))
        keep = nn.sigmoid(scores) if key is None else _choose(scores, noise_of['member'], self.temperature)
        keep, error, pairs = (a.reshape(samples, -1, *a.shape[1:])
                              for a in (jnp.where(right, keep, 0), error.sum((2, 3)), pairs))
        return keep, error.sum(0) / jnp.maximum(pairs.sum(0), 1), pairs.sum(0)

    def _code(self, name: str, x: Array) -> Code:
        """Mean and standard deviation."""
        mean, spread = (Dense(self.width, name=f'{name}_{part}')(x) for part in ('mean', 'deviation'))
        return mean, nn.softplus(spread) + 1e-6


class SetPooling(nn.Module):
    """A learned query that attends to the members of a set, with one head (Chien et al., ICLR 2022).

    The linear map of the values follows the weighted mean, which is the same and costs less.
    """

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, '*b s {self.width}'], mask: Bool[Array, '*b s']
    ) -> Float[Array, '*b {self.width}']:
        weights = graph.softmax(nn.leaky_relu(Dense(1, use_bias=False, name='score')(x)[..., 0], 0.2), mask)
        found = Dense(self.width, name='value')(jnp.einsum('...s,...sd->...d', weights, x))
        query = self.param('query', nn.initializers.normal(self.width**-0.5), (self.width,))
        x = layer_norm('norm_0')(found + query.reshape((1,) * (found.ndim - 1) + (-1,)))
        y = Dense(self.width, name='contract')(nn.relu(Dense(self.width, name='expand')(x)))
        return layer_norm('norm_1')(x + nn.relu(y))


def _of_nodes(edges: Array, nodes: Array) -> Array:
    """Of every node the hyperedges of its modality and of its turn, from [b m+u d]: [b u m 2 d]."""
    m = nodes.shape[2]
    both = jnp.broadcast_arrays(edges[:, None, :m], edges[:, m:, None])
    return jnp.stack(both, 3)


def _draw(key: PRNGKeyArray | None, samples: int, shape: tuple[int, ...], width: int) -> dict[str, Array]:
    """Normal noise, the same for a turn however far the batch is padded; zeros without a key.

    One draw for all: of the dialogue, then of every modality, then of every turn.
    """
    b, u, m = shape
    steps, size = 1 + m + u, (m + 1) * width + 2 * m
    x = jnp.zeros((b, steps, samples * size)) if key is None else noise(key, b, steps, samples * size)
    x = jnp.moveaxis(x.reshape(b, steps, samples, size), 2, 0).reshape(samples * b, steps, size)
    node, edge, member = jnp.split(x, [m * width, (m + 1) * width], -1)
    return {'node': node[:, 1 + m:].reshape(-1, u, m, width), 'edge': edge[:, 1:],
            'member': member[:, 1 + m:].reshape(-1, u, m, 2), 'step': member[:, 0, :2]}


def _elsewhere(edges: Array, nodes: Array, there: Array, drawn: Array) -> tuple[Array, Array]:
    """Two hyperedges where a node does not belong, [b u m 2 d], and where there are any, [b u m 2].

    They are those some modalities and some turns further on, around the end; drawn [b 2] decides how many.
    """
    _, u, m = nodes.shape
    counts = jnp.stack([jnp.full(len(nodes), m), nodes.any(2).sum(1)], 1)
    steps = 1 + (ndtr(drawn) * (counts - 1)).astype(counts.dtype)
    modality = (jnp.arange(m)[None] + steps[:, :1]) % m
    turn = (jnp.arange(u)[None] + steps[:, 1:]) % jnp.maximum(counts[:, 1:], 1)
    at = jnp.concatenate([modality, m + turn], 1)
    real = jnp.take_along_axis(there, at, 1) & (at != jnp.arange(m + u)[None])
    moved = _of_nodes(jnp.take_along_axis(edges, at[..., None], 1), nodes)
    return moved, _of_nodes(real[..., None], nodes)[..., 0] & nodes[..., None]


def _choose(scores: Array, normal: Array, temperature: float) -> Array:
    """1 at the probability that a score stands for, else 0, with the gradient of a soft choice.

    That is the hard Gumbel softmax of two choices: the difference of two Gumbel numbers is logistic.
    """
    scores = scores + log_ndtr(normal) - log_ndtr(-normal)
    soft = nn.sigmoid(scores / temperature)
    return (scores > 0) + soft - jax.lax.stop_gradient(soft)


def _divergence(code: Code) -> Array:
    """From the standard normal distribution, in nats, averaged over the features."""
    mean, deviation = code
    return 0.5 * (jnp.square(mean) + jnp.square(deviation) - 1 - 2 * jnp.log(deviation)).mean(-1)


def _convolve(
    x: Float[Array, 'b u m d'],
    keep: Float[Array, 'b u m 2'],
    nodes: Bool[Array, 'b u m'],
    biases: Float[Array, 'n d'],
) -> Float[Array, 'b u m d']:
    """Every node reads the means of its two hyperedges, as far as it stays in them, layer after layer."""
    kept = {axis: keep[..., k, None] for k, axis in enumerate((1, 2))}          # a modality runs over the turns
    for bias in biases:
        read = sum(own * (own * x).sum(axis, keepdims=True) * _inverse(own.sum(axis, keepdims=True))
                   for axis, own in kept.items())
        x = jnp.where(nodes[..., None], nn.leaky_relu(read / 2 + bias.reshape(1, 1, 1, -1), 0.01), 0)
    return x


def _inverse(size: Array) -> Array:
    """1 / size without a gradient, and 0 of nothing."""
    size = jax.lax.stop_gradient(size)
    return jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The focal loss, the contrast of the views, and the error and divergences of the autoencoder."""
    made, nodes = out.aux['generated'], out.aux['nodes']

    def term(value, mask):
        return losses.Term(jnp.where(mask, value, 0), mask.astype(value.dtype))

    terms = {
        'label': losses.log_focal(out.logits, losses.target(batch.labels), gamma=model.gamma),
        'contrast': _contrast(out.aux['views'], nodes, model.contrast_temperature),
        'membership': losses.Term(made.error, made.pairs.astype(made.error.dtype)),
        'divergence_nodes': term(made.nodes, nodes),
        'divergence_edges': term(made.edges, made.there),
    }
    own = dict.fromkeys(('membership', 'divergence_nodes', 'divergence_edges'), model.generator_weight)
    return losses.weighted(terms, contrast=model.contrast_weight, **own)


def _contrast(views: Array, nodes: Array, temperature: float) -> losses.Term:
    """NT-Xent in which the views of a node are a class of their own, dialogue by dialogue."""
    count, b, u, m, d = views.shape
    each = views.swapaxes(0, 1).reshape(b, count * u * m, d)
    number = jnp.broadcast_to(jnp.tile(jnp.arange(u * m), count)[None], each.shape[:2])
    label = Label(number, jnp.tile(nodes.reshape(b, u * m), (1, count)))
    return jax.vmap(lambda x, label: losses.nt_xent(x, label, temperature=temperature))(each, label)

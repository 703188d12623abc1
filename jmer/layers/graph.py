"""Graphs over the turns of dialogues, as masks, and the layers that run on them.

A graph is a boolean array [b t s]: True where turn t reads turn s (t is the target of an edge, s its
source). It is made by pure functions of masks, speakers and windows, so that a graph layer is a product of
arrays under jit, and an absent turn has no edge. A dialogue of 110 turns has 12,100 pairs, which is less
work for a processor than a list of edges. Relations are a graph each, [b r t s].

Systems with one node for every modality of a turn use `ModalGraph`: there, edges lead to other turns of the
same modality and to other modalities of the same turn, and nowhere else.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer.layers.dense import Dense
from jmer.layers.recurrent import BiGRU, BiLSTM, torch_uniform
from jmer.types import Array, Batch

Graph = Bool[Array, 'b t s']


def places(present: Bool[Array, 'b u']) -> Int[Array, 'b u']:
    """Place of every turn among the present ones of its dialogue, from 0."""
    return jnp.cumsum(present, -1) - 1


def complete(present: Bool[Array, 'b u']) -> Bool[Array, 'b u u']:
    """Every present turn reads every present one, itself included."""
    present = jnp.asarray(present)
    return present[:, :, None] & present[:, None, :]


def window(present: Bool[Array, 'b u'], past: int, future: int) -> Bool[Array, 'b u u']:
    """Every turn reads itself, `past` turns before it and `future` turns after it; -1 is all there are."""
    place = places(present)
    back = place[:, :, None] - place[:, None, :]
    near = complete(present)
    near = near & (back <= past) if past >= 0 else near
    return near & (back >= -future) if future >= 0 else near


def speakers_of(batch: Batch, count: int) -> Int[Array, 'b u']:
    """Who speaks each turn, below `count`; further speakers share the last number."""
    if batch.speakers is None:
        raise ValueError('speakers: found None, expected one number for every turn, [b u]')
    return jnp.minimum(jnp.asarray(batch.speakers), count - 1)


def same_speaker(speakers: Int[Array, 'b u']) -> Bool[Array, 'b u u']:
    """Which two turns have one speaker."""
    speakers = jnp.asarray(speakers)
    return speakers[:, :, None] == speakers[:, None, :]


def speaker_relations(
    speakers: Int[Array, 'b u'], present: Bool[Array, 'b u'], count: int
) -> Int[Array, 'b u u']:
    """The 2 * count^2 relations of DialogueGCN: speaker of the source, of the target, and which comes first.

    2 (count * source's + target's) + (0 if the source comes first, 1 if not); its own edge ends in 1.
    """
    place, speakers = places(present), jnp.asarray(speakers)
    later = (place[:, None, :] >= place[:, :, None]).astype(speakers.dtype)
    return 2 * (count * speakers[:, None, :] + speakers[:, :, None]) + later


def typed(graph: Graph, relation: Int[Array, 'b t s'], relations: int) -> Bool[Array, 'b r t s']:
    """The edges of a graph, sorted by relation into one graph each."""
    number = jnp.arange(relations).reshape(1, -1, 1, 1)
    return graph[:, None] & (relation[:, None] == number)


def predecessors(
    present: Bool[Array, 'b u'], speakers: Int[Array, 'b u'], own: int
) -> Bool[Array, 'b u u']:
    """The directed acyclic graph of DAG-ERC.

    Going back from a turn, it reads all turns until it has met `own` turns of its speaker, the last of
    them included.
    """
    place = places(present)
    past = complete(present) & (place[:, None, :] < place[:, :, None])
    met = jnp.cumsum(past & same_speaker(speakers), -1)
    return past & (met[..., -1:] - met < own)


def mean_of(graph: Bool[Array, '*b t s']) -> Float[Array, '*b t s']:
    """Weights that average over what every turn reads; zero where it reads nothing."""
    return graph / jnp.maximum(graph.sum(-1, keepdims=True), 1)


def softmax(scores: Float[Array, '*b'], mask: Bool[Array, '*b'], axis: int = -1) -> Float[Array, '*b']:
    """Softmax over what stands under True, zero elsewhere; all zero where nothing does."""
    scores = jnp.where(mask, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis, keepdims=True, initial=-1e30))
    weight = jnp.exp(scores - top)
    total = weight.sum(axis, keepdims=True)
    return weight / jnp.where(total > 0, total, 1)


class RelationalConv(nn.Module):
    """Relational graph convolution (Schlichtkrull et al., ESWC 2018).

    out_t = x_t root + bias + sum over relations r and sources s of weights[r, t, s] * x_s kernel_r. With the
    weights of edges this is the older convention of the field's libraries, with `mean_of(typed(...))` the
    newer one, a mean for every relation.

    Attributes:
        width: of the output.
        bases: number of matrices of which every kernel is a mixture; 0: every relation has its own.
    """

    width: int
    bases: int = 0

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u d'], weights: Float[Array, 'b r u u']
    ) -> Float[Array, 'b u {self.width}']:
        inputs, relations = x.shape[-1], weights.shape[1]
        glorot = nn.initializers.glorot_uniform(batch_axis=(0,))
        if self.bases:
            basis = self.param('basis', glorot, (self.bases, inputs, self.width))
            mixture = self.param('mixture', torch_uniform(self.bases), (relations, self.bases))
            kernel = jnp.einsum('rn,nde->rde', mixture, basis)
        else:
            kernel = self.param('kernel', glorot, (relations, inputs, self.width))
        own = Dense(self.width, kernel_init=nn.initializers.glorot_uniform(), name='root')(x)
        sent = jnp.einsum('bsd,rde->brse', x, kernel)
        return own + jnp.einsum('brts,brse->bte', weights.astype(x.dtype), sent)


class GraphConv(nn.Module):
    """Graph convolution with a root weight (Morris et al., AAAI 2019): x_t root + (sum over s of x_s) kernel + bias.

    Attributes:
        width: of the output.
    """

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b u d'], graph: Bool[Array, 'b u u']) -> Float[Array, 'b u {self.width}']:
        read = jnp.einsum('bts,bsd->btd', graph.astype(x.dtype), x)
        return Dense(self.width, name='neighbours')(read) + Dense(self.width, use_bias=False, name='root')(x)


class MatchingAttention(nn.Module):
    """Every turn's mean over the turns it may see, weighted by a bilinear score (Luong et al., EMNLP 2015).

    Scores are tanh((W x_t + b) . x_s), not scaled.

    Attributes:
        squash: whether scores pass the tanh.
    """

    squash: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u d'], seen: Bool[Array, 'b u u']
    ) -> tuple[Float[Array, 'b u d'], Float[Array, 'b u u']]:
        """The means, and their weights [b t s]."""
        queries = Dense(x.shape[-1], name='transform')(x)
        scores = jnp.einsum('btd,bsd->bts', queries, x)
        weights = softmax(jnp.tanh(scores) if self.squash else scores, seen)
        return jnp.einsum('bts,bsd->btd', weights, x), weights


class ModalGraph(NamedTuple):
    """A graph, or its weights, over the nodes [b m u]: modality m of turn u.

    within: from turn s to turn t of modality m, [b m t s].
    across: from modality n to modality m of turn u, [b m n u]; nothing from m to itself.
    """

    within: Array
    across: Array


def modal_graph(nodes: Bool[Array, 'b m u'], within: Bool[Array, 'b u u']) -> ModalGraph:
    """Edges `within` every modality and between all modalities of a turn, where both nodes are present."""
    nodes = jnp.asarray(nodes)
    other = ~jnp.eye(nodes.shape[1], dtype=bool)[None, :, :, None]
    return ModalGraph(within[:, None] & nodes[:, :, :, None] & nodes[:, :, None, :],
                      other & nodes[:, :, None] & nodes[:, None])


def read(weights: ModalGraph, x: Float[Array, 'b m u d']) -> Float[Array, 'b m u d']:
    """What every node reads: the sum of its sources by their weights."""
    within = jnp.einsum('bmts,bmsd->bmtd', weights.within.astype(x.dtype), x)
    return within + jnp.einsum('bmnu,bnud->bmud', weights.across.astype(x.dtype), x)


def degree(weights: ModalGraph) -> Array:
    """The sum of every node's weights, [b m u]."""
    return weights.within.sum(-1) + weights.across.sum(2)


def symmetric(weights: ModalGraph) -> ModalGraph:
    """Every weight divided by the roots of the degrees at its ends; zero where there is no edge."""
    total = degree(weights)
    scale = jnp.where(total > 0, jax.lax.rsqrt(jnp.where(total > 0, total, 1).astype(jnp.float32)), 0)
    return ModalGraph(weights.within * scale[:, :, :, None] * scale[:, :, None, :],
                      weights.across * scale[:, :, None] * scale[:, None])


def modal_softmax(scores: ModalGraph, graph: ModalGraph) -> ModalGraph:
    """Weights of all that a node reads, which sum to 1; scores and weights [b h m t s] and [b h m n u]."""
    across = jnp.swapaxes(scores.across, -1, -2)
    turns, mask = scores.within.shape[-1], jnp.swapaxes(graph.across, -1, -2)
    joined = softmax(jnp.concatenate([scores.within, across], -1),
                     jnp.broadcast_to(jnp.concatenate([graph.within, mask], -1)[:, None],
                                      (*scores.within.shape[:-1], turns + across.shape[-1])))
    return ModalGraph(joined[..., :turns], jnp.swapaxes(joined[..., turns:], -1, -2))


def modal_nodes(batch: Batch, streams: tuple[str, ...]) -> Bool[Array, 'b m u']:
    """Which streams of which turns are there."""
    masks = [jnp.asarray(batch.streams[name].mask) for name in streams]
    masks = [mask.any(-1) if mask.ndim == 3 else mask for mask in masks]
    return jnp.stack(masks, 1) & batch.present[:, None]


class NodeVectors(nn.Module):
    """Adds learned vectors that tell where nodes come from.

    Attributes:
        speakers: how many speakers have a vector; further ones share the last.
        told: for every modality, whether its nodes are told their speaker.
        modalities: add a vector of its modality to every node as well.
    """

    speakers: int
    told: tuple[bool, ...]
    modalities: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, 'b m u d'], batch: Batch) -> Float[Array, 'b m u d']:
        width, count = x.shape[-1], len(self.told)
        if any(self.told):
            vectors = nn.Embed(self.speakers, width, name='speakers')(speakers_of(batch, self.speakers))
            x = x + jnp.where(jnp.array(self.told)[None, :, None, None], vectors[:, None], 0)
        if self.modalities:
            x = x + nn.Embed(count, width, name='modalities')(jnp.arange(count))[None, :, None]
        return x


def angular(x: Float[Array, 'b m u d'], graph: ModalGraph, across: float = 1.0) -> ModalGraph:
    """Edge weights 1 - angle / pi between the nodes they join, symmetrically normalised (MMGCN, ACL 2021).

    across: factor of the weights between modalities. A node without edges keeps weights of zero.
    """
    # A vector of zeros is orthogonal to all others, and its length has a gradient.
    unit = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))

    def likeness(cosine):
        return 1 - jnp.arccos(jnp.clip(0.99999 * cosine, -0.99999, 0.99999)) / jnp.pi

    weights = ModalGraph(
        jnp.where(graph.within, likeness(jnp.einsum('bmtd,bmsd->bmts', unit, unit)), 0),
        jnp.where(graph.across, across * likeness(jnp.einsum('bmud,bnud->bmnu', unit, unit)), 0))
    return symmetric(weights)


def gcnii(
    x: Float[Array, 'b m u d'],
    first: Float[Array, 'b m u d'],
    weights: ModalGraph,
    kernel: Float[Array, '2*d d'],
    alpha: float,
    theta: Float[Array, ''],
) -> Float[Array, 'b m u d']:
    """A layer of GCNII (Chen et al., ICML 2020) without its ReLU, in the variant with a kernel for each half.

    With y what a node reads: theta [y | first] kernel + (1 - theta) ((1 - alpha) y + alpha first).
    """
    y = read(weights, x)
    mixed = jnp.concatenate([y, first], -1) @ kernel
    return theta * mixed + (1 - theta) * ((1 - alpha) * y + alpha * first)


class GraphAttention(nn.Module):
    """Attention along the edges of a modal graph: GAT, or with `dynamic` GATv2; the mean of all heads.

    GAT (Velickovic et al., ICLR 2018) scores an edge leaky(a . W x_s + b . W x_t), GATv2 (Brody et al., ICLR
    2022) a . leaky(W x_s + V x_t + U e) with e the vector of the edge's relation; the slope is 0.2.

    Attributes:
        width: of a head, and of the output.
        heads: how many.
        past, future: the graph's window; -1 for all turns.
        dynamic: GATv2.
    """

    width: int
    heads: int
    past: int = -1
    future: int = -1
    dynamic: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'b m u d'],
        graph: ModalGraph,
        relation: Int[Array, 'b u u'] | None = None,
        vectors: Float[Array, 'r e'] | None = None,
    ) -> Float[Array, 'b m u {self.width}']:
        """graph: with an edge from every node to itself.

        relation: of the edges within modalities, below r - 1, which is the relation of those across. The
        edge from a node to itself takes the mean vector of the others.
        """
        shape = self.heads, self.width
        init = nn.initializers.glorot_uniform()
        sent = Dense(self.heads * self.width, use_bias=self.dynamic, kernel_init=init, name='source')(x)
        sent = sent.reshape(*x.shape[:3], *shape)
        if self.dynamic:
            asked = Dense(self.heads * self.width, kernel_init=init, name='target')(x).reshape(sent.shape)
            kernel = self.param('score', init, shape)
            table = None
            if vectors is not None:
                table = Dense(self.heads * self.width, use_bias=False, kernel_init=init, name='relation')(vectors)
            scores = self._dynamic(sent, asked, kernel, graph, relation, table)
        else:
            left, right = (jnp.einsum('bmuhd,hd->bmuh', sent, self.param(name, init, shape))
                           for name in ('score_source', 'score_target'))
            scores = ModalGraph(_leaky(left[:, :, None] + right[:, :, :, None]),
                                _leaky(left[:, None] + right[:, :, None]))
        weights = modal_softmax(ModalGraph(*(jnp.moveaxis(s, -1, 1) for s in scores)), graph)
        within = jnp.einsum('bhmts,bmshd->bmtd', weights.within, sent)
        across = jnp.einsum('bhmnu,bnuhd->bmud', weights.across, sent)
        bias = self.param('bias', nn.initializers.zeros, (self.width,))
        return (within + across) / self.heads + bias.reshape(1, 1, 1, -1)

    def _dynamic(self, sent, asked, kernel, graph, relation, table):
        """Scores of GATv2, [b m t s h] and [b m n u h], offset by offset.

        A product of turns, turns and features does not fit where dialogues are long, so that only the
        scores of the window are computed.
        """
        turns = sent.shape[2]
        past, future = (turns - 1 if n < 0 else min(n, turns - 1) for n in (self.past, self.future))
        at = jnp.clip(jnp.arange(turns)[:, None] + jnp.arange(-past, future + 1)[None], 0, turns - 1)            # [t k]
        ids = jnp.zeros((1, turns, turns), jnp.int32) if relation is None else jnp.asarray(relation)
        ids = jnp.moveaxis(jnp.take_along_axis(ids, at[None], axis=2), -1, 0)
        kernel = kernel.astype(sent.dtype)
        told = jnp.zeros_like(kernel)[None] if table is None else table.reshape(-1, *kernel.shape).astype(sent.dtype)
        ids = jnp.broadcast_to(ids, (len(ids), len(sent), turns))
        band = _band(past, sent, asked, told, kernel, ids)                               # [k b m t h]
        within = _unrolled(band.transpose(1, 2, 4, 3, 0))[..., past:past + turns].transpose(0, 1, 3, 4, 2)
        across = _score(sent[:, None] + asked[:, :, None] + told[-1].reshape(1, 1, 1, 1, *kernel.shape), kernel)
        if table is not None:
            own = _score(sent + asked + self._own_vectors(graph, relation, table).reshape(sent.shape), kernel)
            within = jnp.where(jnp.eye(turns, dtype=bool)[None, None, :, :, None], own[:, :, :, None], within)
        return ModalGraph(within, across)

    def _own_vectors(self, graph, relation, table):
        """Mean of the relations' vectors over the edges that lead to a node, but for its own."""
        other = graph.within & ~jnp.eye(relation.shape[1], dtype=bool)[None, None]
        kinds = jax.nn.one_hot(relation, len(table), dtype=table.dtype)
        counts = jnp.einsum('bmts,btsr->bmtr', other.astype(table.dtype), kinds)
        counts = counts.at[..., -1].add(graph.across.sum(2))
        return counts / jnp.maximum(counts.sum(-1, keepdims=True), 1) @ table


def _leaky(x):
    return nn.leaky_relu(x, 0.2)


def _score(z, kernel):
    return jnp.sum(kernel.reshape((1,) * (z.ndim - 2) + kernel.shape) * _leaky(z), -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _band(past, sent, asked, told, kernel, ids):
    """Scores kernel . leaky(sent_s + asked_t + told_i) for turns s = t - past + k, by k, [k b m t h].

    ids: which row of `told` an edge takes, [k b t]. The backward pass computes the sums once more, offset by
    offset. It leaves the kernel, a factor of all it adds up, to the end, and finds the kernel's own gradient
    there: what it has added up is the slope times the gradient of the score, and the slope times a sum is leaky
    of it.
    """
    return _band_forward(past, sent, asked, told, kernel, ids)[0]


def _unrolled(band: Float[Array, '*b t k']) -> Float[Array, '*b t n']:
    """Every row moved to the right by its number, zero around it; n = t + k - 1.

    As a reshape: rows one longer than they end up are laid out one after the other. To pick the entries one by
    one would be slow, and their gradient slower.
    """
    *front, turns, offsets = band.shape
    rows = jnp.pad(band, [(0, 0)] * (len(front) + 1) + [(0, turns)]).reshape(*front, -1)
    return rows[..., :-turns].reshape(*front, turns, turns + offsets - 1)


def _band_sum(shift, ids, padded, asked, told):
    return jax.lax.dynamic_slice_in_dim(padded, shift, asked.shape[2], axis=2) + asked + told[ids][:, None]


def _band_padded(past, sent, ids):
    return jnp.pad(sent, ((0, 0), (0, 0), (past, len(ids) - 1 - past), (0, 0), (0, 0)))


def _band_forward(past, sent, asked, told, kernel, ids):
    padded = _band_padded(past, sent, ids)

    def offset(_, inputs):
        shift, own = inputs
        return None, _score(_band_sum(shift, own, padded, asked, told), kernel)

    return jax.lax.scan(offset, None, (jnp.arange(len(ids)), ids))[1], (sent, asked, told, kernel, ids)


def _band_backward(past, saved, dscores):
    sent, asked, told, kernel, ids = saved
    padded, (turns, *shape) = _band_padded(past, sent, ids), asked.shape[2:]

    def offset(totals, inputs):
        shift, own, dscore = inputs
        z = _band_sum(shift, own, padded, asked, told)
        d = jnp.where(z >= 0, 1, 0.2) * dscore[..., None]
        dpadded, dasked, dtold = totals
        there = jax.lax.dynamic_slice_in_dim(dpadded, shift, turns, axis=2)
        dpadded = jax.lax.dynamic_update_slice_in_dim(dpadded, there + d, shift, axis=2)
        kinds = jnp.broadcast_to(jax.nn.one_hot(own, len(told), dtype=d.dtype)[:, None], (*d.shape[:3], len(told)))
        dtold += (kinds.reshape(-1, len(told)).T @ d.reshape(kinds[..., 0].size, -1)).reshape(told.shape)
        return (dpadded, dasked + d, dtold), None

    totals = jnp.zeros_like(padded), jnp.zeros_like(asked), jnp.zeros_like(told)
    (dsent, dasked, dtold), _ = jax.lax.scan(offset, totals, (jnp.arange(len(ids)), ids, dscores))
    pairs = (sent, dsent[:, :, past:past + turns]), (asked, dasked), (told, dtold)
    dkernel = sum(jnp.sum((x * d).reshape(-1, *shape), 0) for x, d in pairs)
    whole = kernel.reshape(1, 1, 1, *shape)
    return *(d * whole for _, d in pairs[:2]), dtold * kernel[None], dkernel, None


_band.defvjp(_band_forward, _band_backward)


def speaker_pairs(speakers: Int[Array, 'b u'], count: int) -> Int[Array, 'b u u']:
    """Number of the unordered pair of speakers: (0,0), (0,1), ..., (0,count-1), (1,1), ..."""
    speakers = jnp.asarray(speakers)
    low = jnp.minimum(speakers[:, :, None], speakers[:, None, :])
    high = jnp.maximum(speakers[:, :, None], speakers[:, None, :])
    return low * count - low * (low - 1) // 2 + high - low


class TurnEncoder(nn.Module):
    """What GraphCFC and GraphMFT make of a stream: tanh of a linear layer, or a recurrent layer between two.

    Attributes:
        width: of the output, and of one direction of the recurrent layer.
        base: width in front of the recurrent layer.
        kind: 'lstm', 'gru', or 'none'.
        layers: of the recurrent part.
        causal: no backward direction.
        dropout: rate between recurrent layers.
    """

    width: int
    base: int
    kind: str = 'none'
    layers: int = 2
    causal: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u d'], mask: Bool[Array, 'b u'], *, train: bool
    ) -> Float[Array, 'b u {self.width}']:
        if self.kind == 'none':
            return jnp.tanh(Dense(self.width, name='project')(x))
        if self.kind not in ('lstm', 'gru'):
            raise ValueError(f"turn encoder: kind: found {self.kind!r}, expected 'lstm', 'gru' or 'none'")
        x = Dense(self.base, name='project')(x)
        layer = BiLSTM if self.kind == 'lstm' else BiGRU
        width = (1 + self.causal) * self.width
        x = layer(width, self.layers, self.dropout, self.causal, name='context')(x, mask, train=train)
        return Dense(self.width, name='out')(x)

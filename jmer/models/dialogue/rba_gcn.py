"""RBA-GCN: relational bilevel aggregation over clusters of similar turns (Yuan et al., TASLP 2023, arXiv:2308.11029).

Graph generation: every modality of every turn is a node, which reads other turns of its modality and the other
modalities of its turn, and not itself. Cluster building: of these neighbours it keeps the similar ones, sorted by
relation. Bilevel aggregation: every cluster becomes one vector, and the node then chooses among its clusters, so
that what is near, what is far and what the other modalities say is never averaged into one.

Written after the paper's abstract; no code has been published, so there is nothing to be equal to. Inferred: what
reads the streams and that nodes are told their speaker; three relations, the same speaker, other speakers and
other modalities; the cosine as similarity, a fixed least value of it, and clusters that are built once; means
weighted by a softmax over the similarities, additive attention over the clusters, layer normalisation, and that
input and output of the graph are scored side by side. A node without a similar neighbour keeps what it is.
A modality missing in a turn is a node that is not there, and speakers beyond the last known one count as that one.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Output

TAGS = ('deep fusion', 'joint representation', 'graph-based', 'recurrent', 'context', 'speaker-aware',
        'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams.
    recurrent: what reads each stream: 'none', 'lstm' or 'gru'.
    width: of all vectors, and of one direction of the recurrent layers.
    base_width: in front of the recurrent layers.
    base_layers: how many of them.
    layers: of the graph.
    least_similarity: cosine that a neighbour must have to be kept, -1 to 1.
    speakers: how many speakers are told apart.
    past: how many earlier turns a turn reads; -1 for all.
    future: how many later ones.
    causal: past turns only: no backward direction, no edges from later turns.
    dropout: rate in the recurrent layers, behind each layer of the graph, and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    recurrent: tuple[str, ...] = ('gru', 'none', 'none')
    width: int = 200
    base_width: int = 200
    base_layers: int = 1
    layers: int = 2
    least_similarity: float = 0.0
    speakers: int = 2
    past: int = -1
    future: int = -1
    causal: bool = False
    dropout: float = 0.4

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.recurrent) != len(self.streams):
            raise ValueError(f'rba_gcn: recurrent: found {self.recurrent}, expected one for each of {self.streams}')
        nodes = graph.modal_nodes(batch, self.streams)
        read = [graph.TurnEncoder(self.width, self.base_width, kind, self.base_layers, self.causal, self.dropout,
                                  name=f'encode_{name}')(turn_vectors(batch.streams[name]), nodes[:, m], train=train)
                for m, (name, kind) in enumerate(zip(self.streams, self.recurrent, strict=True))]
        x: Array = graph.NodeVectors(self.speakers, (True,) * len(read), name='vectors')(jnp.stack(read, 1), batch)
        x = jnp.where(nodes[..., None], x, 0)
        clusters = self._clusters(x, nodes, batch)
        h: Array = x
        chosen = []
        for k in range(self.layers):
            made, weights = Bilevel(self.width, name=f'layer_{k}')(h, clusters)
            h = jnp.where(nodes[..., None], h + Dropout(self.dropout, name=f'dropout_{k}')(made, train=train), 0)
            chosen.append(weights)
        joined = jnp.concatenate([x, h], -1).swapaxes(1, 2)
        joined = joined.reshape(*joined.shape[:2], -1)
        h = Dropout(self.dropout, name='dropout_head')(nn.relu(Dense(self.width, name='fuse')(joined)), train=train)
        return Output(Dense(self.classes, name='head')(h), {'clusters': clusters, 'chosen': tuple(chosen)})

    def _clusters(self, x: Array, nodes: Bool[Array, 'b m u'], batch: Batch) -> dict[str, Array]:
        """The neighbours of every node that are like it, by relation, with weights that sum to 1 in each.

        Of the same speaker and of others [b m t s], and of other modalities [b m n u].
        """
        turns = graph.window(batch.present, self.past, 0 if self.causal else self.future)
        turns = turns & ~jnp.eye(turns.shape[1], dtype=bool)[None]
        own = graph.same_speaker(graph.speakers_of(batch, self.speakers))[:, None]
        edges, like = graph.modal_graph(nodes, turns), similarity(x)
        near = edges.within & (like.within >= self.least_similarity)
        across = edges.across & (like.across >= self.least_similarity)
        return {'own': graph.softmax(like.within, near & own), 'others': graph.softmax(like.within, near & ~own),
                'across': graph.softmax(like.across, across, axis=2)}


class Bilevel(nn.Module):
    """What a node makes of its clusters: one vector of each, then the choice among them.

    Attributes:
        width: of the output.
    """

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b m u d'], clusters: Mapping[str, Array]
    ) -> tuple[Float[Array, 'b m u {self.width}'], Float[Array, 'b m u k']]:
        """The new vectors, and the weights of the clusters; both are zero for a node that has none."""
        read = {name: _read(name, weights, x) for name, weights in clusters.items()}
        there = jnp.stack([is_there for _, is_there in read.values()], 3)
        means = jnp.stack([Dense(self.width, use_bias=False, name=f'cluster_{name}')(mean)
                           for name, (mean, _) in read.items()], 3)
        asked = Dense(self.width, name='query')(x)[..., None, :]
        scores = Dense(1, use_bias=False, name='score')(jnp.tanh(asked + means))[..., 0]
        chosen = graph.softmax(scores, there)
        made = nn.relu(layer_norm('norm')(jnp.einsum('bmuk,bmukd->bmud', chosen, means)))
        return jnp.where(jnp.any(there, -1, keepdims=True), made, 0), chosen


def _read(name: str, weights: Array, x: Array) -> tuple[Array, Array]:
    """The mean of a cluster of every node, and whether there is one."""
    if name == 'across':
        return jnp.einsum('bmnu,bnud->bmud', weights, x), jnp.any(weights > 0, 2)
    return jnp.einsum('bmts,bmsd->bmtd', weights, x), jnp.any(weights > 0, -1)


def similarity(x: Float[Array, 'b m u d']) -> graph.ModalGraph:
    """Cosines of all nodes that could have an edge; a vector of zeros is orthogonal to all others."""
    unit = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))
    return graph.ModalGraph(jnp.einsum('bmtd,bmsd->bmts', unit, unit), jnp.einsum('bmud,bnud->bmnu', unit, unit))

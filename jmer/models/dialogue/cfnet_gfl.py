"""CFNet-GFL: cross-modal fusion network with graph feature learning (Cao et al., JCUPT 2024).

Cross-modal module: every stream of a dialogue attends to the turns of every other one. Graph feature learning: with
a node for each stream of each turn, a first graph joins the turns of a modality and learns its context, a second
one joins the modalities of a turn and learns how they interact. Turns are scored by what both graphs say.

Written after the paper's abstract; no code has been published, so there is nothing to be equal to. Inferred: what
reads the streams, and that nodes are told their speaker; post-norm attention, whose results of all sources are
added; graph attention in both graphs, the second upon the first; residual connections; and that what enters the
graphs is scored beside what both make. A modality missing in a turn is a node that is not there, and speakers
beyond the last known one share its vector.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.transformer import Attention, layer_norm
from jmer.types import Array, Batch, Output

TAGS = ('deep fusion', 'joint representation', 'cross-modality attention', 'multi-head attention', 'transformer',
        'graph-based', 'graph attention', 'recurrent', 'context', 'speaker-aware', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of two streams or more.
    recurrent: what reads each stream: 'none', 'lstm' or 'gru'.
    width: of all vectors, and of one direction of the recurrent layers; a multiple of `heads`.
    base_width: in front of the recurrent layers.
    base_layers: how many of them.
    cross_layers: of the cross-modal module.
    context_layers: of the graph of every modality.
    interaction_layers: of the graph between modalities.
    heads: of every attention.
    hidden: width inside the feed-forward networks of the cross-modal module.
    speakers: how many speakers have a vector.
    past: how many earlier turns a turn reads in the graph; -1 for all.
    future: how many later ones.
    causal: past turns only: no backward direction, no attention to later turns and no edges from them.
    dropout: everywhere.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    recurrent: tuple[str, ...] = ('gru', 'none', 'none')
    width: int = 200
    base_width: int = 200
    base_layers: int = 1
    cross_layers: int = 1
    context_layers: int = 2
    interaction_layers: int = 1
    heads: int = 4
    hidden: int = 400
    speakers: int = 2
    past: int = 10
    future: int = 10
    causal: bool = False
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.recurrent) != len(self.streams) or len(self.streams) < 2:
            raise ValueError(f'cfnet_gfl: streams and recurrent: found {self.streams} and {self.recurrent}, expected '
                             'two streams or more and as many readers')
        nodes = graph.modal_nodes(batch, self.streams)
        read = [graph.TurnEncoder(self.width, self.base_width, kind, self.base_layers, self.causal, self.dropout,
                                  name=f'encode_{name}')(turn_vectors(batch.streams[name]), nodes[:, m], train=train)
                for m, (name, kind) in enumerate(zip(self.streams, self.recurrent, strict=True))]
        x: Array = graph.NodeVectors(self.speakers, (True,) * len(read), name='vectors')(jnp.stack(read, 1), batch)
        x = jnp.where(nodes[..., None], x, 0)
        for k in range(self.cross_layers):
            x = self._cross(k, x, nodes, batch, train)
        context, interaction = self._graphs(nodes, batch)
        c = self._learn('context', self.context_layers, x, nodes, context, train)
        i = self._learn('interaction', self.interaction_layers, c, nodes, interaction, train)
        joined = jnp.concatenate([x, c, i], -1).swapaxes(1, 2)
        joined = joined.reshape(*joined.shape[:2], -1)
        h = Dropout(self.dropout, name='dropout_head')(nn.relu(Dense(self.width, name='fuse')(joined)), train=train)
        return Output(Dense(self.classes, name='head')(h), {'cross': x, 'context': c, 'interaction': i})

    def _cross(self, k: int, x: Array, nodes: Bool[Array, 'b m u'], batch: Batch, train: bool) -> Array:
        """A layer of the cross-modal module, in which every stream reads every other one, [b m u d]."""
        turns = graph.window(batch.present, -1, 0 if self.causal else -1)
        made = []
        for m, target in enumerate(self.streams):
            found = jnp.zeros_like(x[:, m])
            for n, source in enumerate(self.streams):
                if n != m:
                    seen = turns & nodes[:, n, None, :]
                    found += Attention(self.heads, self.dropout, name=f'{target}_from_{source}_{k}')(
                        x[:, m], x[:, n], seen, train=train)
            made.append(self._feed_forward(f'{target}_{k}', x[:, m], found, train))
        return jnp.where(nodes[..., None], jnp.stack(made, 1), 0)

    def _feed_forward(self, name: str, x: Array, found: Array, train: bool) -> Array:
        """The second half of a transformer layer, behind its attention."""
        x = layer_norm(f'norm_{name}')(x + Dropout(self.dropout, name=f'dropout_{name}')(found, train=train))
        h = Dropout(self.dropout, name=f'dropout_hidden_{name}')(
            nn.relu(Dense(self.hidden, name=f'expand_{name}')(x)), train=train)
        h = Dense(self.width, name=f'contract_{name}')(h)
        return layer_norm(f'norm_hidden_{name}')(x + h)

    def _graphs(self, nodes: Bool[Array, 'b m u'], batch: Batch) -> tuple[graph.ModalGraph, graph.ModalGraph]:
        """Edges between the turns of a modality, and between the modalities of a turn; each with its own node."""
        turns = graph.window(batch.present, self.past, 0 if self.causal else self.future)
        whole = graph.modal_graph(nodes, turns)
        itself = jnp.eye(turns.shape[1], dtype=bool)[None, None]
        return (whole._replace(across=jnp.zeros_like(whole.across)), whole._replace(within=whole.within & itself))

    def _learn(self, name: str, layers: int, x: Array, nodes: Bool[Array, 'b m u'], edges: graph.ModalGraph,
               train: bool) -> Float[Array, 'b m u d']:
        """Layers of graph attention, each added to what it reads."""
        for k in range(layers):
            made = nn.elu(graph.GraphAttention(self.width, self.heads, dynamic=False, name=f'{name}_{k}')(x, edges))
            x = x + Dropout(self.dropout, name=f'dropout_{name}_{k}')(made, train=train)
            x = jnp.where(nodes[..., None], x, 0)
        return x

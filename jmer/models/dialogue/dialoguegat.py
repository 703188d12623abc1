"""MM DialogueGAT: a fusion graph attention network over several streams of a dialogue (Fu et al., IEEE Access 2024).

A bidirectional GRU reads every stream. One of them is the main one: its turns attend to those of each other stream by
multi-head attention, and what they find is joined to them. Then layers of graph attention run over a window of turns,
in which one attention reads the turns of the same speaker and one those of the others. What enters and what leaves the
graph is scored.

Written after the paper; no code has been published, so there is nothing to be equal to. Inferred: all widths and the
window; a linear layer that joins; GAT with the mean of its heads, ELU, and the layer's input added; two attentions for
what the paper calls the roles in a dialogue. Speakers are only compared, so there may be any number. A turn whose main
stream is missing has the states of the turns around it, and a missing other stream is not attended to. `causal` leaves
out backward directions and later turns.
"""

import flax.linen as nn
import jax.numpy as jnp

from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU
from jmer.layers.transformer import Attention
from jmer.types import Array, Batch, Output

TAGS = ('deep fusion', 'cross-modality attention', 'multi-head attention', 'graph attention', 'graph-based',
        'recurrent', 'context', 'speaker-aware', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: what is read, the main stream first.
    width: hidden size of one direction of the GRUs; both together a multiple of `heads`, with `causal` one.
    heads: of the attention between streams.
    hidden: width of the graph layers.
    layers: of graph attention.
    graph_heads: of each of the two attentions in them.
    past, future: how many earlier and later turns a turn reads in the graph; -1 for all.
    causal: read the past only.
    dropout: of the joined streams, in front of every graph layer and of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    width: int = 100
    heads: int = 4
    hidden: int = 100
    layers: int = 2
    graph_heads: int = 4
    past: int = 10
    future: int = 10
    causal: bool = False
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        read = [BiGRU(self.width, causal=self.causal, name=f'gru_{name}')(
            turn_vectors(batch.streams[name]), batch.present, train=train) for name in self.streams]
        joined: Array = jnp.concatenate(self._attend(read, batch, train), -1)
        fused: Array = nn.relu(Dense(self.hidden, name='join')(joined))
        around = self._graph(fused, batch, train)
        h = Dropout(self.dropout, name='dropout_head')(jnp.concatenate([fused, around], -1), train=train)
        return Output(Dense(self.classes, name='head')(h), {'fused': fused, 'graph': around})

    def _attend(self, read: list[Array], batch: Batch, train: bool) -> list[Array]:
        """The main stream, and what it finds in each of the others."""
        main, *others = read
        turns = graph.window(batch.present, -1, 0 if self.causal else -1)
        there = graph.modal_nodes(batch, self.streams)
        found = [Attention(self.heads, self.dropout, name=f'attend_{name}')(
            main, other, turns & there[:, m, None], train=train)
            for m, (name, other) in enumerate(zip(self.streams[1:], others, strict=True), 1)]
        return [main, *found]

    def _graph(self, x: Array, batch: Batch, train: bool) -> Array:
        turns = graph.window(batch.present, self.past, 0 if self.causal else self.future)
        speakers = jnp.zeros(turns.shape[:2], int) if batch.speakers is None else batch.speakers
        same = graph.same_speaker(speakers)
        nodes = jnp.asarray(batch.present)[:, None]
        roles = {'own': graph.modal_graph(nodes, turns & same), 'others': graph.modal_graph(nodes, turns & ~same)}
        for k in range(self.layers):
            h = Dropout(self.dropout, name=f'dropout_{k}')(x, train=train)[:, None]
            own, others = (graph.GraphAttention(self.hidden, self.graph_heads, dynamic=False, name=f'{role}_{k}')(
                h, edges) for role, edges in roles.items())
            x = x + nn.elu(own + others)[:, 0]
        return x

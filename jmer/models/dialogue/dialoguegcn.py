"""DialogueGCN: graph convolution over the turns and speakers of a dialogue (Ghosal et al., EMNLP 2019).

The streams of a turn are concatenated and read by a bidirectional recurrent layer. In the graph every turn
reads a window of turns; an edge's relation says who speaks at its ends and which end comes first, its weight
is learned attention. A relational convolution and a plain one run over the graph; each turn may then attend
to the whole dialogue.

Where this differs from the authors' code: theirs runs the backward direction over the padding first and lets
edge weights see it; here a dialogue is read as if it were alone. Their attention has a row of weights for
every position up to the longest dialogue they know; later positions share the last row. What their softmax
keeps of turns outside the window (1e-10 of their probability) is dropped. A modality missing in a turn counts
as zeros, and speakers beyond the last known one share its number.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer.author import Reader
from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dialogue_rnn import DialogueRNN
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU, BiLSTM
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('early fusion', 'joint representation', 'graph-based', 'graph attention', 'recurrent', 'context',
        'speaker-aware', 'missing modality')
BASES = ('lstm', 'gru', 'dialoguernn', 'none')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    width: hidden size of one direction of the context layers.
    hidden: width of the graph layers and of the layer in front of the scores.
    speakers: how many speakers the relations tell apart.
    past: how many earlier turns a turn reads; -1 for all.
    future: how many later ones.
    base: what reads the context: 'lstm', 'gru', 'dialoguernn', or 'none' for a linear layer.
    layers: layers of the LSTM or GRU.
    global_width, party_width, context, context_width, listeners: of `layers.dialogue_rnn.DialogueRNN`, where
        it is the base.
    bases: matrices of which those of the relations are mixtures.
    max_turns: positions with attention weights of their own.
    attention: let every turn attend to the whole dialogue after the graph.
    causal: past turns only: no backward direction, no later turns in graph and attention.
    dropout: rate between context layers and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text',)
    width: int = 100
    hidden: int = 100
    speakers: int = 2
    past: int = 10
    future: int = 10
    base: str = 'lstm'
    layers: int = 2
    global_width: int = 150
    party_width: int = 150
    context: str = 'general'
    context_width: int = 100
    listeners: int = 0
    bases: int = 30
    max_turns: int = 110
    attention: bool = True
    causal: bool = False
    dropout: float = 0.4

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x = self._context(jnp.concatenate([turn_vectors(batch.streams[n]) for n in self.streams], -1), batch, train)
        edges = graph.window(batch.present, self.past, 0 if self.causal else self.future)
        speakers = graph.speakers_of(batch, self.speakers)
        relation = graph.speaker_relations(speakers, batch.present, self.speakers)
        weights = self._edge_weights(x, batch.present, edges)
        typed = graph.typed(edges, relation, 2 * self.speakers**2)
        h = graph.RelationalConv(self.hidden, self.bases, name='relational')(x, typed * weights[:, None])
        h = graph.GraphConv(self.hidden, name='convolution')(h, edges)
        aux = {'context': x, 'graph': h, 'edges': edges, 'relation': relation, 'edge_weights': weights}
        x = jnp.concatenate([x, h], -1)
        if self.attention:
            seen = graph.window(batch.present, -1, 0 if self.causal else -1)
            x, aux['attention'] = graph.MatchingAttention(name='attention')(x, seen)
        x = nn.relu(Dense(self.hidden, name='hidden')(x))
        x = Dropout(self.dropout, name='dropout_head')(x, train=train)
        return Output(Dense(self.classes, name='head')(x), aux)

    def _context(self, x: Array, batch: Batch, train: bool):
        if self.base not in BASES:
            raise ValueError(f'dialoguegcn: base: found {self.base!r}, expected one of {", ".join(BASES)}')
        if self.base == 'none':
            return Dense(2 * self.width, name='context')(x)
        if self.base == 'dialoguernn':
            speakers = graph.speakers_of(batch, jnp.iinfo(jnp.int32).max)
            return jnp.concatenate([self.recurrence(name)(x, speakers, batch.present, train=train)
                                    for name in self.directions()], -1)
        layer = BiLSTM if self.base == 'lstm' else BiGRU
        width = (1 + self.causal) * self.width
        return layer(width, self.layers, self.dropout, self.causal, name='context')(x, batch.present, train=train)

    def directions(self) -> tuple[str, ...]:
        return ('forward',) if self.causal else ('forward', 'backward')

    def recurrence(self, name: str, **place: Any) -> DialogueRNN:
        """One direction of DialogueRNN as the base."""
        return DialogueRNN(self.global_width, self.party_width, (1 + self.causal) * self.width, self.context,
                           self.context_width, self.listeners, self.dropout, name == 'backward',
                           name=f'context_{name}', **place)

    def _edge_weights(self, x, present, edges):
        """Weights [b t s] with which a turn sends: a softmax over those that read it, by its position.

        Online, where later readers are unknown, a softmax over what a turn reads takes its place.
        """
        positions = self.param('positions', nn.initializers.lecun_normal(), (x.shape[-1], self.max_turns))
        own = jnp.minimum(jnp.maximum(graph.places(present), 0), self.max_turns - 1)
        scores = jnp.take_along_axis(x @ positions, own[:, None], axis=2)
        return graph.softmax(scores, edges, axis=2 if self.causal else 1)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of declare-lab/conv-emotion, DialogueGCN."""
    reader, width, hidden = Reader(state, 'dialoguegcn'), 2 * model.width, model.hidden
    reader.skip('att_model.matchatt.*', 'att_model.simpleatt.*', 'att_model.att.*')     # stored, never used
    params = _context(reader, model) | {
        'positions': reader.take('att_model.scalar.weight', model.max_turns, width).T,
        'relational': {
            'basis': reader.take('graph_net.conv1.basis', model.bases, width, hidden),
            'mixture': reader.take('graph_net.conv1.att', 2 * model.speakers**2, model.bases),
            'root': {'kernel': reader.take('graph_net.conv1.root', width, hidden),
                     'bias': reader.take('graph_net.conv1.bias', hidden)},
        },
        'convolution': {
            'neighbours': {'kernel': reader.take('graph_net.conv2.weight', hidden, hidden),
                           'bias': reader.take('graph_net.conv2.lin.bias', hidden)},
            'root': reader.dense('graph_net.conv2.lin', hidden, hidden, bias=False),
        },
        'hidden': reader.dense('graph_net.linear', width + hidden, hidden),
        'head': reader.dense('graph_net.smax_fc', hidden, model.classes),
    }
    if model.attention:
        transform = reader.dense('graph_net.matchatt.transform', width + hidden, width + hidden)
        params['attention'] = {'transform': transform}
    else:
        reader.skip('graph_net.matchatt.*')     # stored and not used when attention is off
    reader.close()
    return {'params': params}


def _context(reader: Reader, model: Model) -> Params:
    if model.base == 'none':
        return {'context': reader.dense('base_linear', reader.width('base_linear.weight', 1), 2 * model.width)}
    if model.base == 'dialoguernn':
        cells = {'forward': 'dialog_rnn_f.dialogue_cell', 'backward': 'dialog_rnn_r.dialogue_cell'}
        return {f'context_{name}': reader.dialogue_rnn(cells[name], model.recurrence(name, parent=None))
                for name in model.directions()}
    inputs = reader.width(f'{model.base}.weight_ih_l0', 1)
    return {'context': reader.recurrent(model.base, model.base, inputs, model.width, model.layers)}

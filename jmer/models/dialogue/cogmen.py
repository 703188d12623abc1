"""COGMEN: contextualised graph network over turns and speakers (Joshi et al., NAACL 2022, arXiv:2205.02455).

The streams of a turn are concatenated; a transformer encoder, or a bidirectional recurrent layer, reads the
dialogue. In the graph every turn reads a window of turns by a relational convolution, whose relations say who
speaks at the ends of an edge and which end comes first, then by a graph transformer; batch normalisation and
two linear layers score the turns.

Where this differs from the authors' code: their transformer attends to padding and their batch normalisation
counts it; here a dialogue is read as if it were alone. They store layers that they never use. A modality missing
in a turn counts as zeros, and speakers beyond the last known one share its number. Their task with seven
classes of sentiment, which has a head of its own, is not here.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer.author import Reader
from jmer.layers import graph
from jmer.layers.attention import attend
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU, BiLSTM
from jmer.layers.transformer import PostNormLayer
from jmer.types import Array, Batch, Output, Variables

TAGS = ('early fusion', 'joint representation', 'graph-based', 'graph attention', 'multi-head attention',
        'transformer', 'context', 'speaker-aware', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    hidden: width of the graph layers (of a head, in the second) and of the layer in front of the scores.
    speakers: how many speakers the relations tell apart.
    past: how many earlier turns a turn reads; -1 for all.
    future: how many later ones.
    context: what reads the dialogue first: 'transformer', 'lstm' or 'gru'.
    layers: layers of the context.
    heads: of the transformer; 0: the first of 7 to 14 that divides the width of a turn, or else 1.
    transformer_hidden: width inside its feed-forward networks.
    width: hidden size of one direction of a recurrent context.
    graph_heads: of the graph transformer.
    keep_context: put what the graph is given beside what it makes, in front of the scores.
    highway: pass both through a highway layer.
    dropout: rate in the context and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text', 'vision')
    hidden: int = 100
    speakers: int = 2
    past: int = 5
    future: int = 5
    context: str = 'transformer'
    layers: int = 2
    heads: int = 0
    transformer_hidden: int = 2048
    width: int = 100
    graph_heads: int = 1
    keep_context: bool = False
    highway: bool = False
    dropout: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x = self._context(jnp.concatenate([turn_vectors(batch.streams[n]) for n in self.streams], -1),
                          batch.present, train)
        edges = graph.window(batch.present, self.past, self.future)
        speakers = graph.speakers_of(batch, self.speakers)
        relation = graph.speaker_relations(speakers, batch.present, self.speakers)
        typed = graph.typed(edges, relation, 2 * self.speakers**2)
        h = graph.RelationalConv(self.hidden, name='relational')(x, graph.mean_of(typed))
        h = self._transform(h, edges)
        h = nn.leaky_relu(BatchNorm(name='norm')(h, batch.present, train=train), 0.01)
        aux = {'context': x, 'graph': h, 'edges': edges, 'relation': relation}
        h = jnp.concatenate([x, h], -1) if self.keep_context else h
        h = self._highway(h) if self.highway else h
        h = nn.relu(Dense(self.hidden, name='hidden')(h))
        h = Dropout(self.dropout, name='dropout_head')(h, train=train)
        return Output(Dense(self.classes, name='head')(h), aux)

    def _context(self, x: Array, present: Array, train: bool):
        if self.context in ('lstm', 'gru'):
            layer = BiLSTM if self.context == 'lstm' else BiGRU
            return layer(self.width, self.layers, self.dropout, name='context')(x, present, train=train)
        if self.context != 'transformer':
            raise ValueError(f"cogmen: context: found {self.context!r}, expected 'transformer', 'lstm' or 'gru'")
        heads = self.heads or next((n for n in range(7, 15) if x.shape[-1] % n == 0), 1)
        for k in range(self.layers):
            x = PostNormLayer(heads, self.transformer_hidden, dropout=self.dropout, hidden_dropout=self.dropout,
                              name=f'transformer_{k}')(x, present, train=train)
        return Dense(self.hidden, name='context')(x)

    def _transform(self, x, edges):
        """The graph transformer (Shi et al., IJCAI 2021): attention along the edges, beside a linear layer."""
        width = self.hidden * self.graph_heads
        q, k, v = (Dense(width, name=name)(x) for name in ('query', 'key', 'value'))
        return attend(q, k, v, edges, heads=self.graph_heads) + Dense(width, name='skip')(x)

    def _highway(self, x):
        new, old, gate = (Dense(x.shape[-1], name=f'highway_{name}')(x) for name in ('new', 'old', 'gate'))
        gate = nn.sigmoid(gate)
        return gate * nn.relu(new) + (1 - gate) * old


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of Exploration-Lab/COGMEN."""
    reader, hidden = Reader(state, 'cogmen'), model.hidden
    reader.skip('rnn.encoding_layer.*', 'rnn.LayerNorm.*', 'clf.emotion_att.*', 'clf.lin_7.*', 'clf.linear.*',
                'clf.nll_loss.weight')      # stored, never used; the last are the class weights of the loss
    params: dict[str, Any] = {}
    if model.context == 'transformer':
        inputs = reader.width('rnn.transformer_out.weight', 1) or 1
        for k in range(model.layers):
            params[f'transformer_{k}'] = reader.transformer_layer(
                f'rnn.transformer_encoder.layers.{k}', inputs, model.transformer_hidden)
        params['context'] = reader.dense('rnn.transformer_out', inputs, hidden)
        width = hidden
    else:
        first, width = reader.width('rnn.rnn.weight_ih_l0', 1), 2 * model.width
        params['context'] = reader.recurrent(model.context, 'rnn.rnn', first, model.width, model.layers)
    out = hidden * model.graph_heads
    params['relational'] = {
        'kernel': reader.take('gcn.conv1.weight', 2 * model.speakers**2, width, hidden),
        'root': {'kernel': reader.take('gcn.conv1.root', width, hidden),
                 'bias': reader.take('gcn.conv1.bias', hidden)},
    }
    for name in ('query', 'key', 'value', 'skip'):
        params[name] = reader.dense(f'gcn.conv2.lin_{name}', hidden, out)
    params['norm'], statistics = reader.batch_norm('gcn.bn', out)
    joined = out + width if model.keep_context else out
    if model.highway:
        for ours, theirs in (('new', 'nonlinear'), ('old', 'linear'), ('gate', 'gate')):
            params[f'highway_{ours}'] = reader.dense(f'clf.highway.{theirs}.0', joined, joined)
    params['hidden'] = reader.dense('clf.lin1', joined, hidden)
    params['head'] = reader.dense('clf.lin2', hidden, model.classes)
    reader.close()
    return {'params': params, 'batch_stats': {'norm': statistics}}

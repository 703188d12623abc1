"""GCNet: graph completion network for conversations with missing modalities (Lian et al., TPAMI 2023).

The streams of a turn are concatenated, zeros where one is missing, and read by a bidirectional LSTM. Two graph
networks follow, one whose relations say which of two turns comes first, one whose relations say who speaks; each
is a relational and a plain convolution over a window of turns and another LSTM. Their sum is scored, and the
features of all streams are reconstructed from it.

Where this differs from the authors' code: theirs runs the backward LSTMs over the padding first, numbers its
relations anew in every process, and weighs the reconstruction of a padded batch by the turns of others; here a
dialogue is read as if it were alone. They draw the missing modalities in front of the model and hand it the
truth beside them; here a missing modality has no truth, and `modality_dropout` hides some that are there, whose
truth the loss then knows. The authors' two streams for host and guest are one: a turn has one speaker.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jmer import losses
from jmer.author import Reader
from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.masked import MaskedDense
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiLSTM
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('early fusion', 'joint representation', 'graph-based', 'recurrent', 'context', 'speaker-aware',
        'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    width: hidden size of one direction of the first LSTM; the graph layers are half as wide.
    speakers: how many speakers the relations tell apart; further ones share the last number.
    past: how many earlier turns a turn reads; -1 for all.
    future: how many later ones.
    attention: let every turn attend to the whole dialogue after each graph.
    causal: past turns only: no backward direction, no later turns in graph and attention.
    modality_dropout: rate at which streams of turns are hidden in training, to be reconstructed; of the
        streams that a turn has, one always stays.
    dropout: rate between the layers of the LSTMs and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text', 'vision')
    width: int = 200
    speakers: int = 2
    past: int = 2
    future: int = 2
    attention: bool = False
    causal: bool = False
    modality_dropout: float = 0.0
    dropout: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        present = jnp.asarray(batch.present)
        features = [turn_vectors(batch.streams[name]) for name in self.streams]
        hidden = self._hide(graph.modal_nodes(batch, self.streams), train)
        x: Array = jnp.concatenate([jnp.where(hidden[:, m, :, None], 0, f) for m, f in enumerate(features)], -1)
        x = self._lstm(self.width, 'context')(x, present, train=train)

        edges = graph.window(present, self.past, 0 if self.causal else self.future)
        place, speakers = graph.places(present), graph.speakers_of(batch, self.speakers)
        order = 1 + jnp.sign(place[:, None, :] - place[:, :, None])      # the source is earlier, the same, later
        pairs = self.speakers * speakers[:, :, None] + speakers[:, None, :]
        h = (self._network('temporal', x, graph.typed(edges, order, 3), edges, present, train)
             + self._network('speaker', x, graph.typed(edges, pairs, self.speakers**2), edges, present, train))
        made = MaskedDense(sum(f.shape[-1] for f in features), name='reconstruct')(h, present)
        aux = {'context': x, 'hidden': h, 'reconstruction': made, 'dropped': hidden}
        return Output(Dense(self.classes, name='head')(h), aux)

    def _lstm(self, width: int, name: str) -> BiLSTM:
        return BiLSTM((1 + self.causal) * width, 2, self.dropout, self.causal, name=name)

    def _hide(self, nodes, train: bool):
        """Which streams of which turns are hidden at random, [b m u]."""
        if not (train and self.modality_dropout):
            return jnp.zeros_like(nodes)
        order = jnp.where(nodes, jax.random.uniform(self.make_rng('dropout'), nodes.shape), -1)
        # One number decides both: the largest of a turn stays, of the others those below the rate go.
        return nodes & (order < self.modality_dropout) & (order < order.max(1, keepdims=True))

    def _network(self, name: str, x, typed, edges, present, train: bool):
        """Two convolutions over the graph, and an LSTM over what they were given and what they made."""
        width = self.width // 2
        h = graph.RelationalConv(width, name=f'{name}_relational')(x, graph.mean_of(typed))
        h = graph.GraphConv(width, name=f'{name}_convolution')(h, edges)
        h = jnp.concatenate([x, h], -1)
        d = h.shape[-1]
        h = self._lstm(d, f'{name}_context')(h, present, train=train)
        if self.attention:
            seen = graph.window(present, -1, 0 if self.causal else -1)
            h = graph.MatchingAttention(name=f'{name}_attention')(h, seen)[0]
        h = nn.relu(MaskedDense(d, name=f'{name}_out')(h, present))
        return Dropout(self.dropout, name=f'{name}_dropout')(h, train=train)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The loss of the labels, and the squared error of what was hidden, by width, summed over the streams."""
    nodes = graph.modal_nodes(batch, model.streams) & out.aux['dropped']
    error, start = jnp.zeros(batch.present.shape), 0
    for m, name in enumerate(model.streams):
        truth = turn_vectors(batch.streams[name])
        made = out.aux['reconstruction'][..., start:start + truth.shape[-1]]
        error += jnp.where(nodes[:, m], jnp.square(made - truth).mean(-1), 0)
        start += truth.shape[-1]
    weight = jnp.asarray(batch.present).astype(error.dtype)
    return {'label': losses.task(out.logits, batch.labels), 'reconstruction': losses.Term(error, weight)}


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of zeroQiaoba/GCNet."""
    reader, width = Reader(state, 'gcnet'), 2 * model.width
    d = width + model.width // 2
    reader.skip('gru.*')        # stored, never used
    inputs = reader.width('lstm.weight_ih_l0', 1)
    params = {'context': reader.recurrent('lstm', 'lstm', inputs, model.width, 2)}
    for name, relations in (('temporal', 3), ('speaker', model.speakers**2)):
        params |= {f'{name}_{k}': v for k, v in _network(reader, name, relations, model).items()}
    params['reconstruct'] = reader.dense('linear_rec', d, inputs or 1)
    params['head'] = reader.dense('smax_fc', d, model.classes)
    reader.close()
    return {'params': params}


def _network(reader: Reader, name: str, relations: int, model: Model) -> Params:
    prefix, width, hidden = f'graph_net_{name}', 2 * model.width, model.width // 2
    d = width + hidden
    params = {
        'relational': {
            'kernel': reader.take(f'{prefix}.conv1.weight', relations, width, hidden),
            'root': {'kernel': reader.take(f'{prefix}.conv1.root', width, hidden),
                     'bias': reader.take(f'{prefix}.conv1.bias', hidden)},
        },
        'convolution': {
            'neighbours': reader.dense(f'{prefix}.conv2.lin_rel', hidden, hidden),
            'root': reader.dense(f'{prefix}.conv2.lin_root', hidden, hidden, bias=False),
        },
        'context': reader.recurrent('lstm', f'{prefix}.grufusion', d, d, 2),
        'out': reader.dense(f'{prefix}.linear', 2 * d, d),
    }
    if model.attention:
        params['attention'] = {'transform': reader.dense(f'{prefix}.matchatt.transform', 2 * d, 2 * d)}
    else:
        reader.skip(f'{prefix}.matchatt.*')     # stored and not used
    return params

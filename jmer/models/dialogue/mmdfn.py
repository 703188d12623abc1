"""MM-DFN: a multimodal dynamic fusion network over a dialogue (Hu et al., ICASSP 2022, arXiv:2203.02385).

Every modality of every turn is a node of MMGCN's graph; to what is known of a turn, a recurrent layer that reads
each speaker's turns apart is added. In every graph layer an LSTM, whose steps are the layers, first decides what
of the node's history goes on; what enters and what leaves the layers is concatenated over the modalities and
scored.

Where this differs from the authors' code: theirs runs the backward directions over padding first, of a dialogue
and, behind each speaker's turns, inside it; here both are read as if they were alone (`padded_parties` has the
second as in theirs). A vector of zeros, which gives NaN in theirs, is orthogonal to all others. A modality missing
in a turn is a node that is not there. Speakers beyond the last known one are read as that one. Any number of
streams will do. Their loss is `losses.focal` with `detach`, the class weights not divided out.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jmer.author import Reader
from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout, dropout, seeds
from jmer.layers.party import by_speaker
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU, lstm_cell, torch_uniform
from jmer.types import Array, Batch, Output, Variables

TAGS = ('deep fusion', 'joint representation', 'gated', 'graph-based', 'recurrent', 'context', 'speaker-aware',
        'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams.
    recurrent: the streams that a bidirectional GRU of two layers reads.
    party_weights: for every stream, weight of what is read speaker by speaker; empty: nothing is.
    padded_parties: read zeros behind every speaker's turns, as many as there are turns of others.
    speaker_streams: the streams to which a vector of the speaker is added.
    modal_vectors: add a vector of its modality to every node.
    width: hidden size of one direction of the GRUs; nodes are twice as wide.
    hidden: width of the graph layers.
    layers: how many of them.
    alpha: share of the first layer's input in every layer.
    strength: lambda of GCNII; layer l mixes features with weight ln(lambda / l + 1).
    across: factor of the edge weights between modalities.
    memory: let an LSTM run over the layers.
    keep_input: put what enters the graph beside what leaves it, in front of the scores.
    speakers: how many speakers there are.
    causal: past turns only: no backward direction, no edges from later turns.
    dropout: rate in the graph and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision', 'text')
    recurrent: tuple[str, ...] = ('text',)
    party_weights: tuple[float, ...] = (3.0, 0.0, 1.0)
    padded_parties: bool = False
    speaker_streams: tuple[str, ...] = ()
    modal_vectors: bool = False
    width: int = 100
    hidden: int = 100
    layers: int = 16
    alpha: float = 0.2
    strength: float = 0.5
    across: float = 1.0
    memory: bool = True
    keep_input: bool = True
    speakers: int = 2
    causal: bool = False
    dropout: float = 0.4

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.party_weights) not in (0, len(self.streams)):
            raise ValueError(f'mmdfn: party_weights: found {self.party_weights}, expected one for each of '
                             f'{self.streams}, or none')
        nodes = graph.modal_nodes(batch, self.streams)
        plain = jnp.stack([Dense(2 * self.width, name=f'project_{name}')(turn_vectors(batch.streams[name]))
                           for name in self.streams], 1)
        context = {name: self._read(name, plain[:, i], nodes[:, i], train) for i, name in enumerate(self.streams)}
        x: Array = jnp.stack(list(context.values()), 1)
        if any(self.party_weights):
            x = x + self._parties(batch, plain, nodes, train)
        aux = {'context': context, 'graph_in': x}
        told = tuple(name in self.speaker_streams for name in self.streams)
        x = graph.NodeVectors(self.speakers, told, self.modal_vectors, name='vectors')(x, batch)
        x = jnp.where(nodes[..., None], x, 0)
        edges = graph.modal_graph(nodes, graph.window(batch.present, -1, 0 if self.causal else -1))
        weights = graph.angular(x, edges, self.across)
        x = Dropout(self.dropout, name='dropout_in')(x, train=train)
        first = nn.relu(Dense(self.hidden, name='graph_in')(x))
        h = self._convolve(first, weights, train)
        h = jnp.concatenate([x, h], -1) if self.keep_input else h
        h = jnp.where(nodes[..., None], h, 0).swapaxes(1, 2)
        h = h.reshape(*h.shape[:2], -1)
        aux['graph'] = h
        h = nn.relu(Dropout(self.dropout, name='dropout_head')(h, train=train))
        return Output(Dense(self.classes, name='head')(h), aux)

    def _read(self, name: str, x: Array, mask: Array, train: bool):
        if name not in self.recurrent:
            return x
        return self._layer(f'context_{name}')(x, mask, train=train)

    def _parties(self, batch: Batch, x, nodes, train: bool):
        """Every speaker's turns of every modality, read by one layer and weighed."""
        layer = self._layer('parties')
        speakers = jnp.repeat(jnp.asarray(graph.speakers_of(batch, self.speakers)), len(self.streams), 0)
        y = by_speaker(lambda x, mask: layer(x, mask, train=train), x.reshape(-1, *x.shape[2:]), speakers,
                       nodes.reshape(-1, nodes.shape[2]), self.speakers, padded=self.padded_parties)
        return jnp.array(self.party_weights, y.dtype).reshape(1, -1, 1, 1) * y.reshape(x.shape)

    def _layer(self, name: str) -> BiGRU:
        return BiGRU((1 + self.causal) * self.width, 2, self.dropout, self.causal, name=name)

    def _convolve(self, first, weights, train: bool):
        d, init = self.hidden, torch_uniform(self.hidden)
        kernels = self.param('kernels', init, (self.layers, 2 * d, d))
        shapes = {'input_kernel': (d, 4 * d), 'hidden_kernel': (d, 4 * d), 'bias': (4 * d,)}
        memory = {k: self.param(f'memory_{k}', init, shape) for k, shape in shapes.items()} if self.memory else {}
        thetas = jnp.log(self.strength / jnp.arange(1, self.layers + 1) + 1).astype(first.dtype)
        seed = seeds(self.make_rng('dropout'), self.layers + 1) if train and self.dropout else None
        x = dropout(first, self.dropout, None if seed is None else seed[-1])

        def layer(carry, own):
            x, hidden, cell = carry
            kernel, theta, seed = own
            y = x
            if memory:
                gates = x @ memory['input_kernel'] + hidden @ memory['hidden_kernel']
                hidden, cell = lstm_cell(gates + memory['bias'].reshape(1, 1, 1, -1), cell)
                y = hidden
            y = nn.relu(graph.gcnii(y, first, weights, kernel, self.alpha, theta))
            y = dropout(y, self.dropout, seed)
            return (y + x if memory else y, hidden, cell), None

        zero = jnp.zeros_like(first)
        given = kernels, thetas, None if seed is None else seed[:-1]
        return jax.lax.scan(layer, (x, zero, zero), given)[0][0]


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of zerohd4869/MM-DFN (graph type GDF)."""
    reader, letters = Reader(state, 'mmdfn'), {'audio': 'a', 'vision': 'v', 'text': 'l'}
    if not set(model.streams) <= set(letters):
        raise ValueError(f'mmdfn: streams: found {model.streams}, but the authors know {", ".join(letters)}')
    width, hidden = 2 * model.width, model.hidden
    reader.skip('att_model.*', 'gatedatt.*', 'graph_model.?_fc.*', 'graph_model.feature_fc.*',
                'graph_model.final_fc.*', 'graph_model.?_spk_embs.*')       # stored, never used
    params: dict[str, Any] = {}
    for name, letter in letters.items():
        if name in model.streams:
            inputs = reader.width(f'linear_{letter}.weight', 1)
            params[f'project_{name}'] = reader.dense(f'linear_{letter}', inputs, width)
        else:
            reader.skip(f'linear_{letter}.*')
        if name in model.streams and name in model.recurrent:
            params[f'context_{name}'] = reader.recurrent('gru', f'lstm_{letter}', width, model.width, 2)
        else:
            reader.skip(f'lstm_{letter}.*')
    if any(model.party_weights):
        params['parties'] = reader.recurrent('gru', 'rnn_parties', width, model.width, 2)
    else:
        reader.skip('rnn_parties.*')
    told = model.speakers if set(model.speaker_streams) & set(model.streams) else 0
    rows = [list(letters).index(name) for name in model.streams] if model.modal_vectors else []
    params |= reader.node_vectors('graph_model.', width, told, rows)
    if model.memory:
        params |= {f'memory_{k}': v for k, v in reader.lstm('graph_model.graph_net.rnn', hidden, hidden, 'l0').items()}
    else:
        reader.skip('graph_model.graph_net.rnn.*')
    params['graph_in'] = reader.dense('graph_model.graph_net.fcs.0', width, hidden)
    params['kernels'] = jnp.stack([
        reader.take(f'graph_model.graph_net.convs.{k}.weight', 2 * hidden, hidden) for k in range(model.layers)])
    joined = hidden + width if model.keep_input else hidden
    params['head'] = reader.dense('smax_fc', len(model.streams) * joined, model.classes)
    reader.close()
    return {'params': params}

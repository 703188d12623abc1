"""MMGCN: a deep graph convolution over all modalities of a dialogue (Hu et al., ACL 2021).

Every modality of every turn is a node. Nodes of one modality are all joined, nodes of one turn too; an edge
weighs the angle between the vectors at its ends. Layers of GCNII run over the graph; what enters and what
leaves them is concatenated over the modalities and scored.

Where this differs from the authors' code: theirs runs the backward LSTM over the padding first; here a
dialogue is read as if it were alone. Theirs fixes 64 layers whatever the option says; here `layers` counts,
4 as in their options. A vector of zeros, which gives NaN in theirs, is orthogonal to all others. A modality
missing in a turn is a node that is not there, and speakers beyond the last known one share its vector. Any
number of streams will do. The loss of their code for MELD is `losses.log_focal`.
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
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiLSTM, torch_uniform
from jmer.types import Array, Batch, Output, Variables

TAGS = ('deep fusion', 'joint representation', 'graph-based', 'recurrent', 'context', 'speaker-aware',
        'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams.
    recurrent: the streams that a bidirectional LSTM of two layers reads first.
    speaker_streams: the streams to which a vector of the speaker is added; may be empty.
    modal_vectors: add a vector of its modality to every node.
    width: hidden size of one direction of the LSTM; nodes are twice as wide.
    hidden: width of the graph layers.
    layers: how many of them.
    alpha: share of the first layer's input in every layer.
    strength: lambda of GCNII; layer l mixes features with weight ln(lambda / l + 1).
    speakers: how many speakers have a vector.
    causal: past turns only: no backward direction, no edges from later turns.
    dropout: rate in the graph and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision', 'text')
    recurrent: tuple[str, ...] = ('text',)
    speaker_streams: tuple[str, ...] = ('text',)
    modal_vectors: bool = False
    width: int = 100
    hidden: int = 100
    layers: int = 4
    alpha: float = 0.1
    strength: float = 0.5
    speakers: int = 2
    causal: bool = False
    dropout: float = 0.4

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        nodes = graph.modal_nodes(batch, self.streams)
        x: Array = jnp.stack([self._read(batch, name, nodes[:, i], train) for i, name in enumerate(self.streams)], 1)
        aux: dict[str, Any] = {'context': dict(zip(self.streams, x.swapaxes(0, 1), strict=True))}
        told = tuple(name in self.speaker_streams for name in self.streams)
        x = graph.NodeVectors(self.speakers, told, self.modal_vectors, name='vectors')(x, batch)
        x = jnp.where(nodes[..., None], x, 0)
        edges = graph.modal_graph(nodes, graph.window(batch.present, -1, 0 if self.causal else -1))
        weights = graph.angular(x, edges)
        x = Dropout(self.dropout, name='dropout_in')(x, train=train)
        first = nn.relu(Dense(self.hidden, name='graph_in')(x))
        x = jnp.concatenate([x, self._convolve(first, weights, train)], -1)
        x = jnp.where(nodes[..., None], x, 0).swapaxes(1, 2)
        x = x.reshape(*x.shape[:2], -1)
        aux |= {'weights': weights, 'graph': x}
        x = nn.relu(Dropout(self.dropout, name='dropout_head')(x, train=train))
        return Output(Dense(self.classes, name='head')(x), aux)

    def _read(self, batch: Batch, name: str, mask, train: bool):
        x: Array = Dense(2 * self.width, name=f'project_{name}')(turn_vectors(batch.streams[name]))
        if name in self.recurrent:
            x = self._layer(f'context_{name}')(x, mask, train=train)
        return x

    def _layer(self, name: str) -> BiLSTM:
        return BiLSTM((1 + self.causal) * self.width, 2, self.dropout, self.causal, name=name)

    def _convolve(self, first, weights, train: bool):
        kernels = self.param('kernels', torch_uniform(self.hidden), (self.layers, 2 * self.hidden, self.hidden))
        thetas = jnp.log(self.strength / jnp.arange(1, self.layers + 1) + 1).astype(first.dtype)
        seed = seeds(self.make_rng('dropout'), self.layers + 1) if train and self.dropout else None
        start = dropout(first, self.dropout, None if seed is None else seed[-1])

        def layer(h, own):
            kernel, theta, seed = own
            h = nn.relu(graph.gcnii(h, first, weights, kernel, self.alpha, theta))
            return dropout(h, self.dropout, seed), None

        return jax.lax.scan(layer, start, (kernels, thetas, None if seed is None else seed[:-1]))[0]


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of hujingwen6666/MMGCN (graph type MMGCN)."""
    reader, letters = Reader(state, 'mmgcn'), {'audio': 'a', 'vision': 'v', 'text': 'l'}
    if not set(model.streams) <= set(letters):
        raise ValueError(f'mmgcn: streams: found {model.streams}, but the authors know {", ".join(letters)}')
    width, hidden = 2 * model.width, model.hidden
    reader.skip('att_model.*', 'gatedatt.*', 'graph_model.?_fc.*', 'graph_model.feature_fc.*',
                'graph_model.final_fc.*', 'graph_model.?_spk_embs.*')       # stored, never used
    params: dict[str, Any] = {}
    for name, letter in letters.items():
        if name not in model.streams:
            reader.skip(f'linear_{letter}.*', f'lstm_{letter}.*')
            continue
        inputs = reader.width(f'linear_{letter}.weight', 1)
        params[f'project_{name}'] = reader.dense(f'linear_{letter}', inputs, width)
        if name in model.recurrent:
            params[f'context_{name}'] = reader.recurrent('lstm', f'lstm_{letter}', width, model.width, 2)
    told = model.speakers if set(model.speaker_streams) & set(model.streams) else 0
    rows = [list(letters).index(name) for name in model.streams] if model.modal_vectors else []
    params |= reader.node_vectors('graph_model.', width, told, rows)
    params['graph_in'] = reader.dense('graph_model.graph_net.fcs.0', width, hidden)
    params['kernels'] = jnp.stack([
        reader.take(f'graph_model.graph_net.convs.{k}.weight', 2 * hidden, hidden) for k in range(model.layers)])
    params['head'] = reader.dense('smax_fc', len(model.streams) * (width + hidden), model.classes)
    reader.close()
    return {'params': params}

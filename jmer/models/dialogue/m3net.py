"""M3NET: multivariate, multi-frequency and multimodal graph network (Chen et al., CVPR 2023).

Every modality of every turn is a node. One branch is a hypergraph: a node reads the mean of its modality over
the dialogue and the mean of its turn over the modalities. The other adds to every node its neighbours with a
signed gate, so that differences between neighbours survive. Both branches of all modalities are scored together.
Text may come as several vectors of a turn (layers of a language model), normalised one by one and averaged.

Where this differs from the authors' code: batch normalisation and the backward GRU of theirs see padding; here a
dialogue is read as if it were alone. Their hyperedges and nodes have weights by their place in the batch, so that
what is learned of a dialogue depends on its neighbours; they stay at 1 here, and `slot_weights` has them as they
are for the first dialogue of a batch. Matrices that they store and never use are not here. A modality missing in
a turn is a node that is not there, and speakers beyond the last known one share its vector. The loss of their code
for MELD is `losses.log_focal`.
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
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU, torch_uniform
from jmer.types import Array, Batch, Output, Variables

TAGS = ('deep fusion', 'joint representation', 'gated', 'graph-based', 'recurrent', 'context', 'speaker-aware',
        'missing modality')
NORMS = ('batch', 'layer', 'dialogue', 'none')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    texts: names of the streams that are averaged to one and read by a bidirectional GRU.
    streams: names of the others.
    norm: of each text, before they are averaged: 'batch'; 'layer', over the features; 'dialogue', over all
        turns and features of a dialogue, without parameters; or 'none'.
    project_text: a linear layer in front of the GRU.
    width: of the nodes, both directions of the GRU together.
    hidden: width of the graph layers.
    hyper_layers: layers of the hypergraph.
    gated_layers: layers of the gated graph.
    slot_weights: learned weights of hyperedges and nodes, by number.
    slots: how many weights of hyperedges and of nodes there are.
    keep_input: put what enters the graph beside what leaves it, in front of the scores.
    speakers: how many speakers have a vector, which is added to the text.
    dropout: rate in the GRU and in front of the scores.
    """

    classes: int
    texts: tuple[str, ...] = ('text',)
    streams: tuple[str, ...] = ('audio', 'vision')
    norm: str = 'batch'
    project_text: bool = True
    width: int = 512
    hidden: int = 512
    hyper_layers: int = 3
    gated_layers: int = 4
    slot_weights: bool = False
    slots: tuple[int, int] = (1000, 5200)
    keep_input: bool = False
    speakers: int = 2
    dropout: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if self.norm not in NORMS:
            raise ValueError(f'm3net: norm: found {self.norm!r}, expected one of {", ".join(NORMS)}')
        widths = [batch.streams[name].x.shape[-1] for name in self.texts]
        if len(set(widths)) != 1:
            raise ValueError(f'm3net: texts {self.texts}: found widths {widths}, expected one width')
        texts = graph.modal_nodes(batch, self.texts)
        nodes = jnp.concatenate([texts.any(1, keepdims=True), graph.modal_nodes(batch, self.streams)], 1)
        text = self._text(batch, texts, nodes[:, 0], train)
        others = [Dense(self.width, name=f'project_{name}')(turn_vectors(batch.streams[name]))
                  for name in self.streams]
        x: Array = jnp.stack([text, *others], 1)
        told = (True, *(False for _ in self.streams))
        x = graph.NodeVectors(self.speakers, told, name='vectors')(x, batch)
        h = jnp.where(nodes[..., None], Dense(self.hidden, name='graph_in')(x), 0)
        branches = [self._hyper(h, nodes, batch.present), self._gated(h, nodes, batch.present)]
        h = jnp.concatenate([x, *branches] if self.keep_input else branches, -1)
        h = jnp.where(nodes[..., None], h, 0).swapaxes(1, 2)
        h = h.reshape(*h.shape[:2], -1)
        aux = {'text': text, 'graph': h}
        h = nn.relu(Dropout(self.dropout, name='dropout_head')(h, train=train))
        return Output(Dense(self.classes, name='head')(h), aux)

    def _text(self, batch: Batch, there, present, train: bool) -> Array:
        """The mean of the normalised texts that are there, read by the GRU."""
        texts = [self._normalise(k, turn_vectors(batch.streams[name]), there[:, k], train)
                 for k, name in enumerate(self.texts)]
        mask = there[..., None]
        x = jnp.where(mask, jnp.stack(texts, 1), 0).sum(1) / jnp.maximum(mask.sum(1), 1)
        x = Dense(self.width, name='project_text')(x) if self.project_text else x
        return BiGRU(self.width // 2, 2, self.dropout, name='context')(x, present, train=train)

    def _normalise(self, k: int, x: Array, mask: Array, train: bool):
        if self.norm == 'batch':
            return BatchNorm(name=f'norm_{k}')(x, mask, train=train)
        if self.norm == 'layer':
            return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=f'norm_{k}')(x)
        if self.norm == 'none':
            return x
        mask = mask[..., None]
        count = jnp.maximum(mask.sum((1, 2), keepdims=True) * x.shape[-1], 1)
        x = x - jnp.where(mask, x, 0).sum((1, 2), keepdims=True) / count
        variance = jnp.where(mask, x * x, 0).sum((1, 2), keepdims=True) / count
        return x * jax.lax.rsqrt(variance + 1e-5)

    def _hyper(self, x, nodes, present):
        """Layers of the hypergraph: a hyperedge for every modality, and one for every turn."""
        edge_weight, node_weight = self._weights(nodes, present)
        mass = jnp.where(nodes, node_weight, 0)
        by_modality, by_turn = (_inverse(mass.sum(axis, keepdims=True))[..., None] for axis in (2, 1))
        share = _inverse(jnp.where(nodes, edge_weight, 0))[..., None]
        for k in range(self.hyper_layers):
            read = x.sum(2, keepdims=True) * by_modality + x.sum(1, keepdims=True) * by_turn
            bias = self.param(f'hyper_bias_{k}', nn.initializers.zeros, (self.hidden,))
            x = jnp.where(nodes[..., None], nn.leaky_relu(share * read + bias.reshape(1, 1, 1, -1), 0.01), 0)
        return x

    def _weights(self, nodes, present):
        """For every node the weights of its two hyperedges together, and its own, [b m u]."""
        if not self.slot_weights:
            return jnp.full(nodes.shape, 2.0), jnp.ones(nodes.shape)
        edges, each = (self.param(f'{name}_weights', nn.initializers.ones, (size,))
                       for name, size in zip(('edge', 'node'), self.slots, strict=True))
        place, modality = graph.places(present)[:, None], jnp.arange(nodes.shape[1])[None, :, None]
        number = modality * present.sum(-1)[:, None, None] + place
        last = [size - 1 for size in self.slots]
        of_turn = edges[jnp.clip(nodes.shape[1] + place, 0, last[0])]
        return edges[modality] + of_turn, each[jnp.clip(number, 0, last[1])]

    def _gated(self, x, nodes, present):
        """Layers in which every node adds its neighbours, by signed gates."""
        other = ~jnp.eye(present.shape[1], dtype=bool)[None]
        norm = graph.symmetric(graph.modal_graph(nodes, graph.complete(present) & other))
        for k in range(self.gated_layers):
            kernel = self.param(f'gate_{k}', torch_uniform(2 * self.hidden), (self.hidden, 2))
            bias = self.param(f'gate_bias_{k}', torch_uniform(2 * self.hidden), (1,))
            reads, sends = jnp.moveaxis(x @ kernel, -1, 0)
            reads = reads + bias.reshape(1, 1, 1)
            gates = graph.ModalGraph(jnp.tanh(reads[:, :, :, None] + sends[:, :, None]),
                                     jnp.tanh(reads[:, :, None] + sends[:, None]))
            x = x + graph.read(graph.ModalGraph(*(n * g for n, g in zip(norm, gates, strict=True))), x)
        return x


def _inverse(x):
    """1 / x, and 0 for 0."""
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of feiyuchen7/M3NET (base GRU, graph type hyper)."""
    reader, hidden = Reader(state, 'm3net'), model.hidden
    reader.skip('hidfc.*', 'graph_model.hyperedge_attr?', 'graph_model.hyperconv*.weight',
                'graph_model.hyperconv*.edgeweight', 'graph_model.hyperconv*.edgefc.*')      # stored, never used
    inputs = reader.width('linear_l.weight', 1)
    params: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    for k, letter in enumerate('abcd'):
        if k < len(model.texts) and model.norm == 'batch':
            params[f'norm_{k}'], statistics[f'norm_{k}'] = reader.batch_norm(f'normBN{letter}', inputs)
        elif k < len(model.texts) and model.norm == 'layer':
            params[f'norm_{k}'] = reader.layer_norm(f'normLN{letter}', inputs)
    reader.skip('normBN?.*', 'normLN?.*')       # both kinds are stored
    if model.project_text:
        params['project_text'] = reader.dense('linear_l', inputs, model.width)
        inputs = model.width
    else:
        reader.skip('linear_l.*')
    params['context'] = reader.recurrent('gru', 'gru_l', inputs, model.width // 2, 2)
    for name in model.streams:
        params[f'project_{name}'] = reader.dense(
            f'linear_{name[0]}', reader.width(f'linear_{name[0]}.weight', 1), model.width)
    params |= reader.node_vectors('graph_model.', model.width, model.speakers)
    params['graph_in'] = reader.dense('graph_model.fc1', model.width, hidden)
    weights = {name: reader.take(f'graph_model.{key}', size) for name, key, size in zip(
        ('edge_weights', 'node_weights'), ('hyperedge_weight', 'EW_weight'), model.slots, strict=True)}
    params |= weights if model.slot_weights else {}
    for k in range(model.hyper_layers):
        params[f'hyper_bias_{k}'] = reader.take(f'graph_model.hyperconv{k + 1}.bias', hidden)
    for k in range(model.gated_layers):
        gate = reader.dense(f'graph_model.conv{k + 1}.gate', 2 * hidden, 1)
        params[f'gate_{k}'], params[f'gate_bias_{k}'] = gate['kernel'].reshape(2, hidden).T, gate['bias']
    count = 1 + len(model.streams)
    joined = 2 * hidden + (model.width if model.keep_input else 0)
    params['head'] = reader.dense('smax_fc', count * joined, model.classes)
    reader.close()
    return {'params': params} | ({'batch_stats': statistics} if statistics else {})

"""GraphMFT: graph attention between pairs of modalities of a dialogue (Li et al., Neurocomputing 2023).

For every two streams there is a graph: a node for each of both in every turn, edges to a window of turns of the
same stream and to the other stream of the turn. Graph attention layers, whose inputs and outputs are all kept,
run over it; what the graphs say of a stream is summed, and the streams are concatenated and scored.

Where this differs from the authors' code: nothing in the results. Their layers of a graph are one and the same,
and so they are here. A modality missing in a turn is a node that is not there, speakers beyond the last known one
share its vector, and any number of streams from two on will do. Where dropout stands in training is inferred.
Their focal loss for MELD takes its class weights from the labels of the batch before; it is not here.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer.author import Reader, require_streams
from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('deep fusion', 'joint representation', 'graph-based', 'graph attention', 'recurrent', 'context',
        'speaker-aware', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams.
    recurrent: what reads each stream: 'none', 'lstm' or 'gru'.
    width: of all vectors, and of one direction of the recurrent layers.
    base_width: in front of the recurrent layers.
    base_layers: how many of them.
    layers: of every graph, by pairs of streams: first and second, first and third, second and third, ...
    heads: of the attention.
    speakers: how many speakers have a vector.
    past: how many earlier turns a turn reads; -1 for all.
    future: how many later ones.
    causal: past turns only: no backward direction, no edges from later turns.
    dropout: rate in the recurrent layers, behind each attention, and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision', 'text')
    recurrent: tuple[str, ...] = ('none', 'none', 'lstm')
    width: int = 200
    base_width: int = 400
    base_layers: int = 2
    layers: tuple[int, ...] = (5, 5, 5)
    heads: int = 4
    speakers: int = 2
    past: int = 16
    future: int = 16
    causal: bool = False
    dropout: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        pairs = list(itertools.combinations(range(len(self.streams)), 2))
        if len(self.recurrent) != len(self.streams) or len(self.layers) != len(pairs) or not pairs:
            raise ValueError(f'graphmft: recurrent and layers: found {self.recurrent} and {self.layers}, expected '
                             f'one for each of {self.streams} and one for each two of them')
        nodes = graph.modal_nodes(batch, self.streams)
        read = [graph.TurnEncoder(self.width, self.base_width, kind, self.base_layers, self.causal, self.dropout,
                                  name=f'encode_{name}')(turn_vectors(batch.streams[name]), nodes[:, m], train=train)
                for m, (name, kind) in enumerate(zip(self.streams, self.recurrent, strict=True))]
        x = graph.NodeVectors(self.speakers, (True,) * len(read), name='vectors')(jnp.stack(read, 1), batch)
        edges = graph.window(batch.present, self.past, 0 if self.causal else self.future)
        made = [jnp.zeros_like(x[:, 0]) for _ in self.streams]
        for pair, layers in zip(pairs, self.layers, strict=True):
            both = self._attend(pair, layers, x[:, pair, :], nodes[:, pair, :], edges, train)
            for m, half in zip(pair, (both[:, 0], both[:, 1]), strict=True):
                made[m] = made[m] + half
        parts = made if len(made) > 2 else [both[:, 0], both[:, 1]]
        fused = Dense(self.width, name='fuse')(jnp.concatenate(parts, -1))
        h = Dropout(self.dropout, name='dropout_head')(fused, train=train)
        return Output(Dense(self.classes, name='head')(h), {'context': tuple(read), 'fused': fused})

    def pair_name(self, pair: tuple[int, int]) -> str:
        return '_'.join(self.streams[m] for m in pair)

    def _attend(self, pair, layers: int, x: Array, nodes, edges, train: bool):
        """Layers that share their weights; all they see and make, joined and made narrow again."""
        name, present = self.pair_name(pair), nodes[..., None]
        joined = graph.modal_graph(nodes, edges)
        layer = graph.GraphAttention(self.width, self.heads, dynamic=False, name=f'attention_{name}')
        kept = [x]
        for k in range(layers):
            read = Dropout(self.dropout, name=f'dropout_{name}_{k}')(layer(kept[-1], joined), train=train)
            kept.append(kept[-1] + read)
        return jnp.where(present, Dense(self.width, name=f'out_{name}')(jnp.concatenate(kept, -1)), 0)


AUTHORS = {'audio': 'audio', 'vision': 'visual', 'text': 'text'}
LETTERS = {'audio': 'a', 'vision': 'v', 'text': 'l'}


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of lijfrank-open/GraphMFT."""
    require_streams('graphmft', model.streams, 3)
    reader, d, params = Reader(state, 'graphmft'), model.width, {}
    for name, kind in zip(model.streams, model.recurrent, strict=True):
        params[f'encode_{name}'] = reader.turn_encoder(AUTHORS[name], kind, d, model.base_width, model.base_layers)
    params |= {'vectors': {'speakers': {'embedding': reader.take('speaker_embeddings.weight', model.speakers, d)}}}
    for pair, layers in zip(itertools.combinations(range(len(model.streams)), 2), model.layers, strict=True):
        name, prefix = model.pair_name(pair), 'improvedgat_' + ''.join(LETTERS[model.streams[m]] for m in pair)
        params[f'attention_{name}'] = _attention(reader, f'{prefix}.layers.0.convs', model)
        reader.skip(f'{prefix}.layers.*')       # the same tensors, stored again for every layer
        params[f'out_{name}'] = reader.dense(f'{prefix}.out_mlp', (layers + 1) * d, d)
    params['fuse'] = reader.dense('fusion_avl.fc_out', len(model.streams) * d, d)
    params['head'] = reader.dense('smax_fc', d, model.classes)
    reader.close()
    return {'params': params}


def _attention(reader: Reader, prefix: str, model: Model) -> Params:
    heads, d = model.heads, model.width
    return {
        'source': reader.dense(f'{prefix}.lin', d, heads * d, bias=False),
        'score_source': reader.take(f'{prefix}.att_src', 1, heads, d)[0],
        'score_target': reader.take(f'{prefix}.att_dst', 1, heads, d)[0],
        'bias': reader.take(f'{prefix}.bias', d),
    }

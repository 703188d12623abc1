"""GraphCFC: a directed graph for cross-modal feature complementation (Li et al., TMM 2023, arXiv:2207.12261).

What is private to each stream and what they share are told apart by small dense networks. Three stages then join
two streams each: audio and vision, their outcome and text, the outcome of that and what is shared. In a stage both
are nodes of a graph, with edges to a window of turns of the same kind and to the other node of the turn, whose
vectors say who speaks; graph attention and feed-forward layers run over it. Every private stream, what is shared
and the last stage are scored.

Where this differs from the authors' code: theirs adds ln 2 for each of the five heads to the loss, which changes
no gradient. Their layers of a stage are one and the same, and so they are here. A modality missing in a turn is a
node that is not there, and speakers beyond the last known one share its vectors. Where dropout stands in training
is inferred.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers import graph
from jmer.layers.activation import gelu
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Label, Output, Params, Variables

TAGS = ('deep fusion', 'joint representation', 'graph-based', 'graph attention', 'recurrent', 'context',
        'speaker-aware', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of three streams; the first two are joined first.
    recurrent: what reads each stream: 'none', 'lstm' or 'gru'.
    width: of all vectors, and of one direction of the recurrent layers.
    base_width: in front of the recurrent layers.
    base_layers: how many of them.
    dense_layers: of the networks of each stream and of what is shared.
    layers: of the three stages.
    heads: of the attention.
    speakers: how many speakers have a vector.
    relations: give the edges vectors.
    norm_first: normalise what the layers of a stage read, not what they make.
    residual: add what they read to what they make.
    past: how many earlier turns a turn reads; -1 for all.
    future: how many later ones.
    causal: past turns only: no backward direction, no edges from later turns.
    dropout: rate in the recurrent layers and behind each part of a stage.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision', 'text')
    recurrent: tuple[str, ...] = ('none', 'none', 'lstm')
    width: int = 200
    base_width: int = 400
    base_layers: int = 2
    dense_layers: tuple[int, ...] = (1, 1, 1, 1)
    layers: tuple[int, ...] = (5, 5, 5)
    heads: int = 4
    speakers: int = 2
    relations: bool = True
    norm_first: bool = False
    residual: bool = True
    past: int = 18
    future: int = 18
    causal: bool = False
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        nodes = graph.modal_nodes(batch, self.streams)
        read = [graph.TurnEncoder(self.width, self.base_width, kind, self.base_layers, self.causal, self.dropout,
                                  name=f'encode_{name}')(turn_vectors(batch.streams[name]), nodes[:, m], train=train)
                for m, (name, kind) in enumerate(zip(self.streams, self.recurrent, strict=True))]
        x = graph.NodeVectors(self.speakers, (True,) * 3, name='vectors')(jnp.stack(read, 1), batch)
        x = jnp.where(nodes[..., None], x, 0)
        own = [DenseNet(self.dense_layers[m], name=f'dense_{name}')(x[:, m]) for m, name in enumerate(self.streams)]
        shared = jnp.where(nodes[..., None], DenseNet(self.dense_layers[3], name='dense_share')(x), 0)
        shared = Dense(self.width, name='share')(shared.swapaxes(1, 2).reshape(*x[:, 0].shape[:2], -1))

        speakers = graph.speakers_of(batch, self.speakers)
        edges = graph.window(batch.present, self.past, 0 if self.causal else self.future)
        relation = graph.speaker_pairs(speakers, self.speakers) if self.relations else None
        kinds = self.speakers * (self.speakers + 1) // 2 + 1
        vectors = self.param('relations', nn.initializers.normal(1.0), (kinds, self.width)) if self.relations else None
        first, there = own[0], nodes[:, 0]
        following = [(own[1], nodes[:, 1]), (own[2], nodes[:, 2]), (shared, nodes.any(1))]
        for k, (second, also) in enumerate(following):
            both = jnp.stack([there, also], 1)
            joined = graph.modal_graph(both, edges)
            x, _ = self._stage(k, train)(jnp.stack([first, second], 1), joined, relation, vectors)
            x = jnp.where(both[..., None], x, 0)
            first = Dense(self.width, name=f'fuse_{k}')(jnp.concatenate([x[:, 0], x[:, 1]], -1))
            there = there | also
        heads = {name: Dense(self.classes, name=f'head_{name}')(h)
                 for name, h in zip((*self.streams, 'share'), (*own, shared), strict=True)}
        aux = {'context': tuple(read), 'fused': first, 'heads': heads}
        return Output(Dense(self.classes, name='head')(first), aux)

    def _stage(self, k: int, train: bool):
        """Layers that share their weights. One is compiled, not all: that would take minutes."""
        repeated = nn.scan(Layer, variable_broadcast='params', split_rngs={'params': False, 'dropout': True},
                           in_axes=nn.broadcast, length=self.layers[k])
        return repeated(self.width, self.heads, self.past, 0 if self.causal else self.future, self.norm_first,
                        self.residual, self.dropout, train, name=f'stage_{k}')

    def _check(self) -> None:
        for field, count in (('streams', 3), ('recurrent', 3), ('dense_layers', 4), ('layers', 3)):
            if len(getattr(self, field)) != count:
                raise ValueError(f'graphcfc: {field}: found {getattr(self, field)}, expected {count} of them')


class DenseNet(nn.Module):
    """Two linear layers with GELU between, normalised; applied `layers` times."""

    layers: int

    @nn.compact
    def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
        expand, contract = Dense(2 * x.shape[-1], name='expand'), Dense(x.shape[-1], name='contract')
        norm = layer_norm('norm')
        for _ in range(self.layers):
            x = norm(contract(gelu(expand(x))))
        return x


class Layer(nn.Module):
    """Graph attention, then a feed-forward network; the fields are those of the model."""

    width: int
    heads: int
    past: int
    future: int
    norm_first: bool
    residual: bool
    dropout: float
    train: bool

    @nn.compact
    def __call__(self, x, edges, relation, vectors):
        attention = graph.GraphAttention(self.width, self.heads, self.past, self.future, name='attention')
        x = self._add(x, lambda y: attention(y, edges, relation, vectors), 'attention')
        return self._add(x, self._forward, 'feedforward'), None

    def _forward(self, x):
        x = gelu(Dense(2 * self.width, name='expand')(x))
        return Dense(self.width, name='contract')(x)

    def _add(self, x, part, name: str):
        norm = layer_norm(f'{name}_norm')
        y = Dropout(self.dropout, name=f'dropout_{name}')(part(norm(x) if self.norm_first else x), train=self.train)
        y = x + y if self.residual else y
        return y if self.norm_first else norm(y)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """Half the loss of the labels, of every head; a private stream counts where it is there."""
    return head_terms(model, out, batch, lambda scores, label: losses.task(scores, {'label': label}))


def head_terms(
    model: Model, out: Output, batch: Batch, task: Callable[[Array, Label], losses.Term]
) -> dict[str, losses.Term]:
    """`loss` with another loss of the labels in place of the default."""
    label = losses.target(batch.labels)
    there = dict(zip(model.streams, graph.modal_nodes(batch, model.streams).swapaxes(0, 1), strict=True))
    terms = {'label': task(out.logits, label)}
    for name, scores in out.aux['heads'].items():
        terms[name] = task(scores, label._replace(mask=label.mask & there.get(name, batch.present)))
    return losses.weighted(terms, **dict.fromkeys(terms, 0.5))


AUTHORS = {'audio': 'audio', 'vision': 'visual', 'text': 'text'}
STAGES = ('av', 'av_l', 'av_l_share')


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of lijfrank-open/GraphCFC."""
    require_streams('graphcfc', model.streams, 3)
    reader, d = Reader(state, 'graphcfc'), model.width
    params: Params = {}
    for name, kind in zip(model.streams, model.recurrent, strict=True):
        params[f'encode_{name}'] = reader.turn_encoder(AUTHORS[name], kind, d, model.base_width, model.base_layers)
    for ours, theirs in (*((name, AUTHORS[name]) for name in model.streams), ('share', 'share')):
        prefix = f'densnet_{theirs}.layers'
        params[f'dense_{ours}'] = {
            'expand': reader.dense(f'{prefix}.0.fc', d, 2 * d),
            'contract': reader.dense(f'{prefix}.0.fc1', 2 * d, d),
            'norm': reader.layer_norm(f'{prefix}.0.norm', d),
        }
        params[f'head_{ours}'] = reader.dense(f'smax_fc_{theirs}', d, model.classes)
        reader.skip(f'{prefix}.*')      # the same tensors, stored again for every layer
    params['vectors'] = {'speakers': {'embedding': reader.take('speaker_embeddings.weight', model.speakers, d)}}
    params['share'] = reader.dense('fc_share', 3 * d, d)
    if model.relations:
        kinds = model.speakers * (model.speakers + 1) // 2 + 1
        params['relations'] = reader.take('rel_embeddings1.weight', kinds, d)
    else:
        reader.skip('rel_embeddings1.weight')
    for k, name in enumerate(STAGES):
        params[f'stage_{k}'] = _stage(reader, name, model)
        params[f'fuse_{k}'] = reader.dense(f'fusion_{name}.fc_out', 2 * d, d)
    params['head'] = reader.dense('smax_fc', d, model.classes)
    reader.close()
    return {'params': params}


def _stage(reader: Reader, name: str, model: Model) -> Params:
    d, heads, prefix = model.width, model.heads, f'gatmlp_{name}.layers.0'
    attention = {
        'source': reader.dense(f'{prefix}.convs.lin_l', d, heads * d),
        'target': reader.dense(f'{prefix}.convs.lin_r', d, heads * d),
        'score': reader.take(f'{prefix}.convs.att', 1, heads, d)[0],
        'bias': reader.take(f'{prefix}.convs.bias', d),
    }
    if model.relations:
        attention['relation'] = reader.dense(f'{prefix}.convs.lin_edge', d, heads * d, bias=False)
    reader.skip(f'gatmlp_{name}.layers.*')      # the same tensors, stored again for every layer
    return {
        'attention': attention,
        'attention_norm': reader.layer_norm(f'{prefix}.norm', d),
        'expand': reader.dense(f'{prefix}.fc', d, 2 * d),
        'contract': reader.dense(f'{prefix}.fc1', 2 * d, d),
        'feedforward_norm': reader.layer_norm(f'{prefix}.norm1', d),
    }

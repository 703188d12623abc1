"""DualGATs: dual graph attention over speakers and discourse (Zhang et al., ACL 2023).

The streams of a turn are concatenated. One graph attention network reads the dialogue by who speaks and what
comes first, a second one by discourse relations; after every layer the two exchange what they found through
a bi-affine attention. A loss keeps them apart.

Where this differs from the authors' code: padding is masked, which theirs attends to in the exchange; scores
of edges are sums of three small products instead of one over all pairs of turns; the loss that keeps the
networks apart counts only turns that are there, and not at all where a batch holds one dialogue (theirs is
infinite). A discourse parser's relations come as a stream (`discourse`); without one every turn is related
to its neighbours, which is this file's stand-in. `causal` cuts all edges to the future.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer import losses
from jmer.author import Reader
from jmer.layers.activation import gelu
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.graph import complete, places, same_speaker, softmax
from jmer.layers.mlp import MLP
from jmer.layers.pooling import turn_vectors
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('early fusion', 'joint representation', 'graph-based', 'graph attention', 'dual attention', 'context',
        'speaker-aware', 'missing modality')
LABELS = ('class',)
SEMANTIC, STRUCTURE = 6, 18
"""Numbers of relations; 0 is none."""


class Model(Checked):
    """The defaults are the authors' for IEMOCAP. Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    discourse: name of the stream with discourse relations, [b u n]: column j of a turn is the number of its
        relation with turn j, 1 to 16, 0 for none; '' where there is none.
    width: of the states of turns.
    heads: of every graph attention.
    layers: of both networks.
    hidden_layers: in front of the scores.
    slope: of the leaky ReLU of edges.
    causal: read the past only.
    dropout: everywhere.
    difference_weight: of the loss that keeps the networks apart.
    """

    classes: int
    streams: tuple[str, ...] = ('text',)
    discourse: str = ''
    width: int = 300
    heads: int = 2
    layers: int = 2
    hidden_layers: int = 2
    slope: float = 0.2
    causal: bool = False
    dropout: float = 0.2
    difference_weight: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x: Array = jnp.concatenate([turn_vectors(batch.streams[name]) for name in self.streams], -1)
        seen = complete(batch.present)
        seen = jnp.tril(seen) if self.causal else seen
        graphs = {'semantic': semantic(batch), 'structure': self._structure(batch)}
        sizes = {'semantic': SEMANTIC, 'structure': STRUCTURE}
        first = nn.relu(Dense(self.width, name='project')(x))
        states: dict[str, Array] = dict.fromkeys(graphs, first)
        found = []
        affine = {name: self.param(f'affine_{name}', _xavier, (self.width, self.width)) for name in graphs}
        for k in range(self.layers):
            states = {name: Block(self.width, self.heads, sizes[name], self.slope, self.dropout, name=f'{name}_{k}')(
                states[name], jnp.where(seen, graph, 0), train=train) for name, graph in graphs.items()}
            found.append(states)
            states = {'semantic': _exchange(states['semantic'], affine['semantic'], states['structure'], seen),
                      'structure': _exchange(states['structure'], affine['structure'], states['semantic'], seen)}
            if k + 1 < self.layers:
                states = {name: Dropout(self.dropout, name=f'dropout_{name}_{k}')(h, train=train)
                          for name, h in states.items()}
        joined = jnp.concatenate([states['semantic'], states['structure'], x], -1)
        logits = MLP((self.width,) * self.hidden_layers + (self.classes,), name='head')(joined, train=train)
        return Output(logits, {'joined': joined, 'layers': found})

    def _structure(self, batch: Batch) -> Int[Array, 'b u u']:
        """The relation of every two turns: as the stream has it, or 1 between neighbours; 17 with oneself."""
        both = complete(batch.present)
        turns = both.shape[-1]
        if self.discourse:
            stream = batch.streams[self.discourse]
            ids = jnp.where(stream.mask[..., None], stream.x, 0).astype(int)[..., :turns]
            ids = jnp.pad(ids, ((0, 0), (0, 0), (0, turns - ids.shape[-1])))
        else:
            place = places(batch.present)
            ids = (jnp.abs(place[:, :, None] - place[:, None, :]) == 1).astype(int)
        return jnp.where(both, jnp.where(jnp.eye(turns, dtype=bool)[None], STRUCTURE - 1, ids), 0)


def semantic(batch: Batch) -> Int[Array, 'b u u']:
    """1: the turn itself; 2, 3: the same speaker later, earlier; 4, 5: another one later, earlier; 0: no turn."""
    both, place = complete(batch.present), places(batch.present)
    speakers = jnp.zeros(place.shape, int) if batch.speakers is None else batch.speakers
    later = place[:, None, :] > place[:, :, None]
    other = jnp.where(same_speaker(speakers), 0, 2)
    ids = jnp.where(jnp.eye(place.shape[-1], dtype=bool)[None], 1, jnp.where(later, 2, 3) + other)
    return jnp.where(both, ids, 0)


class Block(nn.Module):
    """Graph attention of several heads, a last head over what they found, a linear layer; x added, normalised."""

    width: int
    heads: int
    relations: int
    slope: float
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u d'], graph: Int[Array, 'b u u'], *, train: bool
    ) -> Float[Array, 'b u {self.width}']:
        def head(name):
            return Head(self.width, self.relations, self.slope, self.dropout, name=name)

        def drop(name, y):
            return Dropout(self.dropout, name=name)(y, train=train)

        y = drop('dropout_in', x)
        found = [gelu(head(f'head_{k}')(y, graph, train=train)) for k in range(self.heads)]
        y = drop('dropout_heads', jnp.concatenate(found, -1))
        y = gelu(head('head_out')(y, graph, train=train))
        return layer_norm('norm')(Dense(self.width, name='out')(y) + x)


class Head(nn.Module):
    """One head: a turn's mean over its neighbours, weighted by both turns and their relation; normalised."""

    width: int
    relations: int
    slope: float
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u d'], graph: Int[Array, 'b u u'], *, train: bool
    ) -> Float[Array, 'b u {self.width}']:
        h = x @ self.param('kernel', _xavier, (x.shape[-1], self.width))
        score = self.param('score', _xavier, (2 * self.width + self.relations, 1))[:, 0]
        to, of, relation = jnp.split(score, [self.width, 2 * self.width])
        edges = (h @ to)[:, :, None] + (h @ of)[:, None, :] + relation[graph]
        weights = softmax(nn.leaky_relu(edges, self.slope), graph > 0)
        weights = Dropout(self.dropout, name='dropout')(weights, train=train)
        return layer_norm('norm')(jnp.einsum('bts,bsd->btd', weights, h))


def _exchange(x: Array, affine: Array, other: Array, seen: Bool[Array, 'b u u']) -> Array:
    """What each turn of one network finds in the other one."""
    return jnp.einsum('bts,bsd->btd', softmax(jnp.einsum('btd,bsd->bts', x @ affine, other), seen), other)


_xavier = nn.initializers.variance_scaling(2.0, 'fan_avg', 'uniform')       # PyTorch's, with gain sqrt(2)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """Cross entropy, and the inverse distance of the two networks' states before they exchange them."""
    label = losses.target(batch.labels)
    parts = jnp.stack([_nearness(layer['semantic'], layer['structure'], batch.present)
                       for layer in out.aux['layers']])
    terms = {'label': losses.cross_entropy(out.logits, label),
             'difference': losses.coupled(parts.mean(), label.mask)}
    return losses.weighted(terms, difference=model.difference_weight)


def _nearness(x: Float[Array, 'b u d'], y: Float[Array, 'b u d'], present: Bool[Array, 'b u']) -> Float[Array, '']:
    """1 / the mean distance of the dialogues' states, centred over the batch and of length 1; 0 of one dialogue."""
    mask = jnp.asarray(present)[..., None]
    dialogues = jnp.any(mask, (1, 2))

    def unit(z):
        mean = jnp.sum(jnp.where(mask, z, 0), 0, keepdims=True) / jnp.maximum(jnp.sum(mask, 0, keepdims=True), 1)
        z = jnp.where(mask, z - mean, 0)
        length = jnp.sqrt(jnp.sum(jax.lax.stop_gradient(z) ** 2, (1, 2), keepdims=True))
        return z / (length + 1e-6)

    squares = jnp.sum((unit(x) - unit(y)) ** 2, (1, 2))
    far = squares > 1e-12
    distance = jnp.where(far, jnp.sqrt(jnp.where(far, squares, 1)), 0)
    mean = jnp.sum(distance) / jnp.maximum(jnp.sum(dialogues), 1)
    return jnp.where(jnp.sum(dialogues) > 1, 1 / jnp.maximum(mean, 1e-3), 0)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of BladeDancer957/DualGATs."""
    reader, d = Reader(state, 'dualgats'), model.width
    reader.skip('*.relation_embedding.weight')          # an identity matrix, never trained
    inputs = reader.width('fc1.weight', 1) or 1
    params: dict[str, Any] = {'affine_semantic': reader.take('affine1', d, d),
                              'affine_structure': reader.take('affine2', d, d),
                              'project': reader.dense('fc1', inputs, d)}
    for name, key, relations in (('semantic', 'SpkGAT', SEMANTIC), ('structure', 'DisGAT', STRUCTURE)):
        for k in range(model.layers):
            params[f'{name}_{k}'] = _block(reader, f'{key}.{k}', model, relations)
    widths = [2 * d + inputs] + [d] * model.hidden_layers + [model.classes]
    params['head'] = {f'dense_{k}': reader.dense(f'out_mlp.{2 * k}', widths[k], widths[k + 1])
                      for k in range(len(widths) - 1)}
    reader.close()
    return {'params': params}


def _block(reader: Reader, prefix: str, model: Model, relations: int) -> Params:
    d = model.width

    def head(key: str, inputs: int) -> Params:
        return {'kernel': reader.take(f'{key}.W', inputs, d), 'score': reader.take(f'{key}.a', 2 * d + relations, 1),
                'norm': reader.layer_norm(f'{key}.layer_norm', d)}

    params = {f'head_{k}': head(f'{prefix}.attention_{k}', d) for k in range(model.heads)}
    return params | {'head_out': head(f'{prefix}.out_att', model.heads * d),
                     'out': reader.dense(f'{prefix}.fc', d, d), 'norm': reader.layer_norm(f'{prefix}.layer_norm', d)}

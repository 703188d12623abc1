"""DST: deformable speech transformer (Chen et al., ICASSP 2023).

Every step of every head chooses where it looks: from its query it predicts an offset and a duration, and
attends to the steps of that window only, whose edges and centre are weighed by how far they are inside.
Scores are given to every step and averaged.

Where this differs from the authors' code: padding is masked. Theirs draws the sinusoidal positions anew at
random when weights are initialised, and never trains them; here they are sinusoids, unless
`random_positions`. Offsets and durations count in units of `length`, theirs the fixed length of all clips.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jmer.author import Reader
from jmer.layers.activation import gelu
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.graph import softmax
from jmer.layers.pooling import pool
from jmer.layers.position import sinusoid
from jmer.layers.postnorm import mix
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('speech', 'transformer', 'multi-head attention')

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {'relu': nn.relu, 'gelu': gelu, 'tanh': jnp.tanh}
SHORTEST, LONGEST = 1.25, 25.0
"""Half windows of the first and the last head before training, in steps of 20 ms."""


class Model(Checked):
    """The defaults are the authors' for WavLM features. Attributes:
    classes: number of scores.
    stream: what is read; its width is that of all layers, a multiple of `heads`.
    layers, heads, hidden: of the transformer.
    length: steps that an offset or a duration of 1 stands for; more than 25.
    activation: 'relu', 'gelu' or 'tanh'.
    random_positions: rows of a random table that is never trained, in place of sinusoids; the authors have
        2000. 0: none.
    dropout: in the classifier.
    """

    classes: int
    stream: str = 'audio'
    layers: int = 4
    heads: int = 8
    hidden: int = 512
    length: int = 326
    activation: str = 'relu'
    random_positions: int = 0
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check(batch)
        x, mask = batch.streams[self.stream]
        d, activation = x.shape[-1], ACTIVATIONS[self.activation]
        x = layer_norm('input_norm')(jnp.where(mask[..., None], x, 0))
        x = x + self._positions(*x.shape[1:])[None]
        attended, outputs = [], []
        for i in range(self.layers):
            attended.append(Deformable(self.heads, self.length, name=f'attention_{i}')(x, mask))
            x = layer_norm(f'attention_norm_{i}')(x + attended[-1])
            hidden = activation(_dense(x, self.hidden, f'expand_{i}'))
            x = layer_norm(f'feedforward_norm_{i}')(x + _dense(hidden, d, f'contract_{i}'))
            outputs.append(x)
        for k, width in enumerate((d // 2, d // 4)):
            x = activation(_dense(x, width, f'classifier_{k}'))
            x = Dropout(self.dropout, name=f'dropout_{k}')(x, train=train)
        scores = _dense(x, self.classes, 'head')
        return Output(pool(scores, mask, 'mean'), {'attended': attended, 'layers': outputs, 'scores': scores})

    def _positions(self, steps: int, width: int) -> Float[Array, 't d']:
        if not self.random_positions:
            return jnp.asarray(sinusoid(steps + 1, width)[1:])
        table = self.param('positions', nn.initializers.xavier_uniform(), (self.random_positions, width))
        return jax.lax.stop_gradient(table)[:steps]

    def _check(self, batch: Batch) -> None:
        steps, width = batch.streams[self.stream].x.shape[1:]
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'dst: activation: found {self.activation!r}, expected one of {", ".join(ACTIVATIONS)}')
        if self.heads < 2 or width % self.heads:
            raise ValueError(f'dst: heads: found {self.heads}, expected 2 or more that divide the width {width}')
        if self.length <= LONGEST:
            raise ValueError(f'dst: length: found {self.length}, expected more than {LONGEST:g} steps')
        if self.random_positions and steps > self.random_positions:
            raise ValueError(f'dst: {self.stream}: found {steps} steps, '
                             f'expected at most random_positions={self.random_positions}')


class Deformable(nn.Module):
    """Attention within windows that every query and head choose for themselves.

    Attributes:
        heads: of which d must be a multiple.
        length: steps that an offset or a duration of 1 stands for.
    """

    heads: int
    length: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b t d']:
        q, k, v = jnp.split(_dense(x, 3 * x.shape[-1], 'query_key_value'), 3, -1)
        window = Dense(2 * self.heads, kernel_init=nn.initializers.zeros, bias_init=self._windows,
                       name='offset_duration')(q)
        offset, duration = jnp.split(window.swapaxes(1, 2), 2, 1)           # [b h t]
        steps = jnp.arange(x.shape[1], dtype=x.dtype)
        centre = steps[None, None] + jnp.tanh(offset) * self.length
        weight, inside = _reach(centre, nn.sigmoid(duration) * self.length, steps)

        heads = [y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k)]
        scores = jnp.einsum('bthk,bshk->bhts', *heads) * heads[0].shape[-1]**-0.5
        scores = jnp.where(inside, scores * weight, -1e8)       # uniform where nothing present is inside
        seen = jnp.broadcast_to(mask[:, None, None], scores.shape)
        return _dense(mix(softmax(scores, seen), v), x.shape[-1], 'project_out')

    def _windows(self, key, shape, dtype=jnp.float32):
        """Offsets of zero; durations that grow from head to head."""
        share = np.linspace(SHORTEST, LONGEST, self.heads) / self.length
        return jnp.asarray(np.concatenate([np.zeros(self.heads), np.log(share / (1 - share))]), dtype)


def _reach(
    centre: Float[Array, 'b h t'], half: Float[Array, 'b h t'], steps: Float[Array, 's']
) -> tuple[Float[Array, 'b h t s'], Bool[Array, 'b h t s']]:
    """What the score of each key is multiplied by, and whether it is inside the window.

    The first and the last key of a window count by how far the window reaches into them; the two beside
    its centre count more, the nearer the more. Through this factor alone offset and duration learn.
    """
    centre, half = centre[..., None], half[..., None]
    steps = steps[None, None, None]
    start, end = centre - half, centre + half
    first, last, middle = jnp.floor(start), jnp.ceil(end), jnp.floor(centre)
    weight = (1 + jnp.where(steps == first, first - start, 0) + jnp.where(steps == last, end - last, 0)
              + jnp.where(steps == middle + 1, centre - middle, 0)
              + jnp.where(steps == middle, 1 - (centre - middle), 0))
    return weight, (steps >= first) & (steps <= last)


def _dense(x: Float[Array, 'b t d'], width: int, name: str) -> Float[Array, 'b t e']:
    return Dense(width, kernel_init=nn.initializers.xavier_uniform(), name=name)(x)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of HappyColor/DST; its positions are passed over unless the model has any."""
    reader, params = Reader(state, 'dst'), {}
    d = reader.width('input_norm.weight', 0) or 1
    params['input_norm'] = reader.layer_norm('input_norm', d)
    if model.random_positions:
        params['positions'] = reader.take('position', model.random_positions, d)
    reader.skip('position')
    for i in range(model.layers):
        params |= {f'{name}_{i}': layer for name, layer in _layer(reader, f'layers.{i}', model, d).items()}
    params['classifier_0'] = reader.dense('classifier.0', d, d // 2)
    params['classifier_1'] = reader.dense('classifier.3', d // 2, d // 4)
    params['head'] = reader.dense('classifier.6', d // 4, model.classes)
    reader.close()
    return {'params': params}


def _layer(reader: Reader, prefix: str, model: Model, d: int) -> Params:
    return {
        'attention': {
            'query_key_value': reader.dense(f'{prefix}.attention.qkv', d, 3 * d),
            'offset_duration': reader.dense(f'{prefix}.attention.offset_duration', d, 2 * model.heads),
            'project_out': reader.dense(f'{prefix}.attention.project_out', d, d),
        },
        'attention_norm': reader.layer_norm(f'{prefix}.attention_norm', d),
        'expand': reader.dense(f'{prefix}.ffn.fc1', d, model.hidden),
        'contract': reader.dense(f'{prefix}.ffn.fc2', model.hidden, d),
        'feedforward_norm': reader.layer_norm(f'{prefix}.ffn.final_layer_norm', d),
    }

"""Head Fusion: multi-head attention on a convolutional network, MACNN (Xu et al., IEEE Access 2021).

Two filters, one tall and one long, and four more convolutions make a small image of the cepstra. Every
head gives each place of it a weight per channel; the places of all heads are averaged. The baseline ACNN
has one map of scores and one of attention in their stead.

Where this differs from the authors' code: clips may be of any length and padding is masked, in the
convolutions, in the batch statistics and in the mean. A clip that leaves no column after two poolings, less
than 5 steps, counts as absent. A convolution in front of a batch normalisation has no bias, which could do
nothing; theirs goes into the running mean.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.conv import Banded, Convolution, largest
from jmer.layers.dense import Dense
from jmer.layers.norm import BatchNorm
from jmer.layers.pooling import pool
from jmer.layers.steps import fit
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('speech', 'convolutional', 'multi-head attention')

KINDS = ('macnn', 'acnn')
KERNELS = {'1a': (10, 2), '1b': (2, 8), '2': (3, 3), '3': (3, 3), '4': (3, 3), '5': (3, 3)}
"""Features by steps of every convolution; the first two stand side by side."""
SMALLEST = 5


class Model(Checked):
    """The defaults are those the authors train with. Attributes:
    classes: number of scores.
    stream: what is read, 5 features or more.
    kind: 'macnn', with heads, or 'acnn', the baseline without.
    heads, hidden: number of attention heads, and channels of each.
    channels: of the convolutions; the first number is that of both first ones.
    """

    classes: int
    stream: str = 'audio'
    kind: str = 'macnn'
    heads: int = 4
    hidden: int = 64
    channels: tuple[int, ...] = (8, 32, 48, 64, 80)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x, mask = self._image(batch)
        wide, tall = (self._convolve(name, x, mask, padding) for name, padding in (('1a', (0, 4)), ('1b', (3, 0))))
        mask = mask[:, 1:] & mask[:, :-1]
        there = mask & batch.present[:, None]

        def norm(name, x):
            seen = jnp.broadcast_to(there[..., None], x.shape[:-1])
            return nn.relu(BatchNorm(name=f'norm_{name}')(x, seen, train=train))

        x = jnp.concatenate([norm('1a', wide), norm('1b', tall)], -1)
        for name in ('2', '3', '4', '5'):
            x = norm(name, self._convolve(name, x, mask, (1, 1)))
            if name in ('2', '3'):
                x = largest(x, 2, 2)
                pairs = mask[:, :x.shape[1] * 2]
                mask = pairs[:, ::2] & pairs[:, 1::2]
                there = mask & batch.present[:, None]
        logits, aux = self._heads(x, mask) if self.kind == 'macnn' else self._maps(x, mask)
        return Output(logits, aux)

    def _image(self, batch: Batch) -> tuple[Float[Array, 'b t d 1'], Bool[Array, 'b t']]:
        if self.kind not in KINDS:
            raise ValueError(f'headfusion: kind: found {self.kind!r}, expected one of {", ".join(KINDS)}')
        if len(self.channels) != 5:
            raise ValueError(f'headfusion: channels: found {self.channels}, expected five numbers')
        stream = batch.streams[self.stream]
        steps, width = stream.x.shape[1:]
        if width < SMALLEST:
            raise ValueError(f'headfusion: {self.stream}: found {width} features, expected {SMALLEST} or more')
        x, mask = fit(stream, max(steps, SMALLEST))
        return x[..., None], mask

    def _convolve(self, name: str, x: Float[Array, 'b t d e'], mask: Bool[Array, 'b t'], padding: tuple[int, int]):
        """padding: zeros on either side, of steps and of features."""
        x = jnp.where(mask[..., None, None], x, 0)
        layer = Banded if x.shape[-1] == 1 else Convolution
        return layer(self._channels(name), KERNELS[name][::-1], padding=padding, use_bias=False,
                     name=f'conv_{name}')(x)

    def _channels(self, name: str) -> int:
        return self.channels[int(name[0]) - 1]

    def _heads(self, x: Float[Array, 'b t d e'], mask: Bool[Array, 'b t']) -> tuple[Array, dict[str, Array]]:
        """Scores by the mean over all places and heads."""
        rows = Dense(3 * self.heads * self.hidden, name='query_key_value')(x.reshape(-1, x.shape[-1]))
        q, k, v = (part.reshape(*x.shape[:3], self.heads, self.hidden) for part in jnp.split(rows, 3, -1))
        attended = nn.relu(nn.softmax(q * k) * v)
        fused = pool(attended.mean((2, 3)), mask, 'mean')
        return Dense(self.classes, name='head')(fused), {'fused': fused}

    def _maps(self, x: Float[Array, 'b t d e'], mask: Bool[Array, 'b t']) -> tuple[Array, dict[str, Array]]:
        """Scores of every place, weighed by one number for the place."""
        attention = Dense(1, name='attention')(x)
        scores = Dense(self.classes, name='head')(x) * attention
        return pool(scores.mean(2), mask, 'mean'), {'attention': attention}


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of lessonxmk/head_fusion, its MACNN or its ACNN."""
    reader, params, statistics, inputs = Reader(state, 'headfusion'), {}, {}, 1
    for name, kernel in KERNELS.items():
        channels = model._channels(name)
        convolution = reader.conv2d(f'conv{name}', inputs, channels, kernel)
        params[f'conv_{name}'] = {'kernel': convolution['kernel']}
        params[f'norm_{name}'], seen = reader.batch_norm(f'bn{name}', channels)
        statistics[f'norm_{name}'] = seen | {'mean': seen['mean'] - convolution['bias']}
        inputs = 1 if name == '1a' else 2 * channels if name == '1b' else channels
    if model.kind == 'macnn':
        params['query_key_value'] = _side_by_side(
            [_pointwise(reader, f'attention_{part}.{i}', inputs, model.hidden)
             for part in ('query', 'key', 'value') for i in range(model.heads)])
        params['head'] = reader.dense('fc', model.hidden, model.classes)
    else:
        reader.skip('fc.*')         # stored and not used
        params['head'] = _pointwise(reader, 'conv6a', inputs, model.classes)
        params['attention'] = _pointwise(reader, 'conv6b', inputs, 1)
    reader.close()
    return {'params': params, 'batch_stats': statistics}


def _pointwise(reader: Reader, prefix: str, inputs: int, outputs: int) -> Params:
    params = reader.conv2d(prefix, inputs, outputs, (1, 1))
    return {'kernel': params['kernel'][0, 0], 'bias': params['bias']}


def _side_by_side(layers: list[Params]) -> Params:
    return {part: jnp.concatenate([layer[part] for layer in layers], -1) for part in ('kernel', 'bias')}

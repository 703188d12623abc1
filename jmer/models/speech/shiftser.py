"""ShiftSER: temporal shift of channels for speech emotion (Shen et al., ICASSP 2023).

Some channels are moved one step ahead, some one step back, so that a step sees its neighbours at no cost:
in place of attention (Shiftformer), on the residual path of a convolutional network (ShiftCNN), or in
front of an LSTM (ShiftLSTM). The same networks without the shift are the paper's points of comparison.

Where this differs from the authors' code: padding is masked, in the shift too, and any number of heads
that divides the width will do (theirs is 12). The masking of steps and channels in training, SpecAugment
with a learned vector, is no part of the model.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.author import Reader
from jmer.layers.activation import gelu
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.graph import softmax
from jmer.layers.pooling import pool
from jmer.layers.recurrent import BiLSTM
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('speech', 'transformer', 'convolutional', 'recurrent')

NETWORKS = ('transformer', 'cnn', 'rnn')
POSITIONS = ('relative_key_query', 'relative_key', 'absolute')
BLOCKS = 2


def shift(
    x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], *, parts: int, stride: int = 1, both_ways: bool = True
) -> Float[Array, 'b t d']:
    """Moves the first 1/parts of the channels `stride` steps ahead and, if both ways, the next back.

    Zeros come in at the ends. The channels that remain stay where they are; of an odd number, shifted both
    ways by halves, the last one is lost, as it is in the authors' code.
    """
    x = jnp.where(mask[..., None], x, 0)
    steps, width = x.shape[1:]
    fold = width // parts
    ahead = jnp.pad(x[..., :fold], ((0, 0), (stride, 0), (0, 0)))[:, :steps]
    if not both_ways:
        return jnp.concatenate([ahead, x[..., fold:]], -1)
    back = jnp.pad(x[..., fold:2 * fold], ((0, 0), (0, stride), (0, 0)))[:, stride:]
    rest = x[..., 2 * fold:] if parts > 2 else jnp.zeros_like(x[..., 2 * fold:])
    return jnp.concatenate([ahead, back, rest], -1)


class Model(Checked):
    """The defaults are the authors' Shiftformer. Attributes:
    classes: number of scores.
    stream: what is read; its width is that of the network.
    network: 'transformer', 'cnn' or 'rnn'.
    shift: whether channels are shifted. The authors take parts=16 for the CNN, one way for it and the RNN.
    parts, stride, both_ways: see `shift`.
    heads: of attention, where there is no shift in its place.
    positions: of attention: 'relative_key_query', 'relative_key' or 'absolute'.
    length: steps that the table of positions is for; longer clips are refused.
    expansion: width of the hidden layer of the transformer, as a multiple.
    kernel: steps that a convolution of the CNN sees, an odd number.
    """

    classes: int
    stream: str = 'audio'
    network: str = 'transformer'
    shift: bool = True
    parts: int = 4
    stride: int = 1
    both_ways: bool = True
    heads: int = 12
    positions: str = 'relative_key_query'
    length: int = 374
    expansion: int = 4
    kernel: int = 7

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x, mask = batch.streams[self.stream]
        self._check(x)
        x = jnp.where(mask[..., None], x, 0)
        if self.network == 'rnn':
            x = self._shifted(x, mask) if self.shift else x
            x = BiLSTM(x.shape[-1], name='lstm')(x, mask, train=train)
        elif self.network == 'cnn':
            for i in range(BLOCKS):
                x = self._convolution(i, x, mask)
        else:
            if self.positions == 'absolute' and not self.shift:
                table = self.param('positions', nn.initializers.normal(1.0), (self.length, x.shape[-1]))
                x = x + table[None, :x.shape[1]]
            for i in range(BLOCKS):
                x = self._transformer(i, x, mask)
        if self.network != 'transformer':
            x = layer_norm('norm')(x)
        pooled = pool(x, mask, 'mean')
        return Output(Dense(self.classes, name='head')(pooled), {'pooled': pooled})

    def _shifted(self, x, mask):
        return shift(x, mask, parts=self.parts, stride=self.stride, both_ways=self.both_ways)

    def _convolution(self, i: int, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b t d']:
        """A block of the CNN; only the second one's residual path is shifted."""
        d = x.shape[-1]
        y = Depthwise(self.kernel, name=f'depthwise_{i}')(x, mask)
        y = self._perceptron(i, layer_norm(f'norm_{i}')(y), 4 * d)
        return y + (self._shifted(x, mask) if self.shift and i == 1 else x)

    def _transformer(self, i: int, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b t d']:
        """A block of the transformer; the shift takes the place of attention, residual path and norm."""
        if self.shift:
            x = self._shifted(x, mask)
        else:
            relative = '' if self.positions == 'absolute' else self.positions
            attention = RelativeAttention(self.heads, self.length, relative, name=f'attention_{i}')
            x = layer_norm(f'attention_norm_{i}')(x + attention(x, mask))
        return layer_norm(f'feedforward_norm_{i}')(x + self._perceptron(i, x, self.expansion * x.shape[-1]))

    def _perceptron(self, i: int, x: Float[Array, 'b t d'], hidden: int) -> Float[Array, 'b t d']:
        y = gelu(Dense(hidden, name=f'expand_{i}')(x))
        return Dense(x.shape[-1], name=f'contract_{i}')(y)

    def _check(self, x: Float[Array, 'b t d']) -> None:
        def fault(field: str, found: Any, expected: str) -> ValueError:
            return ValueError(f'shiftser: {field}: found {found}, expected {expected}')

        if self.network not in NETWORKS:
            raise fault('network', repr(self.network), f'one of {", ".join(NETWORKS)}')
        if self.positions not in POSITIONS:
            raise fault('positions', repr(self.positions), f'one of {", ".join(POSITIONS)}')
        if self.shift and self.parts < 1 + self.both_ways:
            raise fault('parts', self.parts, f'{1 + self.both_ways} or more')
        if self.network == 'cnn' and self.kernel % 2 == 0:
            raise fault('kernel', self.kernel, 'an odd number of steps')
        if self.network == 'transformer' and not self.shift:
            if x.shape[-1] % self.heads:
                raise fault('heads', self.heads, f'a divisor of the width {x.shape[-1]}')
            if x.shape[1] > self.length:
                raise fault(self.stream, f'{x.shape[1]} steps', f'at most length={self.length}')


class Depthwise(nn.Module):
    """A convolution of every channel by itself, centred, with zeros at the ends.

    kernel: steps that it sees, an odd number.
    """

    kernel: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b t d']:
        steps, width = x.shape[1:]
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', in_axis=0, out_axis=())
        kernel = self.param('kernel', init, (self.kernel, width))
        bias = self.param('bias', nn.initializers.zeros, (width,))
        half = self.kernel // 2
        x = jnp.pad(jnp.where(mask[..., None], x, 0), ((0, 0), (half, half), (0, 0)))
        # A sum of shifted products is one loop on a CPU, where a grouped convolution is many.
        y = sum(x[:, k:k + steps] * kernel[k][None, None] for k in range(self.kernel))
        return y + bias[None, None]


class RelativeAttention(nn.Module):
    """Self-attention without an output layer whose scores know how far query and key are apart.

    Attributes:
        heads: of which d must be a multiple.
        length: longest sequence.
        relative: 'relative_key': the query meets a vector of the distance; 'relative_key_query': the key
            does as well; '': neither.
    """

    heads: int
    length: int
    relative: str

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b t d']:
        rows = Dense(3 * x.shape[-1], name='query_key_value')(x)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2) for y in jnp.split(rows, 3, -1))
        scores = jnp.einsum('bhtk,bhsk->bhts', q, k)
        if self.relative:
            shape = 2 * self.length - 1, q.shape[-1]
            table = self.param('distances', nn.initializers.normal(1.0), shape)
            near = table[self.length - x.shape[1]:self.length + x.shape[1] - 1]
            scores += by_distance(q, near[::-1])
            if self.relative == 'relative_key_query':
                scores += by_distance(k, near).swapaxes(2, 3)
        weights = softmax(scores * q.shape[-1]**-0.5, jnp.broadcast_to(mask[:, None, None], scores.shape))
        return jnp.einsum('bhts,bhsk->bhtk', weights, v).swapaxes(1, 2).reshape(x.shape)


def by_distance(x: Float[Array, 'b h t k'], table: Float[Array, '2*{x.shape[2]}-1 k']) -> Float[Array, 'b h t t']:
    """Each step times the vector of its distance to each step s: row s - t + T - 1 of the table for step t of T.

    A step is multiplied with the whole table and needs T rows of it, which begin one row earlier than for the step
    before; reshaping picks them. A vector for every pair of steps, and its gradient, would cost more than the rows
    that nobody needs.
    """
    b, h, t, k = x.shape
    if t == 1:
        return x @ table.T[None, None]
    rows = (x.reshape(-1, k) @ table.T).reshape(b, h, -1)
    return rows[..., t - 1:-1].reshape(b, h, t, 2 * t - 2)[..., :t]


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of ECNU-Cross-Innovation-Lab/ShiftSER, its head on given features."""
    reader = Reader(state, 'shiftser')
    reader.skip('specaugment.masked_spec_embed', 'position_ids')
    d = reader.width('head.weight', 1) or 1
    params: Params = {'head': reader.dense('head', d, model.classes)}
    if model.network == 'rnn':
        d = d // 2
        params['lstm'] = reader.recurrent('lstm', 'rnn.net' if model.shift else 'rnn', d, d, 1)
        params['norm'] = reader.layer_norm('norm', 2 * d)
    elif model.network == 'cnn':
        params['norm'] = reader.layer_norm('norm', d)
        for i in range(BLOCKS):
            params |= _convolution(reader, f'conv_block.{i}.sequential', i, model.kernel, d)
    else:
        if model.positions == 'absolute' and not model.shift:
            params['positions'] = reader.take('position_embeddings.weight', model.length, d)
        for i in range(BLOCKS):
            params |= _transformer(reader, f'transformer.{i}', i, model, d)
    reader.close()
    return {'params': params}


def _convolution(reader: Reader, prefix: str, i: int, kernel: int, d: int) -> Params:
    def pointwise(place: int, inputs: int, outputs: int) -> Params:
        weight = reader.take(f'{prefix}.{place}.weight', outputs, inputs, 1)
        return {'kernel': weight[..., 0].T, 'bias': reader.take(f'{prefix}.{place}.bias', outputs)}

    depthwise = reader.take(f'{prefix}.0.weight', d, 1, kernel)
    return {
        f'depthwise_{i}': {'kernel': depthwise[:, 0].T, 'bias': reader.take(f'{prefix}.0.bias', d)},
        f'norm_{i}': reader.layer_norm(f'{prefix}.2', d),
        f'expand_{i}': pointwise(4, d, 4 * d),
        f'contract_{i}': pointwise(6, 4 * d, d),
    }


def _transformer(reader: Reader, prefix: str, i: int, model: Model, d: int) -> Params:
    params = {f'expand_{i}': reader.dense(f'{prefix}.mlp.fc1', d, model.expansion * d),
              f'contract_{i}': reader.dense(f'{prefix}.mlp.fc2', model.expansion * d, d),
              f'feedforward_norm_{i}': reader.layer_norm(f'{prefix}.norm2', d)}
    if model.shift:
        return params
    attention = {'query_key_value': reader.dense(f'{prefix}.token_mixer.qkv', d, 3 * d)}
    if model.positions != 'absolute':
        attention['distances'] = reader.take(
            f'{prefix}.token_mixer.distance_embedding.weight', 2 * model.length - 1, d // model.heads)
    return params | {f'attention_{i}': attention, f'attention_norm_{i}': reader.layer_norm(f'{prefix}.norm1', d)}

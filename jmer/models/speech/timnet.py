"""TIM-Net: temporal-aware bi-directional multi-scale network (Ye et al., ICASSP 2023).

Two stacks of causal convolutions with doubling dilation gate the cepstra, one from the first step to the
last and one from the last to the first. What both stacks say after each dilation is averaged over time;
learned weights add these scales up.

Where this differs from the authors' code: padding and missing steps are masked, in the convolutions, in
the batch statistics and in the means over time, which in theirs see the zeros behind a short clip. As in
their code the gate is a sigmoid over a ReLU and hence at least one half. A convolution in front of a batch
normalisation has no bias, which could do nothing; theirs goes into the running mean.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.norm import BatchNorm
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('speech', 'convolutional', 'gated')


class Model(Checked):
    """The defaults are the authors' for 39 cepstra; on IEMOCAP they take 10 blocks. Attributes:
    classes: number of scores.
    stream: what is read.
    width: channels of every convolution.
    blocks: of each direction; block i looks 2^i steps back.
    kernel: steps that a convolution sees.
    dropout: of whole channels, after every convolution of a block.
    """

    classes: int
    stream: str = 'audio'
    width: int = 39
    blocks: int = 8
    kernel: int = 2
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x, mask = batch.streams[self.stream]
        counted = mask & batch.present[:, None]
        scales = self._direction('forward', x, mask, counted, train)
        scales += self._direction('backward', x[:, ::-1], mask[:, ::-1], counted[:, ::-1], train)
        weight = self.param('scale_weight', _small_uniform, (self.blocks, 1))
        decision = jnp.sum(scales * weight[None], 1)
        logits = Dense(self.classes, kernel_init=nn.initializers.glorot_uniform(), name='head')(decision)
        return Output(logits, {'multi_scale': scales, 'decision': decision})

    def _direction(
        self, name: str, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], counted: Bool[Array, 'b t'],
        train: bool,
    ) -> Float[Array, 'b n e']:
        """The mean over time after each block of one stack.

        Within it the channels come first: they are few and odd in number, and a CPU goes through long rows faster.
        """
        read = Dense(self.width, kernel_init=nn.initializers.glorot_uniform(), name=f'{name}_in')
        x = read(jnp.where(mask[..., None], x, 0))
        x = jnp.moveaxis(x, -1, 0)
        count, means = jnp.maximum(mask.sum(-1), 1), []
        for i in range(self.blocks):
            gate = x
            for k in (1, 2):
                gate = self._convolve(gate, mask, counted, 2**i, f'{name}_{i}_{k}', train)
            x = x * nn.sigmoid(gate)
            means.append(jnp.where(mask[None], x, 0).sum(-1) / count[None])
        return jnp.stack(means, 1).T

    def _convolve(self, x, mask, counted, dilation, name, train):
        """A causal convolution over the steps of x [d b t], normalised, ReLU, dropout of whole channels."""
        steps, span = x.shape[-1], dilation * (self.kernel - 1)
        x = jnp.pad(jnp.where(mask[None], x, 0), ((0, 0), (0, 0), (span, 0)))
        seen = jnp.concatenate([x[..., k:k + steps] for k in range(0, span + 1, dilation)])
        kernel = Kernel((len(seen), self.width), name=f'{name}_conv')()
        x = (kernel.T @ seen.reshape(len(seen), -1)).reshape(-1, *seen.shape[1:])
        norm = BatchNorm(0.01, 1e-3, remember_biased=True, axis=0, name=f'{name}_norm')     # Keras's conventions
        x = nn.relu(norm(x, counted, train=train))
        return nn.Dropout(self.dropout, broadcast_dims=(2,), name=f'{name}_dropout')(
            x, deterministic=not train)


class Kernel(nn.Module):
    """The weights of a dense layer that is multiplied from the left."""

    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> Float[Array, 'd e']:
        return self.param('kernel', _glorot, self.shape)


_glorot = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')     # Glorot's, as channels do not change


def _small_uniform(key, shape):
    return nn.initializers.uniform(0.1)(key, shape) - 0.05


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from the Keras variables of Jiaxin-Ye/TIM-Net_SER, by name ('conv1d_2/kernel')."""
    reader, d, k = Reader(state, 'timnet'), model.width, model.kernel
    params: Params = {
        'forward_in': _convolution(reader, 0, 1, None, d),
        'backward_in': _convolution(reader, 1, 1, None, d),
        'scale_weight': reader.take('weight_layer/kernel', model.blocks, 1),
        'head': {'kernel': reader.take('dense/kernel', d, model.classes),
                 'bias': reader.take('dense/bias', model.classes)},
    }
    statistics: Params = {}
    layers = [f'{name}_{i}_{j}' for i in range(model.blocks) for name in ('forward', 'backward') for j in (1, 2)]
    for n, layer in enumerate(layers):
        convolution = _convolution(reader, n + 2, k, d, d)
        params[f'{layer}_conv'] = {'kernel': convolution['kernel']}
        params[f'{layer}_norm'], statistics[f'{layer}_norm'] = _norm(reader, n, d, convolution['bias'])
    reader.close()
    return {'params': params, 'batch_stats': statistics}


def _numbered(name: str, n: int) -> str:
    return f'{name}_{n}' if n else name


def _convolution(reader: Reader, n: int, size: int, inputs: int | None, outputs: int) -> Params:
    name = _numbered('conv1d', n)
    kernel = reader.take(f'{name}/kernel', size, inputs, outputs).reshape(-1, outputs)
    return {'kernel': kernel, 'bias': reader.take(f'{name}/bias', outputs)}


def _norm(reader: Reader, n: int, width: int, shift: Array) -> tuple[Params, Params]:
    name = _numbered('batch_normalization', n)
    scale, bias, mean, var = (reader.take(f'{name}/{part}', width)
                              for part in ('gamma', 'beta', 'moving_mean', 'moving_variance'))
    return {'scale': scale, 'bias': bias}, {'mean': mean - shift, 'var': var}

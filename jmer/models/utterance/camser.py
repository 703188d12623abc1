"""CA-MSER: co-attention over multi-level acoustic features (Zou et al., ICASSP 2022).

A spectrogram goes through an AlexNet, cepstra through an LSTM; what both say weighs the steps of the hidden
states of a speech encoder, and the three vectors are joined.

Where this differs from the authors' code: padding is masked, in the image too, whose convolutions,
poolings and final 6 x 6 grid follow the length of each clip; a clip is at least 63 steps of spectrogram
long, silence behind it. The part of AlexNet that classifies, which theirs computes and does not use, is
not built. As in theirs the weights of the steps are not a distribution.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer.author import Reader, require_streams
from jmer.layers.attention import lengths
from jmer.layers.checked import Checked
from jmer.layers.conv import Convolution, largest
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.gating import unit
from jmer.layers.recurrent import BiLSTM
from jmer.layers.steps import extend, fit
from jmer.types import Array, Batch, Output, Stream, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'convolutional', 'recurrent', 'speech', 'missing modality')

SMALLEST = 63
"""Steps, and features, that AlexNet needs to leave one place."""
GRID = 6
KERNELS = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
"""Size, stride and padding of AlexNet's convolutions; the first, the second and the last are pooled."""


class Model(Checked):
    """The defaults are the authors' for clips of 3 seconds. Attributes:
    classes: number of scores.
    streams: spectrogram, cepstra, and hidden states of a speech encoder.
    images: equal parts of a spectrogram's step that are the colours of the image.
    channels: of the five convolutions.
    lstm: width of one direction of the LSTM.
    steps: of the cepstra and of the hidden states, for which there are weights; longer ones are refused.
    width: of the three vectors.
    dropout: in front of linear layers. lstm_dropout: between the two layers of the LSTM.
    """

    classes: int
    streams: tuple[str, ...] = ('spectrogram', 'mfcc', 'wav2vec')
    images: int = 3
    channels: tuple[int, ...] = (64, 192, 384, 256, 256)
    lstm: int = 256
    steps: tuple[int, int] = (300, 149)
    width: int = 128
    dropout: float = 0.1
    lstm_dropout: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check(batch)
        spectrogram, mfcc, hidden = (batch.streams[name] for name in self.streams)

        def project(x, name, width=self.width, activation=nn.relu):
            x = Dropout(self.dropout, name=f'dropout_{name}')(x, train=train)
            return activation(Dense(width, name=name)(x))

        grid = self._alexnet(spectrogram)
        seen = project(grid.reshape(len(grid), -1), 'spectrogram')
        x, mask = extend(mfcc, self.steps[0], 'camser')
        x = BiLSTM(self.lstm, 2, self.lstm_dropout, name='lstm')(unit(x), mask, train=train)
        heard = project(x.reshape(len(x), -1), 'mfcc')
        weights = nn.relu(Dense(self.steps[1], name='attention')(jnp.concatenate([seen, heard], -1)))
        states, _ = extend(hidden, self.steps[1], 'camser')
        read = project(jnp.einsum('bt,btd->bd', weights, states), 'wav2vec')

        first = project(jnp.concatenate([seen, heard, read], -1), 'fusion_1')
        second = project(first, 'fusion_2')
        logits = Dense(self.classes, name='head')(second)
        return Output(logits, {'grid': grid, 'weights': weights, 'read': read, 'fused': (first, second)})

    def _alexnet(self, stream: Stream) -> Float[Array, 'b c i j']:
        """Channels of a grid of features by steps."""
        x, mask = fit(stream, max(stream.x.shape[1], SMALLEST))
        count = lengths(mask)
        count = jnp.where(count > 0, jnp.maximum(count, SMALLEST), 0)
        x = x.reshape(*x.shape[:2], self.images, -1).swapaxes(2, 3)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, max(0, SMALLEST - x.shape[2])), (0, 0)))
        for i, (kernel, stride, padding) in enumerate(KERNELS):
            x = Convolution(self.channels[i], (kernel,) * 2, stride, (padding,) * 2, name=f'conv_{i}')(x)
            count = (count + 2 * padding - kernel) // stride + 1
            x = _cut(nn.relu(x), count)
            if i in (0, 1, 4):
                x = largest(x, 3, 2)
                count = (count - 3) // 2 + 1
        x = _cut(x, count)
        rows = jnp.full_like(count, x.shape[2])
        return jnp.einsum('btfc,bjt,bif->bcij', x, _cells(count, x.shape[1]), _cells(rows, x.shape[2]))

    def _check(self, batch: Batch) -> None:
        def fault(field: str, expected: str) -> ValueError:
            return ValueError(f'camser: {field}: found {getattr(self, field)}, expected {expected}')

        if len(self.streams) != 3:
            raise fault('streams', 'three: spectrogram, cepstra and hidden states')
        if len(self.channels) != len(KERNELS):
            raise fault('channels', 'five numbers')
        if batch.streams[self.streams[0]].x.shape[-1] % self.images:
            raise fault('images', f'a divisor of the {batch.streams[self.streams[0]].x.shape[-1]} features')


def _cut(x: Float[Array, 'b t f c'], count: Int[Array, 'b']) -> Float[Array, 'b t f c']:
    """Zero from step `count` on."""
    there: Bool[Array, 'b t'] = jnp.arange(x.shape[1])[None] < count[:, None]
    return jnp.where(there[..., None, None], x, 0)


def _cells(count: Int[Array, 'b'], steps: int) -> Float[Array, 'b i t']:
    """Weights of the steps in each of GRID means that share `count` steps, overlapping where they must."""
    cell, step = jnp.arange(GRID)[None, :, None], jnp.arange(steps)[None, None]
    count = count[:, None, None]
    start, end = cell * count // GRID, -((cell + 1) * -count // GRID)
    return ((step >= start) & (step < end)) / jnp.maximum(end - start, 1)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of Vincent-ZHQ/CA-MSER without its speech encoder."""
    require_streams('camser', model.streams, 3)
    reader, params, inputs, d = Reader(state, 'camser'), {}, model.images, model.width
    reader.skip('alexnet_model.classifier.*')
    for i, (place, channels) in enumerate(zip((0, 3, 6, 8, 10), model.channels, strict=True)):
        kernel = KERNELS[i][:1] * 2
        params[f'conv_{i}'] = reader.conv2d(f'alexnet_model.features.{place}', inputs, channels, kernel)
        inputs = channels
    params['spectrogram'] = reader.dense('post_spec_layer', GRID**2 * inputs, d)
    params['lstm'] = reader.recurrent('lstm', 'lstm_mfcc', None, model.lstm, 2)
    params['mfcc'] = reader.dense('post_mfcc_layer', 2 * model.lstm * model.steps[0], d)
    params['attention'] = reader.dense('post_spec_mfcc_att_layer', 2 * d, model.steps[1])
    params['wav2vec'] = reader.dense('post_wav_layer', None, d)
    params['fusion_1'] = reader.dense('post_att_layer_1', 3 * d, d)
    params['fusion_2'] = reader.dense('post_att_layer_2', d, d)
    params['head'] = reader.dense('post_att_layer_3', d, model.classes)
    reader.close()
    return {'params': params}

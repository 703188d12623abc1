"""What MMIN and the networks after it share: encoders to vectors, a bottleneck, a classifier."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, PRNGKeyArray

from jmer.layers.conv import windows
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.pooling import pool
from jmer.layers.recurrent import LSTM
from jmer.layers.steps import fit
from jmer.types import Array, Batch, Stream

POOLINGS = ('max', 'last', 'sum')
SIZES = (3, 4, 5)
"""Words that a convolution over text sees."""


class LSTMEncoder(nn.Module):
    """An LSTM, of whose states the largest, the last or the sum is taken.

    Attributes:
        width: of the state.
        pooling: 'max', 'last' or 'sum'; the sum is what the attention in MMIN's code comes to, whose
            softmax runs over an axis of length one.
    """

    width: int
    pooling: str = 'max'

    @nn.compact
    def __call__(self, stream: Stream) -> Float[Array, 'b {self.width}']:
        if self.pooling not in POOLINGS:
            raise ValueError(f'pooling: found {self.pooling!r}, expected one of {", ".join(POOLINGS)}')
        states = LSTM(self.width, name='lstm')(*stream)
        return states.sum(1) if self.pooling == 'sum' else pool(states, stream.mask, self.pooling)


class TextCNN(nn.Module):
    """Convolutions over 3, 4 and 5 words, the largest response of each, and a dense layer (Kim, EMNLP 2014).

    A text shorter than a convolution is one window, filled up with zeros.

    Attributes:
        width: of the output.
        channels: of each convolution.
        dropout: in front of the dense layer.
    """

    width: int
    channels: int
    dropout: float = 0.5

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool) -> Float[Array, 'b {self.width}']:
        x, mask = fit(stream, max(stream.x.shape[1], SIZES[-1]))
        largest = []
        for size in SIZES:
            response = nn.relu(Dense(self.channels, name=f'conv_{size}')(windows(x, mask, size)))
            whole = mask[:, size - 1:]
            first = jnp.arange(whole.shape[1])[None] == 0
            largest.append(pool(response, whole | (first & jnp.any(mask, -1, keepdims=True)), 'max'))
        x = Dropout(self.dropout, name='dropout')(jnp.concatenate(largest, -1), train=train)
        return nn.relu(Dense(self.width, name='embed')(x))


class Encoders(nn.Module):
    """A vector of each of three streams: audio, text and vision.

    Attributes:
        streams: their names, in this order.
        width: of every vector.
        text_channels, text_dropout: of the text's network.
        poolings: of the audio's and of the vision's states.
        read_zeros: read padding and missing streams as zeros, which leave a trace, as the authors do.
    """

    streams: tuple[str, ...]
    width: int
    text_channels: int
    text_dropout: float
    poolings: tuple[str, str]
    read_zeros: bool

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> list[Float[Array, 'b {self.width}']]:
        if len(self.streams) != 3:
            raise ValueError(f'streams: found {self.streams}, expected three: audio, text and vision')
        audio, text, vision = (self._read(batch.streams[name]) for name in self.streams)
        return [LSTMEncoder(self.width, self.poolings[0], name='audio')(audio),
                TextCNN(self.width, self.text_channels, self.text_dropout, name='text')(text, train=train),
                LSTMEncoder(self.width, self.poolings[1], name='vision')(vision)]

    def _read(self, stream: Stream) -> Stream:
        x = jnp.where(stream.mask[..., None], stream.x, 0)
        return Stream(x, jnp.ones_like(stream.mask) if self.read_zeros else stream.mask)


class Bottleneck(nn.Module):
    """An encoder and a decoder of one block: LeakyReLU between the layers of the first, ReLU of the second.

    widths: of the encoder's layers; the decoder goes back the same way.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, 'b d']) -> tuple[Float[Array, 'b e'], Float[Array, 'b d']]:
        """The narrowest layer, and what the decoder makes of it."""
        latent = x
        for k, width in enumerate(self.widths):
            latent = Dense(width, name=f'encode_{k}')(nn.leaky_relu(latent) if k else latent)
        out = latent
        for k, width in enumerate((*self.widths[-2::-1], x.shape[-1])):
            out = Dense(width, name=f'decode_{k}')(nn.relu(out) if k else out)
        return latent, out


class Classifier(nn.Module):
    """Dense layers, each with ReLU, batch normalisation if asked for, and dropout, and the scores.

    Attributes:
        classes: number of scores.
        widths: of the layers before.
        batch_norm: whether they are normalised.
        dropout: after each of them.
    """

    classes: int
    widths: tuple[int, ...]
    batch_norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, 'b d'], present: Bool[Array, 'b'], *, train: bool) -> Float[Array, 'b c']:
        for k, width in enumerate(self.widths):
            x = nn.relu(Dense(width, name=f'dense_{k}')(x))
            if self.batch_norm:
                x = BatchNorm(name=f'norm_{k}')(x, present, train=train)
            x = Dropout(self.dropout, name=f'dropout_{k}')(x, train=train)
        return Dense(self.classes, name='out')(x)


def complement(complete: Batch, batch: Batch) -> Batch:
    """The streams that `batch` has lost of the `complete` one, and they alone: what the teacher reads."""
    def rest(whole, left):
        lost = ~jnp.any(left.mask, -1, keepdims=True)
        return whole._replace(mask=whole.mask & lost)

    return batch._replace(streams={name: rest(complete.streams[name], s) for name, s in batch.streams.items()})


def lose(batch: Batch, streams: Sequence[str], key: PRNGKeyArray) -> Batch:
    """The batch with some streams of every item gone: which, is drawn evenly from all choices that leave one.

    An item that has not all of them may lose fewer than were drawn; it keeps one.
    """
    count = len(streams)
    choices = jnp.asarray([[k >> m & 1 for m in range(count)] for k in range(1, 2**count - 1)], bool)
    rows = jnp.arange(len(batch.present))
    drawn = jax.vmap(lambda row: jax.random.randint(jax.random.fold_in(key, row), (), 0, len(choices)))(rows)
    there = jnp.stack([jnp.any(batch.streams[name].mask, -1) for name in streams], -1)
    kept = there & ~choices[drawn]
    kept = jnp.where(jnp.any(kept, -1, keepdims=True), kept, there)
    seen = {name: batch.streams[name]._replace(mask=batch.streams[name].mask & kept[:, k, None])
            for k, name in enumerate(streams)}
    return batch._replace(streams=batch.streams | seen)

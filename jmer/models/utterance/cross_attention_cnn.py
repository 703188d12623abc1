"""Cross-attention CNN: cross-modal attention over 1-D convolutions of the waveform (Krishna & Patil, Interspeech 2020).

After the paper. Convolutions along time read the raw waveform, others the vectors of the words; a bidirectional
LSTM follows either. The steps of audio attend to those of text, and the other way round. What a stream has
become is pooled by its statistics, mean and standard deviation, and both together are scored.

What was read is the abstract of the paper (one-dimensional convolutions on the raw waveform, an encoder of text,
cross-modal attention in both directions) and of its sequel (arXiv:2108.09669, pooling by statistics). Recalled
are the LSTMs, GloVe vectors of 300 as text and several heads. Inferred are: batch normalisation and a ReLU behind
each convolution, strides where there may be pooling, kernels and strides as of wav2vec (100 steps a second from
16 kHz), a transformer layer (shortcuts, normalisation, a feed-forward network) around the attention, all widths.

The waveform is a stream one feature wide, whose steps are samples; frames of features go in as well, with smaller
strides. Padding is masked: a step of a strided convolution is present if any of its `stride` steps is. A
stream without the other finds zeros; an absent one adds zeros.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool

from jmer.layers.checked import Checked
from jmer.layers.conv import windows
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.pooling import pool
from jmer.layers.recurrent import BiLSTM
from jmer.layers.transformer import PostNormLayer
from jmer.types import Array, Batch, Output, Stream

TAGS = ('hybrid fusion', 'cross-modality attention', 'multi-head attention', 'convolutional', 'recurrent', 'unaligned',
        'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: audio, then text.
    widths, kernels, strides: of the convolutions of audio, the first one first.
    text_widths: of the convolutions of text, over `text_kernel` words each.
    text_kernel: see there.
    lstm: width of one direction of the LSTMs; twice that is a multiple of `heads`.
    heads: of attention.
    hidden: width inside the feed-forward network behind the attention.
    dropout: rate of attention weights, around them and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text')
    widths: tuple[int, ...] = (64, 64, 128, 128, 128)
    kernels: tuple[int, ...] = (10, 8, 4, 4, 4)
    strides: tuple[int, ...] = (5, 4, 2, 2, 2)
    text_widths: tuple[int, ...] = (128,)
    text_kernel: int = 3
    lstm: int = 64
    heads: int = 8
    hidden: int = 256
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        layers = len(self.text_widths)
        shapes = ((self.widths, self.kernels, self.strides),
                  (self.text_widths, layers * (self.text_kernel,), layers * (1,)))
        encoded = {}
        for name, shape in zip(self.streams, shapes, strict=True):
            stream = self._convolve(name, batch.streams[name], shape, batch.present, train)
            x = BiLSTM(self.lstm, name=f'lstm_{name}')(stream.x, stream.mask, train=train)
            encoded[name] = Stream(x, stream.mask)
        steps, vectors = {}, []
        for name, other in zip(self.streams, reversed(self.streams), strict=True):
            layer = PostNormLayer(self.heads, self.hidden, dropout=self.dropout, hidden_dropout=self.dropout,
                                  name=f'{name}_from_{other}')
            steps[name] = Stream(layer(*encoded[name], *encoded[other], train=train), encoded[name].mask)
            vectors.append(pool(*steps[name], 'mean_std'))
        fused = jnp.concatenate(vectors, -1)
        x = Dropout(self.dropout, name='dropout')(fused, train=train)
        return Output(Dense(self.classes, name='head')(x), {'steps': steps, 'fused': fused})

    def _convolve(
        self, name: str, stream: Stream, shape: tuple[tuple[int, ...], ...], present: Bool[Array, 'b'], train: bool
    ) -> Stream:
        """Convolutions along time, each normalised and under a ReLU, one step out of every `stride`."""
        x, mask = stream
        for k, (width, kernel, stride) in enumerate(zip(*shape, strict=True), 1):
            before = (kernel - 1) // 2
            x = windows(x, mask, kernel, stride=stride, before=before, after=kernel - 1 - before)
            blocks = jnp.pad(mask, ((0, 0), (0, -mask.shape[1] % stride))).reshape(len(mask), -1, stride)
            mask = jnp.any(blocks, -1)
            x = Dense(width, use_bias=False, name=f'conv_{name}_{k}')(x)
            x = BatchNorm(name=f'norm_{name}_{k}')(x, mask & present[:, None], train=train)
            x = jnp.where(mask[..., None], nn.relu(x), 0)
        return Stream(x, mask)

    def _check(self) -> None:
        if len(self.streams) != 2:
            raise ValueError(f'cross_attention_cnn: streams: found {self.streams}, expected two')
        if not len(self.widths) == len(self.kernels) == len(self.strides):
            raise ValueError(f'cross_attention_cnn: found widths {self.widths}, kernels {self.kernels} and strides '
                             f'{self.strides}, expected as many of each')

"""TETFN: text enhanced transformer fusion network (Wang et al., Pattern Recognition 2023).

LSTMs read audio and vision; every stream is projected by a convolution. Text reads the two others through
MulT's cross-modal encoders. Audio and vision read text, and each other with text's help: what the other stream
finds in text is what is read. Memory encoders and a small network score all together; besides, the maximum
over time of each stream is scored alone.

The labels of a stream alone are, as in Self-MM, made during training: see `jmer.own_labels`, which has the loss, the
stages and the memory.

Where this differs from the authors' code (in MMSA): padding is masked; a stream may be missing.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer import own_labels
from jmer.author import Reader, require_streams
from jmer.layers.attention import Encoder
from jmer.layers.checked import Checked
from jmer.layers.conv import inside
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import pool
from jmer.layers.recurrent import LSTM
from jmer.layers.subnet import FeatureHead
from jmer.types import Array, Batch, Output, Params, Stream, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'transformer', 'recurrent', 'unaligned', 'missing modality')
LAYERS = 2


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: text and two others.
    states: widths of the LSTMs of the two others.
    width: of a projected step, a multiple of `heads`. heads: of every encoder.
    kernels: steps that a projection sees: that of text, that of the two others.
    hidden: widths of the networks of the scores: of all together, then of each stream.
    attention_dropout: of reading text, of text's help, and of memory encoders.
    other_attention_dropout: of reading the two others.
    relu_dropout, residual_dropout, embed_dropout: rates in the encoders.
    text_dropout: of the features of text. dropout: in front of the networks of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    states: tuple[int, ...] = (16, 32)
    width: int = 50
    heads: int = 5
    kernels: tuple[int, ...] = (1, 1)
    hidden: tuple[int, ...] = (128, 32, 16, 32)
    attention_dropout: float = 0.1
    other_attention_dropout: float = 0.0
    relu_dropout: float = 0.0
    residual_dropout: float = 0.1
    embed_dropout: float = 0.1
    text_dropout: float = 0.1
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        streams = {name: self._project(name, batch.streams[name], train) for name in self.streams}
        text, *others = self.streams
        last = []
        for name in self.streams:
            read = [self._read(name, text if name in others else others[0], streams, train)]
            if name in others:
                other, = set(others) - {name}
                read.append(self._read_with_help(name, other, streams, train))
            else:
                read.append(self._read(name, others[1], streams, train))
            memory = self._encoder(f'{name}_memory', self.attention_dropout)
            last.append(memory(jnp.concatenate(read, -1), streams[name].mask, train=train, last=True)[:, 0])

        all_hidden, *own_hidden = self.hidden
        feature, logits = self._head('all', all_hidden)(jnp.concatenate(last, -1), train=train)
        features, alone = {'all': feature}, {}
        for name, hidden in zip(self.streams, own_hidden, strict=True):
            vector = pool(*streams[name], 'max')
            features[name], alone[name] = self._head(name, hidden)(vector, train=train)
        return Output(logits, {'alone': alone, 'features': features,
                               'there': own_labels.presence(batch, self.streams)})

    def _project(self, name: str, stream: Stream, train: bool) -> Stream:
        position = self.streams.index(name)
        if position:
            x = LSTM(self.states[position - 1], name=f'lstm_{name}')(*stream)
        else:
            x = Dropout(self.text_dropout, name='dropout_input')(
                jnp.where(stream.mask[..., None], stream.x, 0), train=train)
        x, mask = inside(Stream(x, stream.mask), self.kernels[min(position, 1)])
        return Stream(Dense(self.width, use_bias=False, name=f'project_{name}')(x), mask)

    def _read(self, name: str, source: str, streams: dict[str, Stream], train: bool) -> Float[Array, 'b t d']:
        rate = self.attention_dropout if source == self.streams[0] else self.other_attention_dropout
        encoder = self._encoder(f'{name}_from_{source}', rate)
        return encoder(*streams[name], *streams[source], train=train)

    def _read_with_help(
        self, name: str, other: str, streams: dict[str, Stream], train: bool
    ) -> Float[Array, 'b t d']:
        """What a stream finds in what another one finds in text."""
        encoders = (self._encoder(f'{name}_from_{other}_{part}', self.attention_dropout, layers, positions=True)
                    for part, layers in (('lower', 1), ('upper', LAYERS)))
        lower, upper = encoders
        found = lower(*streams[other], *streams[self.streams[0]], train=train)
        return upper(*streams[name], found, streams[other].mask, train=train)

    def _encoder(
        self, name: str, attention_dropout: float, layers: int = LAYERS, positions: bool = False
    ) -> Encoder:
        return Encoder(self.heads, layers, attention_dropout, self.relu_dropout, self.residual_dropout,
                       self.embed_dropout, positions=positions, name=name)

    def _head(self, name: str, hidden: int) -> FeatureHead:
        return FeatureHead(hidden, self.classes, self.dropout, name=f'head_{name}')

    def _check(self) -> None:
        for field, count in (('streams', 3), ('states', 2), ('kernels', 2), ('hidden', 4)):
            if len(getattr(self, field)) != count:
                raise ValueError(f'tetfn: {field}: found {getattr(self, field)}, expected {count} of them')


loss, stages, memory = own_labels.loss, own_labels.stages, own_labels.memory


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from MMSA's TETFN (text, audio, vision), whose BERT is kept apart."""
    require_streams('tetfn', model.streams, 3)
    reader, d, (text, audio, vision) = Reader(state, 'tetfn'), model.width, model.streams
    reader.skip('text_model.*')
    params: Params = {f'project_{text}': reader.conv1d('proj_l', None, d, model.kernels[0], bias=False)}
    for name, theirs, states in zip((audio, vision), ('audio_model', 'video_model'), model.states, strict=True):
        params[f'lstm_{name}'] = reader.lstm(f'{theirs}.rnn', None, states, 'l0')
        params[f'project_{name}'] = reader.conv1d(f'{theirs}.conv', states, d, model.kernels[1], bias=False)
    for name, source, letters in ((text, audio, 'la'), (text, vision, 'lv'), (audio, text, 'al'), (vision, text, 'vl')):
        params[f'{name}_from_{source}'] = reader.encoder('trans_{}_with_{}'.format(*letters), LAYERS, d)
    for name, other, letters in ((audio, vision, 'av'), (vision, audio, 'va')):
        for part, layers in (('lower', 1), ('upper', LAYERS)):
            params[f'{name}_from_{other}_{part}'] = reader.encoder(
                'trans_{}_with_{}.{}_mha'.format(*letters, part), layers, d)
    parts = (('all', 'fusion', 6 * d), (text, 'text', d), (audio, 'audio', d), (vision, 'video', d))
    for (name, theirs, inputs), hidden in zip(parts, model.hidden, strict=True):
        params[f'head_{name}'] = reader.feature_head(f'post_{theirs}_layer', inputs, hidden, model.classes)
    for name, letter in zip(model.streams, 'lav', strict=True):
        params[f'{name}_memory'] = reader.encoder(f'trans_{letter}_mem', LAYERS, 2 * d)
    reader.close()
    return {'params': params}

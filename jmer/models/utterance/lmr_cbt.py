"""LMR-CBT: modality-fused representations with a CB-transformer (Fu et al., 2021, arXiv:2112.01697).

An LSTM reads text; convolutions and MulT's encoders read the other streams, of which the last steps are kept.
Each of these then changes every step of text: a softmax over the features of what text and stream are
together. With the LSTM's output added, a last encoder reads text, and two linear layers score all streams.

Where this differs from the authors' code: their LSTM is told that the batch comes first, and gets time first,
so that it runs over the utterances of a batch and not over time; `across_batch` brings that back. Padding is
masked; a stream may be missing, whose change of the text is then left out; stored layers that the authors do
not use are not built.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer.author import Reader, require_streams
from jmer.layers.attention import Encoder
from jmer.layers.checked import Checked
from jmer.layers.conv import inside
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.recurrent import BiLSTM
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Output, Stream, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'transformer', 'recurrent', 'unaligned', 'missing modality')
KERNEL, LAYERS = 3, 2


class Model(Checked):
    """The defaults are the authors'. Attributes:
    classes: number of scores.
    streams: what is read; the first one is text, which the others change, the last of them first.
    width: of a step of every stream, an even multiple of `heads`; another stream than the first that has this
        width already is not projected.
    heads, layers: of the encoders.
    causal: a step sees no later one.
    across_batch: the LSTM runs over the utterances of the batch; see above.
    text_dropout: of the features of text. lstm_dropout: between the layers of the LSTM.
    attention_dropout, relu_dropout, residual_dropout, embed_dropout: rates in the encoders.
    out_dropout: in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    width: int = 40
    heads: int = 8
    layers: int = 5
    causal: bool = True
    across_batch: bool = False
    text_dropout: float = 0.3
    lstm_dropout: float = 0.5
    attention_dropout: float = 0.1
    relu_dropout: float = 0.1
    residual_dropout: float = 0.2
    embed_dropout: float = 0.3
    out_dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        text = batch.streams[self.streams[0]]
        states = self._read(text, train)
        normed = jnp.where(text.mask[..., None], layer_norm('norm_text')(states), 0)

        last, x = {}, normed
        for name in reversed(self.streams[1:]):
            stream = self._project(name, batch, train)
            last[name] = self._encoder(name)(*stream, train=train, last=True)[:, 0]
            there = jnp.any(stream.mask, -1)[:, None, None]
            x = jnp.where(there, FeatureAttention(self.width, name=f'change_{name}')(x, last[name]), x)
        last[self.streams[0]] = self._encoder(self.streams[0])(x + normed, text.mask, train=train, last=True)[:, 0]

        joined = jnp.concatenate([last[name] for name in self.streams], -1)
        x = nn.relu(Dense(joined.shape[-1], name='hidden_1')(joined))
        x = Dense(joined.shape[-1], name='hidden_2')(Dropout(self.out_dropout, name='dropout_out')(x, train=train))
        return Output(Dense(self.classes, name='head')(x), {'joined': joined, 'states': states, 'normed': normed})

    def _read(self, text: Stream, train: bool) -> Float[Array, 'b t d']:
        x = Dropout(self.text_dropout, name='dropout_text')(jnp.where(text.mask[..., None], text.x, 0), train=train)
        lstm = BiLSTM(self.width // 2, LAYERS, self.lstm_dropout, name='lstm')
        if self.across_batch:
            return lstm(x.swapaxes(0, 1), text.mask.T, train=train).swapaxes(0, 1)
        return lstm(x, text.mask, train=train)

    def _project(self, name: str, batch: Batch, train: bool) -> Stream:
        """A convolution over the steps, normalised. A window is present if its last step is."""
        x, mask = batch.streams[name]
        if x.shape[-1] != self.width:
            x, mask = inside(Stream(x, mask), KERNEL)
            x = Dense(self.width, use_bias=False, name=f'project_{name}')(x)
        return Stream(BatchNorm(name=f'norm_{name}')(x, mask & batch.present[:, None], train=train), mask)

    def _encoder(self, name: str) -> Encoder:
        return Encoder(self.heads, self.layers, self.attention_dropout, self.relu_dropout, self.residual_dropout,
                       self.embed_dropout, self.causal, name=f'encoder_{name}')


class FeatureAttention(nn.Module):
    """A softmax over the features of tanh(W x_t + U y): how much of each feature a step and a vector share."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], y: Float[Array, 'b e']) -> Float[Array, 'b t {self.width}']:
        own = Dense(self.width, name='own')(x)
        other = Dense(self.width, use_bias=False, name='other')(y)
        return nn.softmax(jnp.tanh(own + other[:, None]))


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of skeletonNN/LMR-CBT (text, audio, vision)."""
    require_streams('lmr_cbt', model.streams, 3)
    reader, d = Reader(state, 'lmr_cbt'), model.width
    reader.skip('cross_*.attn_weight_affine.*')      # stored and not used
    text, *others = model.streams
    params = {'lstm': reader.recurrent('lstm', 'lstm', reader.width('lstm.weight_ih_l0', 1), d // 2, LAYERS),
              'norm_text': reader.layer_norm('bn_l', d),
              f'encoder_{text}': reader.encoder('trans_l_mem', model.layers, d)}
    statistics = {}
    for name, letter in zip(others, 'av', strict=True):
        projection = reader.conv1d(f'proj_{letter}', None, d, KERNEL, bias=False)
        if reader.width(f'proj_{letter}.weight', 1) != d:        # else stored and not used
            params[f'project_{name}'] = projection
        params[f'norm_{name}'], statistics[f'norm_{name}'] = reader.batch_norm(f'bn_{letter}', d)
        params[f'encoder_{name}'] = reader.encoder(f'trans_{letter}_mem', model.layers, d)
        params[f'change_{name}'] = {'own': reader.dense(f'cross_{letter}.0.channel_affine', d, d),
                                    'other': reader.dense(f'cross_{letter}.0.y_affine', d, d, bias=False)}
    params['hidden_1'] = reader.dense('proj1', 3 * d, 3 * d)
    params['hidden_2'] = reader.dense('proj2', 3 * d, 3 * d)
    params['head'] = reader.dense('out_layer', 3 * d, model.classes)
    reader.close()
    return {'params': params, 'batch_stats': statistics}

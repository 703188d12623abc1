"""MCFN: multi-scale crossmodal fusion with dual attention for speech emotion (Interspeech 2023).

An LSTM reads text; two branches of dilated convolutions, one wide and one deep, read audio. In either stream
every step attends to all steps and every channel to all channels, both of which pass one convolution and are
added. Text attends to audio by additive attention; what it finds gates the text and is read together with it
by an LSTM, whose maximum over time is scored.

Where this differs from the authors' code: padding is masked, and the maximum is taken over the present steps.
Theirs lets the text LSTM, the attention and the statistics see the padding of text, and the maximum the zeros
behind all but the longest text of a batch, so that a prediction depends on its batch; `reads_padding` brings
that back. Stored layers that the authors do not use are not built. They publish no training script: the usual
loss is meant.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.author import Reader, require_streams
from jmer.layers.checked import Checked
from jmer.layers.conv import windows
from jmer.layers.dense import Dense, on_rows
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.pooling import pool
from jmer.layers.recurrent import BiLSTM
from jmer.types import Array, Batch, Output, Params, Stream, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'dual attention', 'gated', 'recurrent', 'unaligned',
        'missing modality')
SPAN = 9                                     # steps that one step behind the dilated convolutions sees


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: text, then audio.
    width: of a step of either stream, a multiple of `heads` and an even number.
    narrow: widths of the first two convolutions of the deep branch.
    attention: width of queries and keys where steps attend to steps of their own stream.
    heads: of the attention of text to audio.
    hidden: width in which a step of text and one of audio are compared.
    reads_padding: see above; what stands under the mask of text then matters.
    dropout: rate in front of the scores (0 in the authors' code).
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio')
    width: int = 256
    narrow: tuple[int, ...] = (64, 128)
    attention: int = 32
    heads: int = 4
    hidden: int = 40
    reads_padding: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        text, audio = (batch.streams[name] for name in self.streams)
        seen = jnp.ones_like(text.mask) if self.reads_padding else text.mask
        x = BiLSTM(self.width // 2, name='lstm_text')(text.x, seen, train=train)
        x = self._attend_twice(Stream(x, seen), 'text', batch.present, train)
        heard = self._listen(audio, batch.present, train)
        heard = Stream(self._attend_twice(heard, 'audio', batch.present, train), heard.mask)

        found = AdditiveAttention(self.heads, self.hidden, name='cross')(x, *heard)
        x = x * nn.sigmoid(Dense(self.width, name='gate')(found)) + x
        fused = BiLSTM(self.width, name='lstm_fused')(jnp.concatenate([x, found], -1), text.mask, train=train)
        counted = text.mask
        if self.reads_padding:               # zeros up to the longest text of the batch
            counted = jnp.broadcast_to(jnp.any(text.mask, 0), text.mask.shape)
        fused = pool(fused, counted, 'max')
        dropped = Dropout(self.dropout, name='dropout')(fused, train=train)
        return Output(Dense(self.classes, name='head')(dropped), {'fused': fused})

    def _listen(self, stream: Stream, present: Bool[Array, 'b'], train: bool) -> Stream:
        """Audio by two branches of convolutions. A window is present if its last step is."""
        short = max(0, SPAN - stream.x.shape[1])       # shorter than one window: absent, not an error
        x, mask = jnp.pad(stream.x, ((0, 0), (0, short), (0, 0))), jnp.pad(stream.mask, ((0, 0), (0, short)))

        def convolve(x, mask, width, size, name):
            gone = 2 * (size - 1)
            seen, mask = windows(x, mask, size, dilation=2), mask[:, gone:]
            there, norm = (mask & present[:, None]).reshape(-1), BatchNorm(affine=False, name=f'norm_{name}')
            kernel = Dense(width, use_bias=False, name=f'conv_{name}')
            return on_rows(lambda rows: norm(kernel(rows), there, train=train), seen), mask

        first = Dense(x.shape[-1], name='conv_first')
        x = nn.leaky_relu(on_rows(first, windows(x, mask, 3, before=1, after=1)))
        wide, _ = convolve(x, mask, self.width, 5, 'wide')
        for k, (width, size) in enumerate(zip((*self.narrow, self.width), (3, 2, 2), strict=True), 1):
            x, mask = convolve(x, mask, width, size, f'deep_{k}')
            x = nn.leaky_relu(x)
        return Stream(jnp.where(mask[..., None], nn.leaky_relu(wide + x), 0), mask)

    def _attend_twice(
        self, stream: Stream, name: str, present: Bool[Array, 'b'], train: bool
    ) -> Float[Array, 'b t d']:
        """Attention over steps and attention over channels, each through the same convolution, added."""
        x, mask = stream
        kernel = Dense(self.width, use_bias=False, name=f'after_{name}')
        norm = BatchNorm(epsilon=1e-6, name=f'after_norm_{name}')
        there = (mask & present[:, None]).reshape(-1)

        def after(x):
            seen = windows(x, mask, 3, before=1, after=1)
            return nn.relu(on_rows(lambda rows: norm(kernel(rows), there, train=train), seen))

        over_steps = after(_over_steps(x, mask, self.attention, name))      # first, as the statistics have it
        return jnp.where(mask[..., None], over_steps + after(_over_channels(x, name)), 0)

    def _check(self) -> None:
        if len(self.streams) != 2 or len(self.narrow) != 2:
            raise ValueError(f'mcfn: found streams {self.streams} and narrow {self.narrow}, expected two of each')
        if self.width % 2 or self.width % self.heads:
            raise ValueError(f'mcfn: width: found {self.width}, expected an even multiple of {self.heads} heads')


class _Gamma(nn.Module):
    """A share that starts at zero: share * y + x."""

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], y: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
        return self.param('gamma', nn.initializers.zeros, (1,))[None, None] * y + x


def _over_steps(x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], width: int, name: str) -> Float[Array, 'b t d']:
    """Every step and a share of what it finds in all steps."""
    q = Dense(width, name=f'steps_query_{name}')(x)
    k, v = jnp.split(Dense(width + x.shape[-1], name=f'steps_key_value_{name}')(x), [width], -1)
    scores = jnp.where(mask[:, None], jnp.einsum('btd,bsd->bts', q, k), -1e30)
    weights = jnp.where(mask[:, None], nn.softmax(scores), 0)
    return _Gamma(name=f'steps_{name}')(x, jnp.einsum('bts,bsd->btd', weights, v))


def _over_channels(x: Float[Array, 'b t d'], name: str) -> Float[Array, 'b t d']:
    """Every channel and a share of what it finds in all channels: most of those least like it."""
    gram = jnp.einsum('btd,bte->bde', x, x)
    weights = nn.softmax(jnp.max(gram, -1, keepdims=True) - gram)
    return _Gamma(name=f'channels_{name}')(x, jnp.einsum('bde,bte->btd', weights, x))


class AdditiveAttention(nn.Module):
    """Attention whose score is w . tanh(query + key) (Bahdanau et al., ICLR 2015), by several heads.

    Attributes:
        heads: of which d must be a multiple; all share the weights of the score.
        hidden: width in which queries and keys are compared.
    """

    heads: int
    hidden: int

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], source: Float[Array, 'b s d'], mask: Bool[Array, 'b s']
    ) -> Float[Array, 'b t d']:
        def dense(y, width, name):
            return Dense(width, use_bias=False, name=name)(y)

        def split(y):
            return jnp.moveaxis(y.reshape(*y.shape[:2], self.heads, -1), 2, 0)

        d = x.shape[-1]
        q, k, v = (split(dense(y, d, name)) for name, y in (('query', x), ('key', source), ('value', source)))
        scores = _Score(name='score')(dense(q, self.hidden, 'score_query'), dense(k, self.hidden, 'score_key'))
        there = mask[None, :, None]
        weights = jnp.where(there, nn.softmax(jnp.where(there, scores, -1e30)), 0)
        found = jnp.einsum('hbts,hbsd->bthd', weights, v)
        return dense(found.reshape(*x.shape), d, 'out')


class _Score(nn.Module):
    """Additive scores of every query and key, one head after the other.

    What a head compares, [b t s hidden], is large: it is made again for the gradient and never kept.
    """

    @nn.compact
    def __call__(self, q: Float[Array, 'h b t d'], k: Float[Array, 'h b s d']) -> Float[Array, 'h b t s']:
        kernel = self.param('kernel', nn.initializers.lecun_normal(), (q.shape[-1], 1))

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def score(head):
            q, k = head
            compared = jnp.tanh(q[:, :, None] + k[:, None])
            return (compared.reshape(-1, len(kernel)) @ kernel).reshape(compared.shape[:-1])

        return jax.lax.map(score, (q, k))


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from model_bimodal of zxiaohen/Speech-emotion-recognition-MCFN, whose BERT is kept apart."""
    require_streams('mcfn', model.streams, 2)
    reader, d = Reader(state, 'mcfn'), model.width
    reader.skip('bert.*', 'semantic_linear*', 'acoustic_excit.*', 'attention.*', 'conv_final*')   # not used
    frame = reader.width('pre_cnn.weight', 1)
    params: Params = {
        'lstm_text': reader.recurrent('lstm', 'semantic_lstm', None, d // 2, 1),
        'lstm_fused': reader.recurrent('lstm', 'fuse_lstm', 2 * d, d, 1),
        'conv_first': reader.conv1d('pre_cnn', frame, frame or 1, 3),
        'gate': reader.dense('semantic_excit', d, d),
        'head': reader.dense('classifier', 2 * d, model.classes),
    }
    statistics = {}
    convolutions = (('wide', 'acoustic_cnn', 'bn', d, 5), ('deep_1', 'acoustic_cnn1', 'bn1', model.narrow[0], 3),
                    ('deep_2', 'acoustic_cnn2', 'bn2', model.narrow[1], 2), ('deep_3', 'acoustic_cnn3', 'bn3', d, 2))
    for name, conv, norm, width, size in convolutions:
        params[f'conv_{name}'] = reader.conv1d(conv, None, width, size, bias=False)
        seen = reader.batch_statistics(norm, width)
        # A bias in front of a batch normalisation only moves its running mean.
        statistics[f'norm_{name}'] = seen | {'mean': seen['mean'] - reader.take(f'{conv}.bias', width)}
    for name, end in (('text', ''), ('audio', '_a')):
        query, key, value = (reader.conv1d(f'pa{end}.{part}_conv', d, width, 1) for part, width in (
            ('query', model.attention), ('key', model.attention), ('value', d)))
        params[f'steps_query_{name}'] = query
        params[f'steps_key_value_{name}'] = {k: jnp.concatenate([key[k], value[k]], -1) for k in key}
        params[f'steps_{name}'] = {'gamma': reader.take(f'pa{end}.gamma', 1)}
        params[f'channels_{name}'] = {'gamma': reader.take(f'ca{end}.gamma', 1)}
        params[f'after_{name}'] = reader.conv1d(f'conv_postatt{end}.0', d, d, 3, bias=False)
        params[f'after_norm_{name}'], statistics[f'after_norm_{name}'] = reader.batch_norm(f'conv_postatt{end}.1', d)
    names = {'query': 'W_q', 'key': 'W_k', 'value': 'W_v', 'out': 'W_o'}
    cross = {ours: reader.dense(f'mha.{theirs}', d, d, bias=False) for ours, theirs in names.items()}
    for ours, theirs in (('score_query', 'W_q'), ('score_key', 'W_k')):
        cross[ours] = reader.dense(f'mha.attention.{theirs}', d // model.heads, model.hidden, bias=False)
    cross['score'] = reader.dense('mha.attention.w_v', model.hidden, 1, bias=False)
    reader.close()
    return {'params': params | {'cross': cross}, 'batch_stats': statistics}

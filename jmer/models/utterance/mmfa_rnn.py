"""MMFA-RNN: multi-level multi-head fusion attention and recurrent networks (Ho et al., IEEE Access 2020).

After the paper. Recurrent networks with self-attention read MFCCs of the speech and BERT's vectors of the words,
side by side, so that each step knows its context. All representations together are fused by attention of
several heads, and scored.

What was read is the abstract: both inputs, recurrent networks based on self-attention, and a multi-level,
multi-head attention that fuses all that they represent. Inferred are: GRUs in both directions; the levels, which
are recurrent layers, each with self-attention behind it, that read one another; that a stream is represented at
each level by the mean of its steps, and that these vectors, of all streams and levels, attend to each other;
shortcuts and normalisation around all attention; two linear layers in front of the scores; all sizes.

Padding is masked. The vectors of an absent stream are not attended to, and are zeros.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers.attention import visible
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.mlp import MLP
from jmer.layers.pooling import pool
from jmer.layers.postnorm import mix, weigh
from jmer.layers.recurrent import BiGRU
from jmer.layers.transformer import Attention, layer_norm
from jmer.types import Array, Batch, Output, Stream

TAGS = ('hybrid fusion', 'multi-head attention', 'joint representation', 'recurrent', 'unaligned', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: what is read, each by networks of its own.
    width: of one direction of a recurrent layer; twice that is a multiple of `heads`.
    levels: recurrent layers of a stream, one or more.
    heads: of all attention.
    hidden: width of the layer in front of the scores.
    dropout: rate of attention weights, of what attention adds and in front of the last two layers.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text')
    width: int = 64
    levels: int = 2
    heads: int = 8
    hidden: int = 128
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        vectors, there = [], []
        for name in self.streams:
            stream = batch.streams[name]
            for level in range(1, self.levels + 1):
                stream = self._read(f'{name}_{level}', stream, train)
                vectors.append(pool(*stream, 'mean'))
                there.append(jnp.any(stream.mask, -1))
        levels = jnp.stack(vectors, 1)
        fused, weights = self._fuse(levels, jnp.stack(there, 1), train)
        logits = MLP((self.hidden, self.classes), self.dropout, name='head')(
            fused.reshape(len(fused), -1), train=train)
        return Output(logits, {'levels': levels, 'attention': weights, 'fused': fused})

    def _read(self, name: str, stream: Stream, train: bool) -> Stream:
        """One level of a stream: every step in its context, by recurrence and then by self-attention."""
        x = BiGRU(self.width, name=f'gru_{name}')(*stream, train=train)
        seen = visible(stream.mask, stream.mask, causal=False)
        y = Attention(self.heads, self.dropout, name=f'attend_{name}')(x, x, seen, train=train)
        x = layer_norm(f'norm_{name}')(x + Dropout(self.dropout, name=f'dropout_{name}')(y, train=train))
        return Stream(jnp.where(stream.mask[..., None], x, 0), stream.mask)

    def _fuse(
        self, x: Float[Array, 'b n d'], there: Bool[Array, 'b n'], train: bool
    ) -> tuple[Float[Array, 'b n d'], Float[Array, 'b h n n']]:
        """The vectors of all streams and levels, having attended to each other, and how they did."""
        d = x.shape[-1]
        q = Dense(d, name='query')(x)
        k, v = jnp.split(Dense(2 * d, name='key_value')(x), 2, -1)
        weights = weigh(q, k, visible(there, there, causal=False), self.heads)
        y = mix(Dropout(self.dropout, name='dropout_weights')(weights, train=train), v)
        y = Dense(d, name='attention_out')(y)
        x = layer_norm('norm_fused')(x + Dropout(self.dropout, name='dropout_fused')(y, train=train))
        return jnp.where(there[..., None], x, 0), weights

    def _check(self) -> None:
        if self.levels < 1:
            raise ValueError(f'mmfa_rnn: levels: found {self.levels}, expected 1 or more')
        if 2 * self.width % self.heads:
            raise ValueError(f'mmfa_rnn: heads: found {self.heads}, expected a divisor of {2 * self.width} (2 width)')

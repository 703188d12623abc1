"""CTNet: conversational transformer network (Lian et al., IEEE/ACM TASLP 2021).

Inside a turn, transformer layers let every stream read itself (words, audio frames) and every other stream;
the means over the steps, side by side, are the turn. Between turns a bidirectional GRU follows the dialogue
and every turn attends to all others, knowing who speaks.

Written after the paper; no code has been published, so there is nothing to be equal to. Inferred: post-norm
layers and sinusoidal positions; a pair of streams reads each other both ways; means for pooling; the vector of
the speaker is added in front of the GRU; attended states and the GRU's own, side by side, are scored. A turn
that comes as one vector a stream is a sequence of one step. Missing modalities are masked; speakers beyond
the last known one share its vector. `causal` leaves out the backward direction and attends to the past only.
"""

import flax.linen as nn
import jax.numpy as jnp

from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.graph import complete, speakers_of
from jmer.layers.pooling import pool
from jmer.layers.position import interleaved
from jmer.layers.recurrent import BiGRU
from jmer.layers.transformer import Attention, PostNormLayer
from jmer.types import Array, Batch, Output, Stream

TAGS = ('deep fusion', 'cross-modality attention', 'multi-head attention', 'transformer', 'recurrent', 'context',
        'speaker-aware', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: what is read.
    width: features of a step, and of a turn in one direction of the GRU; a multiple of `heads`.
    heads: of every attention.
    hidden: width inside the transformer layers.
    layers: of every transformer.
    speakers: rows of the table of speakers.
    causal: read the past only, between turns.
    dropout: everywhere.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio')
    width: int = 100
    heads: int = 4
    hidden: int = 200
    layers: int = 1
    speakers: int = 2
    causal: bool = False
    dropout: float = 0.2

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        steps = {name: self._steps(name, batch.streams[name]) for name in self.streams}
        read = [self._read(name, source, steps, train) for name in self.streams for source in self.streams]
        joined = jnp.concatenate(read, -1).reshape(*batch.present.shape, -1)
        x: Array = nn.relu(Dense(self.width, name='turn')(joined))
        x = Dropout(self.dropout, name='dropout_turn')(x, train=train)
        if batch.speakers is not None:
            table = self.param('speakers', nn.initializers.normal(0.1), (self.speakers, self.width))
            x = x + jnp.asarray(table)[speakers_of(batch, self.speakers)]
        h = BiGRU(self.width, causal=self.causal, name='gru')(x, batch.present, train=train)
        seen = complete(batch.present)
        seen = jnp.tril(seen) if self.causal else seen
        attended = Attention(self.heads, self.dropout, name='attention')(h, h, seen, train=train)
        h = Dropout(self.dropout, name='dropout_head')(jnp.concatenate([h, attended], -1), train=train)
        return Output(Dense(self.classes, name='head')(h), {'turns': joined, 'context': h})

    def _steps(self, name: str, stream: Stream) -> Stream:
        """The steps of every turn, [b*u t width], with positions."""
        x, mask = jnp.asarray(stream.x), jnp.asarray(stream.mask)
        if x.ndim == 3:
            x, mask = x[:, :, None], mask[:, :, None]
        x, mask = (a.reshape(-1, *a.shape[2:]) for a in (x, mask))
        x = Dense(self.width, name=f'project_{name}')(jnp.where(mask[..., None], x, 0))
        return Stream(x + interleaved(jnp.cumsum(mask, -1) - 1, self.width), mask)

    def _read(self, name: str, source: str, steps: dict[str, Stream], train: bool) -> Array:
        """A stream that has read a source, or itself: the mean over its steps."""
        x, mask = steps[name]
        for k in range(self.layers):
            layer = PostNormLayer(self.heads, self.hidden, dropout=self.dropout, hidden_dropout=self.dropout,
                                  name=f'{name}_from_{source}_{k}')
            x = layer(x, mask, train=train) if source == name else layer(x, mask, *steps[source], train=train)
        return pool(x, mask, 'mean')

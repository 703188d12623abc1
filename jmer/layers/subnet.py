"""Sub-networks that make one vector of a stream before it is fused (Zadeh et al., EMNLP 2017)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.pooling import pool
from jmer.layers.recurrent import LSTM
from jmer.types import Array, Stream


class PooledNet(nn.Module):
    """Pooled over time, normalised, dropped out, three linear layers with ReLU; zeros where absent.

    Attributes:
        width: of the layers.
        pooling: how a stream becomes a vector, see `layers.pooling`.
        dropout: rate in front of the layers.
    """

    width: int
    pooling: str = 'mean'
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, stream: Stream, present: Bool[Array, 'b'], *, train: bool
    ) -> Float[Array, 'b {self.width}']:
        there = jnp.any(stream.mask, -1)
        x = BatchNorm(name='norm')(pool(stream.x, stream.mask, self.pooling), there & present, train=train)
        x = Dropout(self.dropout, name='dropout')(x, train=train)
        for k in (1, 2, 3):
            x = nn.relu(Dense(self.width, name=f'linear_{k}')(x))
        return jnp.where(there[:, None], x, 0.0)


class LastStateNet(nn.Module):
    """The last state of an LSTM, dropped out, and a linear layer; zeros where absent.

    Attributes:
        hidden: width of the LSTM.
        width: of the result.
        dropout: rate in front of the linear layer.
    """

    hidden: int
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool) -> Float[Array, 'b {self.width}']:
        x = pool(LSTM(self.hidden, name='lstm')(stream.x, stream.mask), stream.mask, 'last')
        x = Dropout(self.dropout, name='dropout')(x, train=train)
        x = Dense(self.width, name='linear')(x)
        return jnp.where(jnp.any(stream.mask, -1)[:, None], x, 0.0)


class FeatureHead(nn.Module):
    """Features, and the scores that two more layers make of them (MMSA's heads of single streams).

    Attributes:
        hidden: width of the features.
        classes: number of scores.
        dropout: rate in front of the features' layer.
    """

    hidden: int
    classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b d'], *, train: bool
    ) -> tuple[Float[Array, 'b {self.hidden}'], Float[Array, 'b {self.classes}']]:
        x = Dropout(self.dropout, name='dropout')(x, train=train)
        feature = nn.relu(Dense(self.hidden, name='dense_1')(x))
        x = nn.relu(Dense(self.hidden, name='dense_2')(feature))
        return feature, Dense(self.classes, name='dense_3')(x)

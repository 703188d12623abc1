"""The plain feed-forward network at the end of many systems, and scores of every step."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.types import Array


class MLP(nn.Module):
    """Dropout and a linear layer, with ReLU between two layers and none after the last.

    Attributes:
        widths: output width of each linear layer.
        dropout: rate in front of every linear layer.
    """

    widths: tuple[int, ...]
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, '*b d'], *, train: bool) -> Float[Array, '*b c']:
        for k, width in enumerate(self.widths):
            x = nn.relu(x) if k else x
            x = Dropout(self.dropout, name=f'dropout_{k}')(x, train=train)
            x = Dense(width, name=f'dense_{k}')(x)
        return x


class StepScores(nn.Module):
    """Scores of every step, each by a network of its own: two linear layers with dropout between them.

    Attributes:
        classes: number of scores.
        hidden: width of the first layer.
        activation: 'relu' between the layers, or none.
        dropout: rate between the layers.
    """

    classes: int
    hidden: int
    activation: str = 'relu'
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], *, train: bool) -> Float[Array, 'b t {self.classes}']:
        # Side by side: the first layers as one product, the second ones as a product of each with its own part.
        x = Dense(self.classes * self.hidden, name='dense_0')(x)
        x = nn.relu(x) if self.activation == 'relu' else x
        x = Dropout(self.dropout, name='dropout')(x, train=train)
        kernel = self.param('kernel_1', nn.initializers.lecun_normal(in_axis=1, out_axis=0),
                            (self.classes, self.hidden))
        bias = self.param('bias_1', nn.initializers.zeros, (self.classes,))
        x = x.reshape(*x.shape[:2], self.classes, self.hidden)
        return jnp.einsum('btch,ch->btc', x, kernel) + bias[None, None]

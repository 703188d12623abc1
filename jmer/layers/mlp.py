"""The plain feed-forward network at the end of many systems, and dense layers of every step."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jmer.types import Array


def on_rows(layer: Callable[[Array], Array], x: Float[Array, '*b d']) -> Float[Array, '*b e']:
    """What a layer gives for every step. XLA makes the gradient of a kernel from rows, or from transposed copies."""
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def wide_product(x: Float[Array, 'n d'], kernel: Float[Array, 'd e']) -> Float[Array, 'n e']:
    """x @ kernel, for rows of a width that is a multiple of 1024.

    The gradient of the kernel is made from dy transposed: down the columns of x, at such a distance from each
    other, a CPU's cache holds few of them, and XLA would be two to three times slower.
    """
    return x @ kernel


def _wide_backward(saved, dy):
    x, kernel = saved
    # The barriers keep XLA from turning it back into x.T @ dy.
    return dy @ kernel.T, jax.lax.optimization_barrier(jax.lax.optimization_barrier(dy.T) @ x).T


wide_product.defvjp(lambda x, kernel: (wide_product(x, kernel), (x, kernel)), _wide_backward)


class WideDense(nn.Module):
    """`nn.Dense` by `wide_product`. Attributes: width."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b {self.width}']:
        kernel = self.param('kernel', nn.initializers.lecun_normal(), (x.shape[-1], self.width))
        bias = self.param('bias', nn.initializers.zeros, (self.width,))
        return on_rows(lambda rows: wide_product(rows, kernel) + bias[None], x)


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
            x = nn.Dropout(self.dropout, name=f'dropout_{k}')(x, deterministic=not train)
            x = nn.Dense(width, name=f'dense_{k}')(x)
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
        x = nn.Dense(self.classes * self.hidden, name='dense_0')(x)
        x = nn.relu(x) if self.activation == 'relu' else x
        x = nn.Dropout(self.dropout, name='dropout')(x, deterministic=not train)
        kernel = self.param('kernel_1', nn.initializers.lecun_normal(in_axis=1, out_axis=0),
                            (self.classes, self.hidden))
        bias = self.param('bias_1', nn.initializers.zeros, (self.classes,))
        x = x.reshape(*x.shape[:2], self.classes, self.hidden)
        return jnp.einsum('btch,ch->btc', x, kernel) + bias[None, None]

"""Gates by which streams change a representation."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Stream


def length(x: Float[Array, '*b d']) -> Float[Array, '*b 1']:
    """Euclidean length over the features, whose gradient at zero is zero."""
    squares = jnp.sum(jnp.square(x), -1, keepdims=True)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def unit(x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """x at length 1 over the features; zero stays zero."""
    return x / jnp.maximum(length(x), 1e-12)


class AdaptationGate(nn.Module):
    """The multimodal adaptation gate (Rahman et al., ACL 2020): words are shifted by what is heard and seen.

    A gate for each stream, which sees the word as well, says how much of it takes part in the shift; the
    shift is at most `beta` times as long as the word.

    Attributes:
        beta: see above.
        dropout: rate of the result.
    """

    beta: float = 1.0
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], streams: Mapping[str, Stream], *, train: bool
    ) -> Float[Array, 'b t d']:
        """streams: step by step as x is."""
        shape, d = x.shape, x.shape[-1]
        # On rows: of [b t d] the gradients of the kernels would be made from transposed copies.
        x = x.reshape(-1, d)
        shift: Array = jnp.zeros_like(x)
        for name, stream in streams.items():
            there = stream.mask.reshape(-1, 1)
            y: Array = jnp.where(there, stream.x.reshape(len(there), -1), 0)
            gate = nn.relu(Dense(d, name=f'gate_{name}')(jnp.concatenate([y, x], -1)))
            shift += jnp.where(there, gate * Dense(d, name=f'shift_{name}')(y), 0)
        far = length(shift)
        ratio = self.beta * length(x) / (jnp.where(far == 0, 1, far) + 1e-6)
        x = layer_norm('norm')(jnp.minimum(ratio, 1) * shift + x)
        return Dropout(self.dropout, name='dropout')(x.reshape(shape), train=train)

"""Gates by which streams change a representation."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

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


class Affine(nn.Module):
    """Kernel and bias of a dense layer, for who multiplies parts of them by themselves."""

    inputs: int
    width: int

    @nn.compact
    def __call__(self) -> tuple[Float[Array, 'e d'], Float[Array, 'd']]:
        return (self.param('kernel', nn.initializers.lecun_normal(), (self.inputs, self.width)),
                self.param('bias', nn.initializers.zeros, (self.width,)))


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
        shift, d = jnp.zeros_like(x), x.shape[-1]
        seen = {name: jnp.where(stream.mask[..., None], stream.x, 0) for name, stream in streams.items()}
        gates = {name: Affine(y.shape[-1] + d, d, name=f'gate_{name}')() for name, y in seen.items()}
        # What the gates see of the word, for all streams in one product.
        of_words = x.reshape(-1, d) @ jnp.concatenate([kernel[-d:] for kernel, _ in gates.values()], -1)
        for (name, y), of_word in zip(seen.items(), jnp.split(of_words.reshape(*x.shape[:2], -1), len(seen), -1),
                                      strict=True):
            kernel, bias = gates[name]
            weights, own_bias = Affine(y.shape[-1], d, name=f'shift_{name}')()
            of_stream = y @ jnp.concatenate([kernel[:-d], weights], -1)
            gate = nn.relu(of_stream[..., :d] + of_word + bias[None, None])
            shift += jnp.where(streams[name].mask[..., None], gate * (of_stream[..., d:] + own_bias[None, None]), 0)
        far = length(shift)
        ratio = self.beta * length(x) / (jnp.where(far == 0, 1, far) + 1e-6)
        x = layer_norm('norm')(jnp.minimum(ratio, 1) * shift + x)
        return Dropout(self.dropout, name='dropout')(x, train=train)

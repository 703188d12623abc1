"""Products of several vectors: all interactions at once, in full or at low rank."""

from collections.abc import Sequence
from functools import reduce

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer.types import Array


def with_one(x: Float[Array, 'b d']) -> Float[Array, 'b d+1']:
    """A 1 in front, so that a product also holds what the other factors say alone."""
    return jnp.concatenate([jnp.ones_like(x[:, :1]), x], -1)


def outer(vectors: Sequence[Float[Array, 'b _']]) -> Float[Array, 'b n']:
    """The outer product of all vectors of an item, flattened; the index of the last runs fastest."""
    return reduce(lambda x, y: (x[:, :, None] * y[:, None]).reshape(len(x), -1), vectors)


class LowRank(nn.Module):
    """A linear map of the outer product of [1; x_1], [1; x_2], ..., its kernel a sum of `rank` products.

    Neither the product nor the kernel is ever formed (Liu et al., ACL 2018).

    Attributes:
        width: of the result.
        rank: number of summands.
    """

    width: int
    rank: int

    @nn.compact
    def __call__(self, *vectors: Float[Array, 'b _']) -> Float[Array, 'b {self.width}']:
        init = nn.initializers.xavier_normal(in_axis=1, out_axis=0)   # the fans that PyTorch sees in three axes
        parts = []
        for k, x in enumerate(vectors):
            factor = self.param(f'factor_{k}', init, (self.rank, x.shape[-1] + 1, self.width))
            parts.append(jnp.einsum('bi,rio->bro', with_one(x), factor))
        weights = self.param('weights', nn.initializers.xavier_normal(), (1, self.rank))
        bias = self.param('bias', nn.initializers.zeros, (1, self.width))
        return jnp.einsum('bro,r->bo', reduce(jnp.multiply, parts), weights[0]) + bias

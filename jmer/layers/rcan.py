"""Residual channel attention in one dimension (RCAN, Zhang et al., ECCV 2018), as IMDer recovers streams by it."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers.conv import windows
from jmer.layers.dense import Dense
from jmer.layers.pooling import pool
from jmer.types import Array


class ResidualGroup(nn.Module):
    """Convolutions over three steps, in blocks whose channels are gated by their means over time.

    x is added to what every block and the whole group make of it. Outputs are zero where the mask is False.

    Attributes:
        blocks: how many.
        reduction: how many times narrower than x the network of the gates is.
    """

    blocks: int
    reduction: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b t d']:
        d = x.shape[-1]
        if d < self.reduction:
            raise ValueError(f'residual group: found {d} channels, expected reduction={self.reduction} or more')

        def convolve(x, name):
            return Dense(d, name=name)(windows(x, mask, 3, before=1, after=1))

        y = x
        for i in range(self.blocks):
            added = convolve(nn.relu(convolve(y, f'block_{i}_conv_0')), f'block_{i}_conv_1')
            gate = nn.relu(Dense(d // self.reduction, name=f'block_{i}_squeeze')(pool(added, mask, 'mean')))
            gate = nn.sigmoid(Dense(d, name=f'block_{i}_excite')(gate))
            y = y + added * gate[:, None]
        return jnp.where(mask[..., None], x + convolve(y, 'out'), 0)

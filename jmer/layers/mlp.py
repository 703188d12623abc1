"""The plain feed-forward network at the end of many systems."""

import flax.linen as nn
from jaxtyping import Float

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
            x = nn.Dropout(self.dropout, name=f'dropout_{k}')(x, deterministic=not train)
            x = nn.Dense(width, name=f'dense_{k}')(x)
        return x

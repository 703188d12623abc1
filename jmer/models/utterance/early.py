"""Early fusion: the pooled streams side by side, one network over all of them.

The field's oldest baseline (feature-level fusion in the survey literature). An absent stream counts as
zeros, the training mean of standardised features.
"""

import flax.linen as nn
import jax.numpy as jnp

from jmer.layers.checked import Checked
from jmer.layers.mlp import MLP
from jmer.layers.pooling import pooled_streams
from jmer.types import Batch, Output

TAGS = ('early fusion', 'joint representation', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: names of the streams that are concatenated.
    hidden: width of each hidden layer.
    pooling: how a stream becomes a vector, see `layers.pooling`.
    dropout: rate in front of every linear layer.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    hidden: tuple[int, ...] = (128, 128)
    pooling: str = 'mean_std'
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        vectors, _ = pooled_streams(batch, self.streams, self.pooling)
        fused = jnp.concatenate(vectors, -1)
        logits = MLP((*self.hidden, self.classes), self.dropout, name='head')(fused, train=train)
        return Output(logits, {'fused': fused})

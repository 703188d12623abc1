"""Late (decision) fusion: one network per stream, their decisions combined.

Three rules of the survey literature: the mean of the decisions, a learned weight per stream, or a second
network stacked on all decisions. An absent stream has no say: the weights of the others are rescaled, and
the stacked network sees an undecided vote in its place.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jmer.layers.mlp import MLP
from jmer.layers.pooling import pooled_streams
from jmer.types import Batch, Output

TAGS = ('late fusion', 'missing modality')
RULES = ('mean', 'weighted', 'stacked')


class Model(nn.Module):
    """Attributes:
    classes: number of scores.
    streams: names of the streams; each has a network of its own.
    rule: 'mean', 'weighted' or 'stacked'.
    probabilities: average class probabilities (True) or raw scores (False: regression, several labels).
    hidden: width of each hidden layer of a stream's network.
    pooling: how a stream becomes a vector, see `layers.pooling`.
    dropout: rate in front of every linear layer.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    rule: str = 'mean'
    probabilities: bool = True
    hidden: tuple[int, ...] = (128,)
    pooling: str = 'mean_std'
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if self.rule not in RULES:
            raise ValueError(f'late: rule {self.rule!r}: it is one of {", ".join(RULES)}')
        vectors, there = pooled_streams(batch, self.streams, self.pooling)
        decisions = jnp.stack([
            MLP((*self.hidden, self.classes), self.dropout, name=f'head_{name}')(x, train=train)
            for name, x in zip(self.streams, vectors, strict=True)
        ], 1)
        if self.probabilities:
            decisions = jax.nn.log_softmax(decisions)
        undecided = -jnp.log(float(self.classes)) if self.probabilities else 0.0
        decisions = jnp.where(there[..., None], decisions, undecided)
        return Output(self._combine(decisions, there), {'decisions': decisions})

    def _combine(self, decisions, there):
        """[b m c] decisions of the streams to [b c] scores."""
        if self.rule == 'stacked':
            return nn.Dense(self.classes, name='stack')(decisions.reshape(len(decisions), -1))
        strength = jnp.zeros(len(self.streams))
        if self.rule == 'weighted':
            strength = self.param('strength', nn.initializers.zeros, (len(self.streams),))
        weights = jnp.where(there, jnp.exp(strength)[None], 0.0)
        weights = weights / jnp.maximum(jnp.sum(weights, -1, keepdims=True), 1e-9)
        if not self.probabilities:
            return jnp.sum(weights[..., None] * decisions, 1)
        # In the log domain, so that a confident wrong vote cannot underflow to log 0.
        scores = jax.scipy.special.logsumexp(decisions, axis=1, b=weights[..., None])
        return jnp.where(jnp.any(there, -1, keepdims=True), scores, jnp.mean(decisions, 1))

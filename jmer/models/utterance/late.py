"""Late (decision) fusion: one network per stream, their decisions combined.

Rules of the survey literature: the mean of the decisions, a learned weight per stream, a weight by how sure
a stream is of the very item, or a second network stacked on all decisions. An absent stream has no say: the
weights of the others are rescaled, and the stacked network sees an undecided vote in its place.

How sure a stream is, 'entropy' tells by how far the entropy of its decision is below that of an undecided one
(the rule is named after Wang et al., ICASSP 2024, whose abstract says that entropies weigh the decisions; the
formula is inferred), and 'confidence' by its largest probability. Both are differentiable and learn nothing.
They need class probabilities: a real value, or several labels at once, have no such entropy.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.mlp import MLP
from jmer.layers.pooling import pooled_streams
from jmer.types import Array, Batch, Output

TAGS = ('late fusion', 'uncertainty', 'missing modality')
RULES = ('mean', 'weighted', 'entropy', 'confidence', 'stacked')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: names of the streams; each has a network of its own.
    rule: 'mean', 'weighted', 'entropy', 'confidence' or 'stacked'.
    probabilities: average class probabilities (True) or raw scores (False: regression, several labels, for
        which the rules 'entropy' and 'confidence' have no meaning).
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
        self._check()
        vectors, there = pooled_streams(batch, self.streams, self.pooling)
        decisions = jnp.stack([
            MLP((*self.hidden, self.classes), self.dropout, name=f'head_{name}')(x, train=train)
            for name, x in zip(self.streams, vectors, strict=True)
        ], 1)
        if self.probabilities:
            decisions = jax.nn.log_softmax(decisions)
        undecided = -jnp.log(float(self.classes)) if self.probabilities else 0.0
        decisions = jnp.where(there[..., None], decisions, undecided)
        if self.rule == 'stacked':
            scores = Dense(self.classes, name='stack')(decisions.reshape(len(decisions), -1))
            return Output(scores, {'decisions': decisions})
        weights = self._weights(decisions, there)
        return Output(self._combine(decisions, weights, there), {'decisions': decisions, 'weights': weights})

    def _check(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f'late: rule {self.rule!r}: it is one of {", ".join(RULES)}')
        if self.rule in ('entropy', 'confidence') and (not self.probabilities or self.classes < 2):
            raise ValueError(f'late: rule {self.rule!r}: found probabilities={self.probabilities} and '
                             f'classes={self.classes}, expected probabilities of two classes or more')

    def _weights(self, decisions, there):
        """Share of each stream in the result, [b m]; that of an absent one is 0."""
        if self.rule == 'entropy':
            return entropy_weights(decisions, there)
        if self.rule == 'confidence':
            return confidence_weights(decisions, there)
        strength = jnp.zeros(len(self.streams))
        if self.rule == 'weighted':
            strength = self.param('strength', nn.initializers.zeros, (len(self.streams),))
        return _shares(jnp.exp(strength)[None], there)

    def _combine(self, decisions, weights, there):
        """[b m c] decisions of the streams to [b c] scores."""
        if not self.probabilities:
            return jnp.sum(weights[..., None] * decisions, 1)
        # In the log domain, so that a confident wrong vote cannot underflow to log 0.
        scores = jax.scipy.special.logsumexp(decisions, axis=1, b=weights[..., None])
        return jnp.where(jnp.any(there, -1, keepdims=True), scores, jnp.mean(decisions, 1))


def entropy_weights(log_p: Float[Array, 'b m c'], there: Bool[Array, 'b m']) -> Float[Array, 'b m']:
    """Shares of the streams in proportion to log c - entropy, 0 where absent.

    log_p: logarithms of the probabilities that each stream gives the classes. Undecided streams among
    themselves share alike, for which 1e-6 is added to each difference.
    """
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    return _shares(jnp.maximum(jnp.log(float(log_p.shape[-1])) - entropy, 0) + 1e-6, there)


def confidence_weights(log_p: Float[Array, 'b m c'], there: Bool[Array, 'b m']) -> Float[Array, 'b m']:
    """Shares of the streams in proportion to their largest probability, 0 where absent."""
    return _shares(jnp.exp(jnp.max(log_p, -1)), there)


def _shares(strength, there):
    """Strengths [b m] or [1 m], scaled to add up to 1 over the streams that are there."""
    strength = jnp.where(there, strength, 0.0)
    return strength / jnp.maximum(jnp.sum(strength, -1, keepdims=True), 1e-9)

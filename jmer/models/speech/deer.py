"""DEER: deep evidential emotion regression (Wu et al., ACL 2023).

The hidden states of a pretrained encoder are averaged with learned weights and read by a transformer. Its
mean gives for every attribute the four numbers of a normal inverse gamma distribution: the prediction, and
how much of the doubt about it is in the ratings and how much in the model.

Where this differs from the authors' code: padding has no part in the mean over time, unless
`pool_padding`. Losses are averaged over the items, where theirs are summed. Besides ratings by several
people, the loss takes one label alone, and class labels as vectors of zeros and a one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import pool
from jmer.layers.position import interleaved
from jmer.layers.postnorm import PostNorm
from jmer.types import Array, Batch, Output, Variables

TAGS = ('speech', 'transformer', 'multi-head attention', 'uncertainty')


class Evidence(NamedTuple):
    """A normal inverse gamma distribution of every target, [b c] each; gamma is the prediction."""

    gamma: Float[Array, 'b c']
    v: Float[Array, 'b c']
    alpha: Float[Array, 'b c']
    beta: Float[Array, 'b c']


class Model(Checked):
    """The defaults are the authors' for WavLM-base-plus. Attributes:
    classes: number of attributes.
    stream: what is read: the hidden states of all layers of an encoder, side by side in every step.
    states: how many they are; 1: the features are what they are.
    width, heads, hidden, layers: of the transformer.
    dropout: everywhere in it, and after positions are added.
    average_raters: average the likelihood over an item's raters, otherwise add it up.
    regulariser: weight of the evidence for what is wrong.
    reference: weight of the likelihood of the mean rating.
    pool_padding: let padding take part in the mean over time, as the authors' code does.
    """

    classes: int
    stream: str = 'audio'
    states: int = 12
    width: int = 128
    heads: int = 4
    hidden: int = 128
    layers: int = 2
    dropout: float = 0.3
    average_raters: bool = True
    regulariser: float = 0.1
    reference: float = 0.0
    pool_padding: bool = False

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x, mask = batch.streams[self.stream]
        pooled_steps = jnp.ones_like(mask) if self.pool_padding else mask
        x = self._mixed(jnp.where(pooled_steps[..., None], x, 0))
        x = Dense(self.width, name='embed')(x)
        steps = jnp.broadcast_to(jnp.arange(x.shape[1])[None], mask.shape)
        x = Dropout(self.dropout, name='dropout')(x + interleaved(steps, self.width), train=train)
        seen = jnp.broadcast_to(mask[:, None], (*mask.shape, mask.shape[1]))
        for i in range(self.layers):
            rates = (self.dropout,) * 4
            x, _ = PostNorm(self.heads, self.hidden, *rates, name=f'layer_{i}')(x, seen, train=train)
        pooled = pool(x, pooled_steps, 'mean')
        gamma, *positive = jnp.split(Dense(4 * self.classes, name='head')(pooled), 4, -1)
        v, alpha, beta = map(nn.softplus, positive)
        evidence = Evidence(gamma, v, alpha + 1, beta)
        return Output(gamma, {'evidence': evidence, 'std': predictive_std(evidence)})

    def _mixed(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t e']:
        """The mean of the hidden states under learned weights."""
        if x.shape[-1] % self.states:
            raise ValueError(f'deer: {self.stream}: found {x.shape[-1]} features, '
                             f'expected a multiple of states={self.states}')
        if self.states == 1:
            return x
        weights = self.param('state_weights', nn.initializers.constant(1 / self.states), (self.states,))
        return jnp.einsum('btnd,n->btd', x.reshape(*x.shape[:2], self.states, -1), nn.softmax(weights))


def predictive_std(evidence: Evidence) -> Float[Array, 'b c']:
    """The standard deviation of a rating, the doubt of the raters and that of the model together."""
    _, v, alpha, beta = evidence
    return jnp.sqrt(beta * (1 + v) / (v * _above(alpha)))


def nll(evidence: Evidence, rating: Float[Array, 'b c']) -> Float[Array, 'b c']:
    """-log of the density of a rating: Student's t, with the parameters of the distribution summed out."""
    gamma, v, alpha, beta = evidence
    omega = 2 * beta * (1 + v)
    return (0.5 * (jnp.log(jnp.pi) - jnp.log(v)) - alpha * jnp.log(omega)
            + (alpha + 0.5) * jnp.log(v * jnp.square(rating - gamma) + omega)
            + gammaln(alpha) - gammaln(alpha + 0.5))


def evidential_loss(
    evidence: Evidence,
    reference: Float[Array, 'b c'],
    ratings: Float[Array, 'b r c'] | None = None,
    rated: Bool[Array, 'b r'] | None = None,
    *,
    average: bool = True,
    regulariser: float = 0.1,
    reference_weight: float = 0.0,
    reference_only: bool = False,
) -> Float[Array, 'b c']:
    """The loss of every item and target.

    reference: the mean rating. ratings, rated: those of each rater, and whether there is one; a missing one
        counts as the mean rating in the variance that the regulariser compares with.
    average: over an item's raters, otherwise the sum. reference_only: the likelihood of the mean rating in
        place of the raters'.
    """
    wrong = jnp.abs(reference - evidence.gamma)
    total = jnp.zeros_like(reference)
    if ratings is not None and rated is not None:
        ratings = jnp.where(rated[..., None], ratings, reference[:, None])
        each = jax.vmap(nll, (None, 1), 1)(evidence, ratings)
        total = jnp.where(rated[..., None], each, 0).sum(1)
        total /= jnp.maximum(rated.sum(1)[:, None], 1) if average else 1
        variance = jnp.square(ratings - ratings.mean(1, keepdims=True)).sum(1) / max(ratings.shape[1] - 1, 1)
        wrong += jnp.abs(variance - evidence.beta / _above(evidence.alpha))
    if reference_only or ratings is None:
        total, reference_weight = jnp.zeros_like(total), 1.0
    if reference_weight:
        total += reference_weight * nll(evidence, reference)
    _, v, alpha, beta = evidence
    return total + regulariser * wrong * v * _above(alpha) / (beta * (1 + v))


def _above(alpha: Float[Array, 'b c']) -> Float[Array, 'b c']:
    """alpha - 1, which rounding may make 0."""
    return jnp.maximum(alpha - 1, 1e-7)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The evidential loss, summed over the targets.

    Labels whose name begins with 'rater' are ratings by one person each; the one label besides is their mean.
    """
    ratings = {name: label for name, label in batch.labels.items() if name.startswith('rater')}
    label = losses.target({name: label for name, label in batch.labels.items() if name not in ratings})
    reference = _values(label, model.classes)
    each, rated = None, None
    if ratings:
        each = jnp.stack([_values(rating, model.classes) for rating in ratings.values()], 1)
        rated = jnp.stack([rating.mask for rating in ratings.values()], 1)
    value = evidential_loss(out.aux['evidence'], reference, each, rated, average=model.average_raters,
                            regulariser=model.regulariser, reference_weight=model.reference).sum(-1)
    return {'label': losses.Term(jnp.where(label.mask, value, 0), jnp.asarray(label.mask, value.dtype))}


def _values(label: losses.Label, classes: int) -> Float[Array, 'b c']:
    """Real values, 0 where there is no label; a class is a vector of zeros and a one."""
    value = jnp.asarray(label.value)
    if value.ndim == label.mask.ndim:
        value = jax.nn.one_hot(value, classes)
    if value.shape[-1] != classes:
        raise ValueError(f'deer: label: found {value.dtype} {value.shape}, expected {classes} real values')
    return jnp.where(label.mask[:, None], value, 0)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of W-Wu/DEER."""
    reader, d = Reader(state, 'deer'), model.width
    params = {'embed': reader.dense('fc_embed', None, d),
              'head': reader.dense('out_params.linear', d, 4 * model.classes)}
    if model.states > 1:
        params['state_weights'] = reader.take('layer_weights', model.states)
    reader.skip('layer_weights')
    for i in range(model.layers):
        params[f'layer_{i}'] = reader.transformer_layer(f'transformer_encoder.layers.{i}', d, model.hidden)
    reader.close()
    return {'params': params}

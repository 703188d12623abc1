"""Attentive channel correlations: second-order pooling for speech emotion (Kakouros et al., ICASSP 2023).

Attention weighs the steps of a clip; the correlations of all pairs of channels under these weights are
what a linear layer sees. Without attention, and the mean with the standard deviation, are the paper's
points of comparison (`pooling`).

Where this differs from the authors' code: theirs adds the mask to the attention scores as the number one,
so that padding is a little less likely and not absent; here it is absent, unless `mask_as_bonus`. Without
attention, their statistics run over the padding too.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.graph import softmax
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('speech', 'multi-head attention')

POOLINGS = ('attentive', 'correlation', 'mean_std')


class Model(Checked):
    """The defaults are the authors'. Attributes:
    classes: number of scores.
    stream: what is read.
    width: channels after a linear projection; 0: the features as they are.
    heads: attention heads, over which the scores of a step are summed up (log-sum-exp).
    pooling: 'attentive', 'correlation' (of all steps alike) or 'mean_std'.
    dropout: of whole channels.
    mask_as_bonus: let padding take part, one less in its score than the rest, as the authors' code does.
    """

    classes: int
    stream: str = 'audio'
    width: int = 256
    heads: int = 4
    pooling: str = 'attentive'
    dropout: float = 0.25
    mask_as_bonus: bool = False

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if self.pooling not in POOLINGS:
            raise ValueError(f'attcorr: pooling: found {self.pooling!r}, expected one of {", ".join(POOLINGS)}')
        x, mask = batch.streams[self.stream]
        x = jnp.where(mask[..., None], x, 0)
        if self.width:
            x = Dense(self.width, name='projector')(x)
        x = nn.Dropout(self.dropout, broadcast_dims=(1,), name='dropout')(x, deterministic=not train)
        if self.pooling == 'attentive':
            weights = self._attention(x, mask)
            pooled = attentive_correlation(x, weights)
        else:
            weights = mask / jnp.maximum(mask.sum(-1, keepdims=True), 1)
            pooled = (mean_std if self.pooling == 'mean_std' else correlation)(x, mask)
        return Output(Dense(self.classes, name='head')(pooled), {'pooled': pooled, 'weights': weights})

    def _attention(self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b t']:
        hidden = nn.relu(Dense(x.shape[-1], name='attention_hidden')(x))
        scores = jax.nn.logsumexp(Dense(self.heads, name='attention')(hidden), -1)
        if self.mask_as_bonus:
            return softmax(scores + mask, jnp.ones_like(mask))
        return softmax(scores, mask)


def attentive_correlation(
    x: Float[Array, 'b t d'], weights: Float[Array, 'b t']
) -> Float[Array, 'b e']:
    """Correlations of all pairs of channels under weights of the steps, e = d (d - 1) / 2."""
    centred = x - jnp.einsum('bt,btd->bd', weights, x)[:, None]
    covariance = jnp.einsum('btd,bte->bde', centred * weights[..., None], centred)
    std = jnp.sqrt(jnp.diagonal(covariance, axis1=1, axis2=2) + 1e-9)
    return _pairs(covariance / (std[:, None] * std[:, :, None]))


def correlation(x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b e']:
    """Correlations of all pairs of channels over the present steps, e = d (d - 1) / 2.

    As the authors have it, the products are divided by the number of steps and the variances by one less.
    """
    mean, std = jnp.split(mean_std(x, mask)[:, None], 2, -1)
    z = jnp.where(mask[..., None], (x - mean) / jnp.where(std > 0, std, 1), 0)
    return _pairs(jnp.einsum('btd,bte->bde', z, z) / _count(mask)[..., None])


def mean_std(x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b e']:
    """Mean and unbiased standard deviation over the present steps, e = 2 d."""
    present, count = mask[..., None], _count(mask)
    mean = jnp.where(present, x, 0).sum(1) / count
    squares = jnp.where(present, jnp.square(x - mean[:, None]), 0).sum(1)
    varies = squares > 0                       # the gradient of the root is not finite at zero
    std = jnp.sqrt(jnp.where(varies, squares, 1) / jnp.maximum(count - 1, 1))
    return jnp.concatenate([mean, jnp.where(varies, std, 0)], -1)


def _count(mask: Bool[Array, 'b t']) -> Float[Array, 'b 1']:
    return jnp.maximum(mask.sum(-1, keepdims=True), 1).astype(jnp.float32)


def _pairs(matrix: Float[Array, 'b d d']) -> Float[Array, 'b e']:
    """What stands above the diagonal, row by row."""
    row, column = np.triu_indices(matrix.shape[-1], 1)
    return matrix[:, row, column]


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from the `projector` and the `model` of skakouros/s3prl_attentive_correlation."""
    reader = Reader(state, 'attcorr')
    params: Params = {}
    if model.width:
        params['projector'] = reader.dense('projector', None, model.width)
    d = model.width or reader.width('pooling.sap_layer.W_a.weight', 0) or 1
    if model.pooling == 'attentive':
        params['attention_hidden'] = reader.dense('pooling.sap_layer.W_a', d, d)
        params['attention'] = reader.dense('pooling.sap_layer.W', d, model.heads)
    params['head'] = reader.dense('linear', 2 * d if model.pooling == 'mean_std' else d * (d - 1) // 2, model.classes)
    reader.close()
    return {'params': params}

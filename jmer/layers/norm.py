"""Normalisation that never sees padding."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.collectives import total
from jmer.types import Array


class BatchNorm(nn.Module):
    """Batch normalisation over the present rows, by PyTorch's conventions (Ioffe & Szegedy, 2015).

    Normalises with the biased variance and remembers the unbiased one, as checkpoints from PyTorch do
    (`flax.linen.BatchNorm` remembers the biased one). Statistics are those of the whole batch, however
    many devices it is spread over. A batch without a present row leaves the statistics alone, and one of a
    single row the running variance, of which it knows nothing (PyTorch refuses such a batch).

    Attributes:
        momentum: weight of the new batch in the running statistics.
        epsilon: added to the variance.
        affine: with a scale and a bias.
        remember_biased: remember the biased variance, as checkpoints from Keras do.
        axis: of the features, the last or the first one.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    affine: bool = True
    remember_biased: bool = False
    axis: int = -1

    @nn.compact
    def __call__(
        self, x: Float[Array, '...'], mask: Bool[Array, '*b'], *, train: bool
    ) -> Float[Array, '...']:
        """x: [*b d], or [d *b] where the features come first."""
        width = (x.shape[self.axis],)
        scale, bias = jnp.ones(width), jnp.zeros(width)
        if self.affine:
            scale = self.param('scale', nn.initializers.ones, width)
            bias = self.param('bias', nn.initializers.zeros, width)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, width)
        running_var = self.variable('batch_stats', 'var', jnp.ones, width)
        if train:
            mean, var, count = _moments(x, mask, self.axis)
            if not self.is_initializing():
                seen = var if self.remember_biased else var * count / jnp.maximum(count - 1, 1)
                running_mean.value += (count > 0) * self.momentum * (mean - running_mean.value)
                running_var.value += (count > 1) * self.momentum * (seen - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        inverse = scale / jnp.sqrt(var + self.epsilon)
        # The mean goes first: x * inverse - mean * inverse would cancel where the mean is far from zero.
        mean, inverse, bias = (_spread(vector, x, self.axis) for vector in (mean, inverse, bias))
        return ((x - mean) * inverse + bias).astype(x.dtype)


def _spread(vector, x, axis):
    """Gives a vector of features the rank of x: rank promotion is an error in jmer's tests."""
    ones = (1,) * (x.ndim - 1)
    return vector.reshape(vector.shape + ones if axis == 0 else ones + vector.shape)


def _moments(x, mask, axis):
    """Mean and biased variance per feature over the present rows of all devices, and their number."""
    axes = tuple(range(1, x.ndim) if axis == 0 else range(x.ndim - 1))
    present = jnp.expand_dims(mask, axis)
    count = total(jnp.sum(mask))
    rows = jnp.maximum(count, 1)
    mean = total(jnp.sum(jnp.where(present, x, 0.0), axes)) / rows
    deviation = jnp.where(present, x - _spread(mean, x, axis), 0.0)
    return mean, total(jnp.sum(deviation**2, axes)) / rows, count

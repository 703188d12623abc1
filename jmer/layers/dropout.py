"""Dropout whose random bits cost little.

A threefry word of 32 bits decides four times, a byte each, so the rate is rounded to a multiple of
1/256; what is kept is divided by the probability of keeping it *as rounded*, so that the expectation is
exact. On a CPU this takes a twentieth of the time that one word a decision takes, and dropout is a fifth of
a step of a transformer there.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

LEVELS = 256


def keep_probability(rate: float) -> float:
    """The probability, a multiple of 1/256, with which an entry is kept at this rate.

    A rate in (0, 1) is never rounded to 1: a layer that silently outputs zeros cannot be meant.
    """
    if not 0 <= rate < 1:
        raise ValueError(f'dropout rate: found {rate}, expected 0 <= rate < 1')
    return (LEVELS - min(round(rate * LEVELS), LEVELS - 1)) / LEVELS


def keep_mask(key: PRNGKeyArray, rate: float, shape: tuple[int, ...]) -> Bool[Array, '...']:
    """True where an entry is kept. The values depend on key, rate and shape only, never on sharding."""
    lead, rest = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
    # The leading axis, which is usually the batch, is kept apart: the draw can be sharded along it.
    words = jax.random.bits(key, (lead, -(-rest // 4)), jnp.uint32)
    dropped = jnp.uint32(round((1 - keep_probability(rate)) * LEVELS))
    # Byte by byte into four blocks, not a bitcast: shifts and compares vectorise, a bitcast does not.
    kept = [(words >> jnp.uint32(8 * byte)) & jnp.uint32(255) >= dropped for byte in range(4)]
    return jnp.concatenate(kept, axis=1)[:, :rest].reshape(shape)


def dropout(x: Float[Array, '...'], rate: float, key: PRNGKeyArray | None) -> Float[Array, '...']:
    """x with entries set to zero at this rate and the rest scaled up; x itself without a key or rate."""
    if key is None or keep_probability(rate) == 1:
        return x
    return jnp.where(keep_mask(key, rate, x.shape), x * (1 / keep_probability(rate)), 0)


class Dropout(nn.Module):
    """`dropout` with keys from the collection 'dropout'; no key is asked for where nothing is dropped."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, '...'], *, train: bool) -> Float[Array, '...']:
        active = train and keep_probability(self.rate) < 1
        return dropout(x, self.rate, self.make_rng('dropout') if active else None)

"""Dropout whose random bits cost little.

A byte decides whether an entry is kept, so the rate is rounded to a multiple of 1/256; what is kept is
divided by the probability of keeping it *as rounded*, so that expectations are exact. A block of
threefry makes two words, eight decisions; `jax.random.bernoulli` spends the block on one, which on a
CPU is a large share of a transformer's training step (`jmer bench mult-peer`).
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, PRNGKeyArray, UInt32

from jmer.types import Array

LEVELS = 256
Shape = tuple[int, ...]
Words = UInt32[Array, '...']


def keep_probability(rate: float) -> float:
    """The probability, a multiple of 1/256, with which an entry is kept at this rate."""
    if not 0 <= rate < 1:
        raise ValueError(f'dropout rate: found {rate}, expected 0 <= rate < 1')
    return (LEVELS - min(round(rate * LEVELS), LEVELS - 1)) / LEVELS


def threefry(key: tuple[Words, Words], count: tuple[Words, Words]) -> tuple[Words, Words]:
    """The block cipher Threefry-2x32 with 20 rounds (Salmon et al., SC 2011): two words for two.

    JAX has it, but on a CPU in a loop that stores every round; written out, it stays in registers.
    """
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = count[0] + keys[0], count[1] + keys[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ (y << jnp.uint32(turn) | y >> jnp.uint32(32 - turn))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def seeds(key: PRNGKeyArray, *shape: int) -> UInt32[Array, '*n 2']:
    """Seeds for `keep_mask`, as many as `shape` says: one draw outside a loop instead of one in each turn."""
    return jax.random.bits(key, (*shape, 2), jnp.uint32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def keep_mask(seed: UInt32[Array, '2'], rate: float, shape: Shape) -> Bool[Array, '...']:
    """True where an entry is kept; a function of seed, rate and shape, however it is sharded.

    The first axis, usually the batch, is kept apart all the way, so that the draw can be sharded along it.
    """
    rows, entries = shape[0], math.prod(shape[1:])
    blocks = (rows, -(-entries // 8))
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, blocks, axis) for axis in (0, 1))
    words = jnp.concatenate(threefry((seed[0], seed[1]), (row, column)), axis=1)
    # Byte after byte by shifts and compares: a bitcast to uint8 would not be vectorised.
    dropped = jnp.uint32(round((1 - keep_probability(rate)) * LEVELS))
    kept = [(words >> jnp.uint32(8 * byte)) & jnp.uint32(255) >= dropped for byte in range(4)]
    return jnp.concatenate(kept, axis=1)[:, :entries].reshape(shape)


def drop(x: Float[Array, '...'], rate: float, keep: Bool[Array, '...'] | None) -> Float[Array, '...']:
    """x where kept, scaled up to keep its expectation, and 0 elsewhere; x itself without a mask."""
    return x if keep is None else jnp.where(keep, x * (1 / keep_probability(rate)), 0)


def dropout(
    x: Float[Array, 'b *d'], rate: float, seed: UInt32[Array, '2'] | None
) -> Float[Array, 'b *d']:
    """Dropout with this seed; x itself without a seed or a rate."""
    if seed is None or keep_probability(rate) == 1:
        return x
    return drop(x, rate, keep_mask(seed, rate, x.shape))


class Dropout(nn.Module):
    """Drops entries of x, [b ...], with keys from the collection 'dropout'; asks for none at rate 0."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, 'b *d'], *, train: bool) -> Float[Array, 'b *d']:
        active = train and keep_probability(self.rate) < 1
        return dropout(x, self.rate, seeds(self.make_rng('dropout')) if active else None)

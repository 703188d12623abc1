"""Dropout whose random bits cost little.

A byte decides whether an entry is kept, so the rate is rounded to a multiple of 1/256; what is kept is
divided by the probability of keeping it *as rounded*, so that expectations are exact. A block of
threefry makes two words, eight decisions; `jax.random.bernoulli` spends the block on one. Random bits
are a fifth of a training step of a transformer on a CPU otherwise, and a twentieth of that this way.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

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


def keep_masks(
    key: PRNGKeyArray, sites: Sequence[tuple[float, Shape]]
) -> list[Bool[Array, '...'] | None]:
    """For every (rate, shape) a mask that is True where an entry is kept; None where nothing is dropped.

    All shapes begin with the same axis, usually the batch, along which the draw can be sharded. One draw
    serves all sites: that is cheaper than one each. The values do not depend on how the axis is sharded.
    """
    active = [(rate, shape) for rate, shape in sites if keep_probability(rate) < 1]
    if not active:
        return [None] * len(sites)
    rows = active[0][1][0]
    words = [-(-math.prod(shape[1:]) // 4) for _, shape in active]       # a row, for each site
    half = -(-sum(words) // 2)
    seed = jax.random.bits(key, (2,), jnp.uint32)       # of any kind of key
    count = [jax.lax.broadcasted_iota(jnp.uint32, (rows, half), axis) for axis in (0, 1)]
    drawn = jnp.concatenate(threefry((seed[0], seed[1]), (count[0], count[1])), axis=1)
    masks, start = [], 0
    for (rate, shape), n in zip(active, words, strict=True):
        masks.append(_compare(drawn[:, start:start + n], rate, shape))
        start += n
    return [masks.pop(0) if keep_probability(rate) < 1 else None for rate, _ in sites]


def _compare(words: UInt32[Array, 'b w'], rate: float, shape: Shape) -> Bool[Array, '...']:
    """Four decisions a word. Shifts and compares, byte after byte: a bitcast would not be vectorised."""
    dropped = jnp.uint32(round((1 - keep_probability(rate)) * LEVELS))
    kept = [(words >> jnp.uint32(8 * byte)) & jnp.uint32(255) >= dropped for byte in range(4)]
    return jnp.concatenate(kept, axis=1)[:, :math.prod(shape[1:])].reshape(shape)


def drop(x: Float[Array, '...'], rate: float, keep: Bool[Array, '...'] | None) -> Float[Array, '...']:
    """x where kept, scaled up to keep its expectation, and 0 elsewhere; x itself without a mask."""
    return x if keep is None else jnp.where(keep, x * (1 / keep_probability(rate)), 0)


class Dropout(nn.Module):
    """Drops entries of x, [b ...], with keys from the collection 'dropout'; asks for none at rate 0."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, 'b *d'], *, train: bool) -> Float[Array, 'b *d']:
        if not train or keep_probability(self.rate) == 1:
            return x
        keep, = keep_masks(self.make_rng('dropout'), [(self.rate, x.shape)])
        return drop(x, self.rate, keep)

"""From a masked sequence to one vector. An item without a present step gives zeros."""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.types import Array, Batch, Stream

KINDS = ('mean', 'mean_std', 'thirds', 'max', 'last')


def pool(
    x: Float[Array, '*b t d'], mask: Bool[Array, '*b t'], kind: str
) -> Float[Array, '*b e']:
    """Pools over the present steps.

    kind: 'mean'; 'mean_std', mean and standard deviation (2 d wide); 'thirds', the means of the first, the
    middle and the last third, which keep the course of a short utterance (3 d wide); 'max'; or 'last'.
    """
    present = mask[..., None]
    count = jnp.maximum(jnp.sum(present, -2), 1)
    if kind == 'max':
        lowest = jnp.finfo(x.dtype).min
        largest = jnp.max(jnp.where(present, x, lowest), -2)
        return jnp.where(jnp.any(present, -2), largest, 0.0)
    if kind == 'last':
        steps = jnp.arange(mask.shape[-1]).reshape((1,) * (mask.ndim - 1) + (-1,))
        last = jnp.max(jnp.where(mask, steps, 0), -1)[..., None, None]
        value = jnp.take_along_axis(x, last, axis=-2)[..., 0, :]
        return jnp.where(jnp.any(present, -2), value, 0.0)
    if kind not in KINDS:
        raise ValueError(f'pooling {kind!r}: it is one of {", ".join(KINDS)}')
    mean = jnp.sum(jnp.where(present, x, 0.0), -2) / count
    if kind == 'mean':
        return mean
    if kind == 'thirds':
        return _thirds(x, mask, count, mean)
    deviation = jnp.where(present, x - mean[..., None, :], 0.0)
    # The small constant keeps the gradient of the root finite where all steps are equal.
    std = jnp.sqrt(jnp.sum(deviation**2, -2) / count + 1e-10)
    return jnp.concatenate([mean, jnp.where(jnp.any(present, -2), std, 0.0)], -1)


def _thirds(x, mask, count, mean):
    """Means over the thirds of the present steps; one without a step takes the mean of all."""
    rank = jnp.cumsum(mask, -1) - 1
    third = jnp.where(mask, 3 * rank // count, -1)
    means = []
    for k in range(3):
        inside = (third == k)[..., None]
        steps = jnp.sum(inside, -2)
        part = jnp.sum(jnp.where(inside, x, 0.0), -2) / jnp.maximum(steps, 1)
        means.append(jnp.where(steps > 0, part, mean))
    return jnp.concatenate(means, -1)


def pooled_streams(
    batch: Batch, names: tuple[str, ...], kind: str
) -> tuple[list[Float[Array, 'b e']], Bool[Array, 'b m']]:
    """One vector per stream and item, and which streams [m] are there at all."""
    streams = [batch.streams[name] for name in names]
    vectors = [pool(stream.x, stream.mask, kind) for stream in streams]
    return vectors, jnp.stack([jnp.any(stream.mask, -1) for stream in streams], -1)


def turn_vectors(stream: Stream) -> Float[Array, 'b u d']:
    """One vector a turn: the stream as it is, or its mean over the steps inside a turn; zero if absent."""
    if stream.x.ndim == 4:
        return pool(stream.x, stream.mask, 'mean')
    return jnp.where(stream.mask[..., None], stream.x, 0.0)


def turn_mask(stream: Stream) -> Bool[Array, 'b u']:
    """Which turns have the stream; one step inside a turn is enough."""
    mask = jnp.asarray(stream.mask)
    return jnp.any(mask, -1) if stream.x.ndim == 4 else mask

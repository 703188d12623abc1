"""Convolutions over masked sequences, as dense layers over windows of steps, and pooling of images.

A convolution is a matrix product with the steps of its window side by side; so put, it needs no layer of
its own, and XLA differentiates a product faster on a CPU than a convolution. Absent steps are zero, as
padding is, so how far a sequence is padded changes nothing that is present.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.types import Array, Stream


def windows(
    x: Float[Array, 'b t d'],
    mask: Bool[Array, 'b t'],
    size: int,
    *,
    dilation: int = 1,
    stride: int = 1,
    before: int = 0,
    after: int = 0,
) -> Float[Array, 'b s e']:
    """The steps that each place of a convolution kernel sees, concatenated: e = size * d.

    dilation: distance of the steps of a window. stride: distance of the windows.
    before, after: zeros put in front of the sequence and behind it.
    Raises ValueError where the sequence is shorter than a window.
    """
    x = jnp.pad(jnp.where(mask[..., None], x, 0), ((0, 0), (before, after), (0, 0)))
    span = dilation * (size - 1) + 1
    if x.shape[1] < span:
        raise ValueError(f'convolution: found {mask.shape[1]} steps, expected {span - before - after} or more')
    count = (x.shape[1] - span) // stride + 1
    last = (count - 1) * stride + 1
    return jnp.concatenate([x[:, k:k + last:stride] for k in range(0, span, dilation)], -1)


def inside(stream: Stream, size: int) -> Stream:
    """All windows of `size` steps within a sequence, concatenated; one is present if its last step is.

    A sequence shorter than a window has one absent window, and is no error.
    """
    short = max(0, size - stream.x.shape[1])
    x, mask = jnp.pad(stream.x, ((0, 0), (0, short), (0, 0))), jnp.pad(stream.mask, ((0, 0), (0, short)))
    return Stream(windows(x, mask, size), mask[:, size - 1:])


def largest(x: Float[Array, 'b t d c'], size: int, stride: int) -> Float[Array, 'b s e c']:
    """The largest value in every square of an image, as `nn.max_pool` gives it without padding.

    One axis after the other, as the larger of two slices: XLA's own pooling searches its maxima again for
    the gradient, one by one. Where values are equal they share the gradient.
    """
    for axis in (1, 2):
        count = (x.shape[axis] - size) // stride + 1
        last = stride * (count - 1) + 1
        slices = [jax.lax.slice_in_dim(x, k, k + last, stride, axis) for k in range(size)]
        x = functools.reduce(jnp.maximum, slices)
    return x

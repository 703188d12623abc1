"""Convolutions over masked sequences, as dense layers over windows of steps; convolutions and pooling of images.

A convolution is a matrix product with the steps of its window side by side; so put, it needs no layer of
its own, and XLA differentiates a product faster on a CPU than a convolution. Absent steps are zero, as
padding is, so how far a sequence is padded changes nothing that is present.
"""

import functools
import math

import flax.linen as nn
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


class Convolution(nn.Module):
    """A convolution of images [b t d c], as `nn.Conv` has it and under its names.

    XLA makes the gradient of the kernel on a CPU, for large images, at half the speed of everything else, behind
    several transpositions; here it is a sum of matrix products, an item or a few at a time.

    Attributes:
        width: channels of the result.
        size: of the kernel: steps, features. stride: of both axes.
        padding: zeros in front of either axis and behind it.
    """

    width: int
    size: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d c']) -> Float[Array, 'b s e {self.width}']:
        kernel = self.param('kernel', nn.initializers.lecun_normal(), (*self.size, x.shape[-1], self.width))
        y = _convolve(x, kernel, self.stride, self.padding)
        if self.use_bias:
            y = y + self.param('bias', nn.initializers.zeros, (self.width,))[None, None, None]
        return y


class Banded(Convolution):
    """The same of images with few features and channels: a product of some steps, all features, with a band matrix.

    It multiplies zeros, and is faster for it, where a kernel sees but a few numbers.
    """

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d c']) -> Float[Array, 'b s e {self.width}']:
        if self.stride != 1 or self.use_bias:
            raise ValueError(f'Banded: found stride {self.stride} and use_bias {self.use_bias}, expected 1 and False')
        kernel = self.param('kernel', nn.initializers.lecun_normal(), (*self.size, x.shape[-1], self.width))
        (steps, size), (before, edge) = self.size, self.padding
        places = x.shape[2] + 2 * edge - size + 1
        # Of every place along the features the kernel, where it sees them.
        bands = [jnp.pad(kernel, ((0, 0), (k, places - 1 - k), (0, 0), (0, 0)))[:, edge:edge + x.shape[2]]
                 for k in range(places)]
        band = jnp.stack(bands, 3).reshape(steps * math.prod(x.shape[2:]), -1)
        x = x.reshape(*x.shape[:2], -1)
        seen = windows(x, jnp.ones(x.shape[:2], bool), steps, before=before, after=before)
        y = seen.reshape(-1, seen.shape[-1]) @ band
        return y.reshape(*seen.shape[:2], places, self.width)


def _plain(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, [(n, n) for n in padding],
                                        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2, 3))


def _convolve_backward(stride, padding, saved, dy):
    x, kernel = saved
    dx, = jax.vjp(lambda x: _plain(x, kernel, stride, padding), x)[1](dy)

    def plain(x, dy):
        return jax.vjp(lambda k: _plain(x, k, stride, padding), kernel)[1](dy)[0]

    if dy.shape[1] * dy.shape[2] < PLACES:
        return dx, plain(x, dy)
    return dx, jax.lax.platform_dependent(
        x, dy, cpu=lambda x, dy: _kernel_gradient(x, dy, kernel.shape, stride, padding), default=plain)


_convolve.defvjp(lambda x, kernel, stride, padding: (_plain(x, kernel, stride, padding), (x, kernel)),
                 _convolve_backward)

PLACES = 256
"""Of an image, from which on XLA's own gradient of the kernel is the slower one."""
ENTRIES = 2**21
"""Of the windows that are laid out at once: what a cache holds."""


def _kernel_gradient(x, dy, shape, stride, padding):
    """The windows of some items, transposed, times dy, added up over the items."""
    rows, inputs = dy.shape[1] * dy.shape[2], math.prod(shape[:3])
    items = max(n for n in range(1, len(x) + 1) if len(x) % n == 0 and (n == 1 or n * rows * inputs <= ENTRIES))
    x = jnp.pad(x, ((0, 0), *((n, n) for n in padding), (0, 0)))
    last = [stride * (n - 1) + 1 for n in dy.shape[1:3]]

    def add(total, part):
        x, dy = part
        seen = jnp.concatenate([x[:, i:i + last[0]:stride, j:j + last[1]:stride]
                                for i in range(shape[0]) for j in range(shape[1])], -1)
        return total + seen.reshape(-1, inputs).T @ dy.reshape(-1, shape[-1]), None

    parts = jax.tree.map(lambda a: a.reshape(-1, items, *a.shape[1:]), (x, dy))
    return jax.lax.scan(add, jnp.zeros((inputs, shape[-1]), dy.dtype), parts)[0].reshape(shape)

"""Sinusoidal positions as MulT and its descendants use them."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jmer.types import Array


def sinusoid(steps: int, width: int) -> Float[np.ndarray, 't d']:
    """Row t is [sin(t f_1) .. sin(t f_n) | cos(t f_1) .. cos(t f_n)], n = width // 2, and row 0 is zero.

    The frequencies fall from 1 to 1/10000 geometrically. An odd width ends in a column of zeros.
    (Vaswani et al., NeurIPS 2017, in the layout of tensor2tensor: halves, not interleaved.)
    """
    half = width // 2
    rate = math.log(10000) / max(half - 1, 1)
    # In float32 throughout, as the published weights have seen it: at step 500 rounding is 1e-5.
    frequency = np.exp(np.arange(half, dtype=np.float32) * np.float32(-rate))
    angle = np.arange(steps, dtype=np.float32)[:, None] * frequency[None]
    table = np.concatenate([np.sin(angle), np.cos(angle), np.zeros((steps, width % 2))], axis=1)
    table[0] = 0
    return table.astype(np.float32)


def positions(x: Float[Array, '*b t d']) -> Float[Array, '*b t d']:
    """The position vector of every frame, 1, 2, ...; zero where channel 0 of the frame is exactly zero.

    The authors take such a frame for padding; one that is really silent there gets no position either.
    """
    table = jnp.asarray(sinusoid(x.shape[-2] + 1, x.shape[-1])[1:], x.dtype)
    return jnp.where(x[..., :1] != 0, jnp.broadcast_to(table, x.shape), 0)


def interleaved(place: Int[Array, '*b t'], width: int) -> Float[Array, '*b t d']:
    """Sinusoids of whole numbers in the layout of Vaswani et al.: sine and cosine of a frequency side by side.

    Channel 2i is sin(p 10000^(-2i/width)), channel 2i + 1 its cosine; an odd width ends in a sine.
    """
    rate = np.exp(np.arange(0, width, 2) * (-math.log(10000) / width)).astype(np.float32)
    angle = place[..., None].astype(jnp.float32) * rate.reshape((1,) * place.ndim + (-1,))
    both = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1)
    return both.reshape(*place.shape, -1)[..., :width]

"""Sequences brought to a given number of steps."""

import jax.numpy as jnp

from jmer.types import Stream


def fit(stream: Stream, steps: int) -> Stream:
    """The first `steps` steps; absent ones are put behind a shorter sequence, and absent values are zero."""
    x = jnp.where(stream.mask[..., None], stream.x, 0)[:, :steps]
    short = steps - x.shape[1]
    return Stream(jnp.pad(x, ((0, 0), (0, short), (0, 0))),
                  jnp.pad(stream.mask[:, :steps], ((0, 0), (0, short))))


def extend(stream: Stream, steps: int, model: str) -> Stream:
    """The same where a model has weights for `steps` steps and no more: ValueError for a longer sequence."""
    if stream.x.shape[1] > steps:
        raise ValueError(f'{model}: found {stream.x.shape[1]} steps, expected at most {steps} (its field `steps`)')
    return fit(stream, steps)

"""Changes to items and batches: pure, seeded, and the same for every model.

Those on items (NumPy) run once, when a corpus is read; those on batches (JAX) run inside the compiled
step, with a key.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmer.data.corpus import Item
from jmer.types import Batch


class Moments(NamedTuple):
    """Mean and standard deviation of every feature of a stream, [d]."""

    mean: np.ndarray
    std: np.ndarray


def fit_standardisation(items: Sequence[Item], names: Sequence[str]) -> dict[str, Moments]:
    """Moments of the streams over all present steps of these items: give it training items only.

    A feature that is constant keeps its scale (standard deviation 1).
    """
    moments = {}
    for name in names:
        steps = [_present_steps(item, name) for item in items if name in item.streams]
        if not steps or not sum(map(len, steps)):
            raise ValueError(f'no item to train on has the stream {name!r}')
        rows = np.concatenate(steps).astype(np.float64)
        std = rows.std(0)
        constant = std < 1e-6 * np.maximum(1.0, np.abs(rows.mean(0)))
        moments[name] = Moments(rows.mean(0).astype(np.float32),
                                np.where(constant, 1.0, std).astype(np.float32))
    return moments


def standardise(item: Item, moments: Mapping[str, Moments]) -> Item:
    """The item with the streams that `moments` names at zero mean and unit deviation."""
    streams = {name: (x - moments[name].mean) / moments[name].std if name in moments else x
               for name, x in item.streams.items()}
    return item._replace(streams=streams)


def pool_steps(item: Item, factors: Mapping[str, int]) -> Item:
    """Averages runs of `factors[name]` steps of a stream into one: 100 frames a second to 10, by 10.

    A last run that is short is averaged over what it has. 0 averages all steps into one.
    """
    streams, masks = dict(item.streams), dict(item.masks)
    for name in set(factors) & set(streams):
        if name in masks:
            raise ValueError(f'{item.id}: stream {name} has missing steps and cannot be pooled')
        x = streams[name]
        starts = np.arange(0, len(x), factors[name] or max(len(x), 1))
        runs = np.diff(np.append(starts, len(x)))[:, None]
        streams[name] = (np.add.reduceat(x, starts) / runs).astype(np.float32) if len(x) else x
    return item._replace(streams=streams, masks=masks)


def truncate(item: Item, steps: Mapping[str, int]) -> Item:
    """The first `steps[name]` steps of the streams named."""
    cut = {name: steps.get(name) for name in item.streams}
    return item._replace(streams={n: x[:cut[n]] for n, x in item.streams.items()},
                         masks={n: m[:cut[n]] for n, m in item.masks.items()})


def _present_steps(item: Item, name: str) -> np.ndarray:
    x = item.streams[name]
    return x[item.masks[name]] if name in item.masks else x.reshape(-1, x.shape[-1])


def drop_modalities(batch: Batch, key: jax.Array, rate: float) -> Batch:
    """Each stream of each item goes missing with probability `rate`, but never all of an item's streams.

    An item that would lose all it has keeps all it has.
    """
    names = sorted(batch.streams)
    items = batch.present.shape
    keep = jax.random.bernoulli(key, 1.0 - rate, (len(names), *items))
    there = jnp.stack([_any_step(batch.streams[n].mask, len(items)) for n in names])
    keep = keep | ~jnp.any(keep & there, 0, keepdims=True)
    streams = {}
    for n, kept in zip(names, keep, strict=True):
        mask = batch.streams[n].mask
        streams[n] = batch.streams[n]._replace(
            mask=mask & kept.reshape(kept.shape + (1,) * (mask.ndim - kept.ndim)))
    return batch._replace(streams=streams)


def _any_step(mask, item_axes: int):
    """Whether an item has the stream at all: [*b], from [*b t] or [*b]."""
    return jnp.any(mask, -1) if mask.ndim > item_axes else mask


def stand_in(batch: Batch, pairs: Sequence[tuple[str, str]]) -> Batch:
    """Of each pair, the first stream counts only in items that lack the second."""
    streams = dict(batch.streams)
    for substitute, original in pairs:
        there = _any_step(streams[original].mask, batch.present.ndim)
        mask = streams[substitute].mask
        lacking = ~there.reshape(there.shape + (1,) * (mask.ndim - there.ndim))
        streams[substitute] = streams[substitute]._replace(mask=mask & lacking)
    return batch._replace(streams=streams)


def add_noise(batch: Batch, key: jax.Array, deviation: float) -> Batch:
    """Gaussian noise on every feature; 1 is as strong as a standardised feature."""
    streams = {}
    for k, (name, stream) in enumerate(sorted(batch.streams.items())):
        noise = jax.random.normal(jax.random.fold_in(key, k), stream.x.shape, jnp.float32)
        streams[name] = stream._replace(x=stream.x + deviation * noise)
    return batch._replace(streams=streams)

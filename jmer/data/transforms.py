"""Changes to items and batches: pure, seeded, and the same for every model.

Those on items (NumPy) run once, when a corpus is read; those on batches (JAX) run inside the compiled
step, with a key.

A transform of a batch changes all of its streams; `choose_streams` confines it to some. Rates, ratios and
shifts may be traced, so that one compiled program serves all levels of a perturbation. The steps of a
stream are its last axis but the features: frames or words, of an utterance or inside a turn ([b t d],
[b u t d]); where a turn is one vector ([b u d]), they are the turns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jmer.data.corpus import Item
from jmer.types import Array, Batch, Stream

Level = float | jax.Array
"""How strong a perturbation is; an array [] where it is traced."""


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


def drop_modalities(batch: Batch, key: jax.Array, rate: Level) -> Batch:
    """Each stream of each item goes missing with probability `rate`, but never all of an item's streams.

    An item that would lose all it has keeps all it has.
    """
    there = _streams_there(batch)
    keep = jax.random.bernoulli(key, 1.0 - rate, there.shape)
    return _keep_streams(batch, keep | ~jnp.any(keep & there, 0, keepdims=True))


def lose_modalities(batch: Batch, key: jax.Array, rate: Level) -> Batch:
    """Each stream of each item goes missing with probability `rate`, but one that is there always stays.

    The higher the rate, the less there is: the one to judge by. With `drop_modalities` ever more items would
    lose all and hence keep all.
    """
    draw = jnp.where(there := _streams_there(batch), jax.random.uniform(key, there.shape), -1.0)
    return _keep_streams(batch, (draw >= rate) | (draw == jnp.max(draw, 0, keepdims=True)))


def _streams_there(batch: Batch):
    """Which items have which stream, by sorted names, [m *b]."""
    return jnp.stack([_any_step(stream.mask, batch.present.ndim) for _, stream in sorted(batch.streams.items())])


def _keep_streams(batch: Batch, keep) -> Batch:
    """The streams of each item that `keep` says, [m *b]; or of all items alike, [m]."""
    return batch._replace(streams={
        name: stream._replace(mask=stream.mask & _over(kept, stream.mask))
        for (name, stream), kept in zip(sorted(batch.streams.items()), keep, strict=True)})


def _any_step(mask, item_axes: int):
    """Whether an item has the stream at all: [*b], from [*b t] or [*b]."""
    return jnp.any(mask, -1) if mask.ndim > item_axes else mask


def stand_in(batch: Batch, pairs: Sequence[tuple[str, str]]) -> Batch:
    """Of each pair, the first stream counts only in items that lack the second."""
    streams = dict(batch.streams)
    for substitute, original in pairs:
        there = _any_step(streams[original].mask, batch.present.ndim)
        mask = streams[substitute].mask
        streams[substitute] = streams[substitute]._replace(mask=mask & _over(~there, mask))
    return batch._replace(streams=streams)


def add_noise(batch: Batch, key: jax.Array, deviation: float) -> Batch:
    """Gaussian noise on every feature; 1 is as strong as a standardised feature."""
    def noisy(stream, key):
        return stream._replace(x=stream.x + deviation * jax.random.normal(key, stream.x.shape, jnp.float32))

    return _each(batch, key, noisy)


def add_noise_at_snr(batch: Batch, key: jax.Array, snr: Level) -> Batch:
    """Gaussian noise on every feature, weaker than the signal by `snr` decibels, stronger where negative.

    The power of the signal is the mean square over the features and the present steps of each item (in
    dialogues: of each turn) and stream. Of standardised features that is how far they are from the average.
    """
    def noisy(stream, key):
        axes = tuple(range(batch.present.ndim, stream.x.ndim))
        there = jnp.broadcast_to(stream.mask[..., None], stream.x.shape)
        energy = jnp.sum(jnp.where(there, stream.x, 0.0) ** 2, axes, keepdims=True)
        power = energy / jnp.maximum(jnp.sum(there, axes, keepdims=True), 1)
        scale = jnp.sqrt(power) * 10.0 ** (-snr / 20.0)
        return stream._replace(x=stream.x + scale * jax.random.normal(key, stream.x.shape, jnp.float32))

    return _each(batch, key, noisy)


def keep_modalities(batch: Batch, present: Bool[Array, 'm']) -> Batch:
    """Only these streams, by their sorted names, in all items; all patterns of presence share a program."""
    return _keep_streams(batch, present)


def choose_streams(changed: Batch, batch: Batch, chosen: Bool[Array, 'm']) -> Batch:
    """Of the chosen streams, by their sorted names, what `changed` has; of the others, what `batch` has."""
    streams = {name: jax.tree.map(lambda new, old, is_new=is_new: jnp.where(is_new, new, old),
                                  changed.streams[name], batch.streams[name])
               for name, is_new in zip(sorted(batch.streams), chosen, strict=True)}
    return batch._replace(streams=streams)


def drop_frames(batch: Batch, key: jax.Array, rate: Level) -> Batch:
    """Each present step of each stream goes missing with probability `rate`, but never the last one left."""
    def dropped(stream, key):
        draw = jnp.where(stream.mask, jax.random.uniform(key, stream.mask.shape), -1.0)
        kept = (draw >= rate) | (draw == jnp.max(draw, -1, keepdims=True))
        return stream._replace(mask=stream.mask & kept)

    return _each(batch, key, dropped)


def desynchronise(batch: Batch, steps: int | jax.Array) -> Batch:
    """Streams late by so many steps, early where negative; a step that leaves the item is gone.

    A stream of one step has no course in time and stays. Use with `choose_streams`: what matters is the
    shift of one stream against the others.
    """
    return batch._replace(streams={name: _shifted(stream, steps, batch.present)
                                   for name, stream in batch.streams.items()})


def _shifted(stream: Stream, steps, present) -> Stream:
    count = stream.mask.shape[-1]
    if count == 1:
        return stream
    place = jnp.arange(count)
    source = place - steps
    taken = jnp.clip(source, 0, count - 1)
    # An item ends where it ends, be there padding behind it or not.
    extent = present if stream.mask.ndim == present.ndim else _until_last(stream.mask)
    inside = jnp.broadcast_to(source == taken, stream.mask.shape)
    mask = jnp.take(stream.mask, taken, -1) & inside & extent
    return Stream(jnp.take(stream.x, taken, -2), mask)


def _until_last(mask):
    """True up to the last present step, [*b t]."""
    return jnp.flip(jnp.cumsum(jnp.flip(mask, -1), -1), -1) > 0


def corrupt_words(batch: Batch, key: jax.Array, rate: Level) -> Batch:
    """The errors of a speech recogniser, at a word error rate, on streams whose steps are words.

    A third of the errors each: a word is lost and the rest closes up; another word of the batch stands in
    its place; the word is said twice, and what no longer fits falls out at the end. Where a turn is one
    vector, half of the errors are losses and half are vectors of other turns, since turns cannot move.
    """
    def corrupted(stream, key):
        turns = stream.mask.ndim == batch.present.ndim
        draw_key, source_key = jax.random.split(key)
        # A draw below the rate is an error; how far below says of which kind: 0, 1 or (never of turns) 2.
        draw = jnp.where(stream.mask, jax.random.uniform(draw_key, stream.mask.shape), 1.0)
        kind = jnp.where(draw < rate, (2 if turns else 3) * draw // jnp.maximum(rate, 1e-9), -1)
        other = _drawn_steps(source_key, stream)
        stream = stream._replace(x=jnp.where((kind == 1)[..., None], other, stream.x))
        if turns:
            return stream._replace(mask=stream.mask & (kind != 0))
        return _repeated(stream, jnp.where(kind == 0, 0, jnp.where(kind == 2, 2, 1)))

    return _each(batch, key, corrupted)


def _drawn_steps(key, stream: Stream):
    """For each step, that of any present step of the batch, [*t d]."""
    mask = stream.mask.reshape(-1)
    present_first = jnp.argsort(~mask, stable=True)
    drawn = jax.random.randint(key, stream.mask.shape, 0, jnp.maximum(jnp.sum(mask), 1))
    return jnp.take(stream.x.reshape(-1, stream.x.shape[-1]), present_first[drawn], 0)


def _repeated(stream: Stream, copies) -> Stream:
    """Each step so many times, in as many steps as there were; copies: [*t], int."""
    ends = jnp.cumsum(copies, -1)
    count = copies.shape[-1]
    place = jnp.arange(count)
    find = jnp.vectorize(lambda e: jnp.searchsorted(e, place, side='right'), signature='(t)->(t)')
    source = jnp.minimum(find(ends), count - 1)
    filled = ends[..., -1:] > jnp.broadcast_to(place, ends.shape)
    return Stream(jnp.take_along_axis(stream.x, source[..., None], -2),
                  jnp.take_along_axis(stream.mask, source, -1) & filled)


def shuffle_modality(batch: Batch, key: jax.Array, chosen: Bool[Array, 'm']) -> Batch:
    """Content and mask of the chosen streams dealt out anew among the present items, each stream by itself.

    In dialogues among all present turns. What a stream says stays as it is, but always of another item.
    """
    def shuffled(stream, key):
        order = _ring(key, batch.present)
        return jax.tree.map(lambda x: jnp.take(x.reshape(len(order), -1), order, 0).reshape(x.shape), stream)

    return choose_streams(_each(batch, key, shuffled), batch, chosen)


def _ring(key, present):
    """Who takes the place of each flattened item, [n]: the next of a random ring of those that are present.

    So none keeps its own, which in a small batch would happen often; those that are absent do.
    """
    there = present.reshape(-1)
    order = jnp.argsort(jnp.where(there, jax.random.uniform(key, there.shape), 2.0))   # absent ones last
    place = jnp.arange(there.size)
    following = jnp.where(place + 1 < jnp.sum(there), place + 1, 0)
    return place.at[order].set(jnp.where(there[order], order[following], order))


def flip_labels(batch: Batch, key: jax.Array, rate: Level, target: str, classes: int) -> Batch:
    """Each class of a target becomes, with probability `rate`, one of its other classes, all equally likely.

    Raises ValueError for a target that has no classes.
    """
    label = batch.labels[target]
    value = jnp.asarray(label.value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(f'label {target}: found {value.dtype}, expected class codes; only they can be flipped')
    flip_key, other_key = jax.random.split(key)
    flipped = jax.random.bernoulli(flip_key, rate, value.shape) & label.mask
    other = (value + jax.random.randint(other_key, value.shape, 1, classes)) % classes
    return batch._replace(labels=batch.labels | {target: label._replace(value=jnp.where(flipped, other, value))})


def _each(batch: Batch, key: jax.Array, change: Callable[[Stream, jax.Array], Stream]) -> Batch:
    """Every stream changed with a key of its own."""
    streams = {name: change(stream, jax.random.fold_in(key, k))
               for k, (name, stream) in enumerate(sorted(batch.streams.items()))}
    return batch._replace(streams=streams)


def _over(flags, mask):
    """Flags of items, [*b], in as many axes as a mask of their steps."""
    return flags.reshape(flags.shape + (1,) * (mask.ndim - flags.ndim))

"""Small random batches of every layout, padded or not."""

import numpy as np

from jmer.types import Batch, Label, Stream

WIDTHS = {'text': 5, 'audio': 7, 'vision': 4}
CLASSES = 3


def utterances(size=3, steps=None, seed=0, widths=WIDTHS) -> Batch:
    """Unpadded utterances: `steps[name]` steps of every stream."""
    rng = np.random.default_rng(seed)
    steps = steps or {'text': 6, 'audio': 9, 'vision': 4}
    streams = {name: Stream(rng.normal(size=(size, steps[name], width)).astype(np.float32),
                            np.ones((size, steps[name]), bool)) for name, width in widths.items()}
    there = np.ones(size, bool)
    return Batch(streams, there, {'emotion': Label(rng.integers(0, CLASSES, size).astype(np.int32), there)})


def speech(size=3, steps=12, seed=0, width=16) -> Batch:
    """Unpadded clips: one audio stream."""
    return utterances(size, {'audio': steps}, seed, {'audio': width})


def dialogues(size=3, turns=6, seed=0, widths=WIDTHS) -> Batch:
    """Unpadded dialogues of two speakers, one vector a turn."""
    rng = np.random.default_rng(seed)
    there = np.ones((size, turns), bool)
    streams = {name: Stream(rng.normal(size=(size, turns, width)).astype(np.float32), there)
               for name, width in widths.items()}
    speakers = rng.integers(0, 2, (size, turns)).astype(np.int32)
    label = rng.integers(0, CLASSES, (size, turns)).astype(np.int32)
    return Batch(streams, there, {'emotion': Label(label, there)}, speakers)


def of(family, **options) -> Batch:
    """The batch that a family of models takes."""
    return {'utterance': utterances, 'dialogue': dialogues, 'speech': speech}[family](**options)


def pad(batch: Batch, steps: int = 3, rows: int = 2, garbage: float = 1e3) -> Batch:
    """The same items with absent steps behind every sequence and absent rows behind the last item.

    What stands in the padding is large and random: it may not matter.
    """
    rng = np.random.default_rng(1)

    def widen(x, axes):
        x = np.asarray(x)
        amounts = [(0, rows if axis == 0 else steps if axis in axes else 0) for axis in range(x.ndim)]
        if x.dtype.kind != 'f':
            return np.pad(x, amounts)
        noise = (garbage * rng.normal(size=[n + after for n, (_, after) in zip(x.shape, amounts, strict=True)]))
        padded = noise.astype(x.dtype)
        padded[tuple(slice(n) for n in x.shape)] = x
        return padded

    dialogue = batch.speakers is not None
    inner = {1} if dialogue else set()
    streams = {name: Stream(widen(s.x, {1}), widen(s.mask, {1})) for name, s in batch.streams.items()}
    labels = {name: Label(widen(v.value, inner), widen(v.mask, inner)) for name, v in batch.labels.items()}
    speakers = widen(batch.speakers, inner) if dialogue else None
    return Batch(streams, widen(batch.present, inner), labels, speakers)


def without(batch: Batch, *names: str) -> Batch:
    """The batch with streams gone: masks False and garbage in their place."""
    streams = {name: Stream(np.full_like(s.x, 1e3), np.zeros_like(s.mask)) if name in names else s
               for name, s in batch.streams.items()}
    return batch._replace(streams=streams)


def first(batch: Batch, garbage: float) -> Batch:
    """The batch with the first step or turn of every sequence, and garbage behind it."""
    def cut(x):
        return x & (np.arange(x.shape[1]) < 1).reshape(1, -1, *[1] * (x.ndim - 2))

    streams = {name: Stream(np.where(cut(s.mask)[..., None], s.x, np.float32(garbage)), cut(s.mask))
               for name, s in batch.streams.items()}
    present = cut(batch.present) if batch.present.ndim == 2 else batch.present
    labels = {name: label._replace(mask=label.mask & present) for name, label in batch.labels.items()}
    return batch._replace(streams=streams, present=present, labels=labels)


def alone(batch: Batch, row: int, garbage: float) -> Batch:
    """The batch with one item: the others are absent, with garbage in their place."""
    import jax

    here = np.arange(len(batch.present)) == row

    def only(x):
        other = x.dtype.type(garbage if x.dtype.kind == 'f' else 0)
        return np.where(here.reshape(-1, *[1] * (x.ndim - 1)), x, other)

    return jax.tree.map(only, batch)


def rows(batch: Batch, index) -> Batch:
    """Some items of a batch."""
    import jax

    return jax.tree.map(lambda x: x[index], batch)

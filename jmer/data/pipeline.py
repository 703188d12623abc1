"""Batches as a pure function of (seed, step), in few static shapes.

Nothing is saved to resume: batch number `step` of a run is the same whenever and wherever it is asked for.
Items are sorted by length into buckets; every batch comes from one bucket and has that bucket's shape, so
a run compiles as many programs as there are buckets and pads little. The padded arrays are kept, which
makes a batch a choice of rows; a corpus therefore has to fit in memory. A batch that a bucket cannot fill is
completed with rows that are not present.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jmer.data.corpus import Item, Spec, Target
from jmer.types import Batch, Label, Stream


class Bucket(NamedTuple):
    """Items of similar length, padded to one shape once and for all.

    members: their indices among the items. batch: all of them; training picks rows of it.
    """

    members: np.ndarray
    batch: Batch


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Batches of some items.

    Attributes:
        items: what the batches are made of.
        spec: what the numbers mean.
        target: name of the target, or None for batches without labels.
        batch_size: items in a batch over all processes.
        buckets: the items by length, see `Bucket`.
        process: (index, count): this process gets its share of the rows of every batch.
    """

    items: tuple[Item, ...]
    spec: Spec
    target: str | None
    batch_size: int
    buckets: tuple[Bucket, ...]
    process: tuple[int, int] = (0, 1)

    @property
    def steps_per_epoch(self) -> int:
        return sum(-(-len(bucket.members) // self.batch_size) for bucket in self.buckets)

    def stream(self, seed: int, step: int) -> Batch:
        """Batch `step` of the run with this seed; every epoch sees every item once, in its own order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        bucket, rows = self._plan((seed, epoch))[position]
        return self._batch(bucket, rows)

    def streams(self, seeds: Sequence[int], step: int) -> Batch:
        """Batch `step` of the runs with these seeds, stacked on a new leading axis.

        Seeds order the items of a bucket each in their own way; which bucket a step draws from is the
        same for all, so that their batches have one shape.
        """
        return jax.tree.map(lambda *leaves: np.stack(leaves), *[self.stream(seed, step) for seed in seeds])

    def sweep(self) -> Iterator[tuple[list[int], Batch]]:
        """All items once, in their buckets' order: their indices in `items`, and the batch."""
        for bucket, rows in self._plan(None):
            yield bucket.members[rows].tolist(), self._batch(bucket, rows)

    def _plan(self, shuffle: tuple[int, int] | None) -> list[tuple[Bucket, np.ndarray]]:
        """The batches of one epoch, rows of buckets: in order, or shuffled by (seed, epoch).

        The seed and the epoch order the rows of a bucket, the epoch alone orders the batches.
        """
        batches = []
        rng = None if shuffle is None else np.random.default_rng(shuffle)
        for bucket in self.buckets:
            count = len(bucket.members)
            order = np.arange(count) if rng is None else rng.permutation(count)
            batches += [(bucket, order[k:k + self.batch_size]) for k in range(0, count, self.batch_size)]
        if shuffle is None:
            return batches
        return [batches[k] for k in np.random.default_rng(shuffle[1]).permutation(len(batches))]

    def _batch(self, bucket: Bucket, rows: np.ndarray) -> Batch:
        """This process's share of these rows; rows that are lacking are not present."""
        index, count = self.process
        size = self.batch_size // count
        share = rows[index * size:(index + 1) * size]

        def pick(x):
            if len(share) == size:
                return x[share]
            padded = np.zeros((size, *x.shape[1:]), x.dtype)
            padded[:len(share)] = x[share]
            return padded

        return jax.tree.map(pick, bucket.batch)


def pipeline(
    items: Sequence[Item],
    spec: Spec,
    streams: Sequence[str],
    target: str | None,
    batch_size: int,
    buckets: int = 1,
    process: tuple[int, int] = (0, 1),
) -> Pipeline:
    """A pipeline over items. Raises ValueError for no items, or a batch that processes cannot share.

    buckets: shapes of the whole; items are sorted by their total steps and cut into so many equal parts.
    """
    if not items:
        raise ValueError(f'{spec.name}: there are no items to make batches of')
    if batch_size < 1 or batch_size % process[1]:
        raise ValueError(f'a batch of {batch_size} cannot be shared by {process[1]} processes')
    if buckets < 1:
        raise ValueError(f'buckets: found {buckets}, expected at least 1')
    known = spec.target(target) if target else None
    lengths = [sum(math.prod(item.streams[s].shape[:-1]) for s in streams if s in item.streams)
               for item in items]
    parts = np.array_split(np.argsort(lengths, kind='stable'), min(buckets, len(items)))
    made = []
    for part in parts:
        members = [items[k] for k in part]
        steps = common_steps(members, spec, streams)
        made.append(Bucket(part, make_batch(members, spec, known, steps)))
    return Pipeline(tuple(items), spec, target, batch_size, tuple(made), process)


def common_steps(
    items: Sequence[Item], spec: Spec, streams: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """The steps that hold every one of these items, by stream: (t,), (u,) or (u, t); at least one."""
    turns = max((len(item.speakers) for item in items if item.speakers is not None), default=0)
    steps = {}
    for name in streams:
        spec.stream(name)
        shapes = [item.streams[name].shape[:-1] for item in items if name in item.streams]
        longest = tuple(max(n) for n in zip(*shapes, strict=True)) if shapes else (1,)
        if spec.layout == 'dialogue':
            longest = (turns, *longest[1:])
        steps[name] = tuple(max(n, 1) for n in longest)
    return steps


def make_batch(
    items: Sequence[Item], spec: Spec, target: Target | None, steps: dict[str, tuple[int, ...]]
) -> Batch:
    """Pads and stacks items; `steps` names the streams and the steps that each is padded to."""
    dialogue, size = spec.layout == 'dialogue', len(items)
    turns = next(iter(steps.values()))[0]
    lead = (size, turns) if dialogue else (size,)
    present = np.zeros(lead, bool)
    speakers = np.zeros(lead, np.int32) if dialogue else None
    for row, item in enumerate(items):
        if speakers is None or item.speakers is None:
            present[row] = True
        else:
            present[row, :len(item.speakers)] = True
            speakers[row, :len(item.speakers)] = item.speakers
    padded = {name: _pad_stream(items, name, spec.stream(name).width, n, size)
              for name, n in steps.items()}
    labels = {target.name: _pad_label(items, target, lead)} if target else {}
    return Batch(padded, present, labels, speakers)


def _pad_stream(items, name, width, steps, size) -> Stream:
    x = np.zeros((size, *steps, width), np.float32)
    mask = np.zeros((size, *steps), bool)
    for row, item in enumerate(items):
        value = item.streams.get(name)
        if value is None:
            continue
        inside = tuple(slice(n) for n in value.shape[:-1])
        x[row][inside] = value
        mask[row][inside] = item.masks.get(name, True)
    return Stream(x, mask)


def _pad_label(items, target: Target, lead: tuple[int, ...]) -> Label:
    is_class = target.kind == 'class'
    value = np.zeros(lead if is_class else (*lead, len(target.names)),
                     np.int32 if is_class else np.float32)
    mask = np.zeros(lead, bool)
    for row, item in enumerate(items):
        if target.name not in item.labels:
            continue
        label = np.asarray(item.labels[target.name])
        labelled = label >= 0 if is_class else ~np.isnan(label).any(-1)
        inside = slice(len(label)) if len(lead) == 2 else ...
        mask[row, inside] = labelled
        value[row, inside] = np.where(labelled if is_class else labelled[..., None], label, 0)
    return Label(value, mask)

"""Batches as a pure function of (seed, step), in few static shapes.

Nothing is saved to resume: batch number `step` of a run is the same whenever and wherever it is asked for.
Items are sorted by length into buckets; every batch comes from one bucket and has that bucket's shape, so
a run compiles as many programs as there are buckets and pads little. A batch that a bucket cannot fill is
completed with rows that are not present.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jmer.data.corpus import Item, Spec, Target
from jmer.types import Batch, Label, Stream


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Items of similar length, and the steps every stream of theirs is padded to."""

    members: tuple[int, ...]
    steps: dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Batches of some items.

    Attributes:
        items: what the batches are made of.
        spec: what the numbers mean.
        streams: names of the streams that go into a batch.
        target: name of the target, or None for batches without labels.
        batch_size: items in a batch over all processes.
        buckets: shapes of the whole.
        process: (index, count): this process gets its share of the rows of every batch.
    """

    items: tuple[Item, ...]
    spec: Spec
    streams: tuple[str, ...]
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
        bucket, rows = self._plan(np.random.default_rng([seed, epoch]))[position]
        return self._batch(bucket, rows)

    def sweep(self) -> Iterator[tuple[list[int], Batch]]:
        """All items once, in their buckets' order: their indices in `items`, and the batch."""
        for bucket, rows in self._plan(None):
            yield rows, self._batch(bucket, rows)

    def _plan(self, rng: np.random.Generator | None) -> list[tuple[Bucket, list[int]]]:
        """The batches of one epoch: in order, or shuffled within and across buckets."""
        batches = []
        for bucket in self.buckets:
            order = np.asarray(bucket.members)
            if rng is not None:
                order = rng.permutation(order)
            batches += [(bucket, order[k:k + self.batch_size].tolist())
                        for k in range(0, len(order), self.batch_size)]
        return batches if rng is None else [batches[k] for k in rng.permutation(len(batches))]

    def _batch(self, bucket: Bucket, rows: Sequence[int]) -> Batch:
        index, count = self.process
        size = self.batch_size // count
        items = [self.items[k] for k in rows][index * size:(index + 1) * size]
        target = self.spec.target(self.target) if self.target else None
        return make_batch(items, self.spec, self.streams, target, bucket.steps, size)


def pipeline(
    items: Sequence[Item],
    spec: Spec,
    streams: Sequence[str],
    target: str | None,
    batch_size: int,
    buckets: int = 1,
    process: tuple[int, int] = (0, 1),
) -> Pipeline:
    """A pipeline over items. Raises ValueError for no items, or a batch that processes cannot share."""
    if not items:
        raise ValueError(f'{spec.name}: there are no items to make batches of')
    if batch_size % process[1]:
        raise ValueError(f'a batch of {batch_size} cannot be shared by {process[1]} processes')
    for name in streams:
        spec.stream(name)
    return Pipeline(tuple(items), spec, tuple(streams), target, batch_size,
                    tuple(make_buckets(items, spec, streams, buckets)), process)


def make_buckets(
    items: Sequence[Item], spec: Spec, streams: Sequence[str], count: int
) -> list[Bucket]:
    """Sorts items by their total steps into `count` buckets of equal size."""
    lengths = [sum(np.prod(item.streams[s].shape[:-1]) for s in streams if s in item.streams)
               for item in items]
    order = np.argsort(lengths, kind='stable')
    return [Bucket(tuple(part.tolist()), _common_steps([items[k] for k in part], spec, streams))
            for part in np.array_split(order, min(count, len(items)))]


def _common_steps(
    items: Sequence[Item], spec: Spec, streams: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """The steps that hold every one of these items, by stream: (t,), (u,) or (u, t); at least one."""
    turns = max((len(item.speakers) for item in items if item.speakers is not None), default=0)
    steps = {}
    for name in streams:
        shapes = [item.streams[name].shape[:-1] for item in items if name in item.streams]
        longest = tuple(max(n) for n in zip(*shapes, strict=True)) if shapes else (1,)
        if spec.layout == 'dialogue':
            longest = (turns, *longest[1:])
        steps[name] = tuple(max(n, 1) for n in longest)
    return steps


def make_batch(
    items: Sequence[Item],
    spec: Spec,
    streams: Sequence[str],
    target: Target | None,
    steps: dict[str, tuple[int, ...]],
    size: int,
) -> Batch:
    """Pads and stacks items to `size` rows; the last rows are not present if items are fewer."""
    dialogue = spec.layout == 'dialogue'
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
    padded = {name: _pad_stream(items, name, spec.stream(name).width, steps[name], size)
              for name in streams}
    labels = {target.name: _pad_label(items, target, lead)} if target else {}
    return Batch(padded, present, labels, speakers)


def _pad_stream(items, name, width, steps, size) -> Stream:
    x = np.zeros((size, *steps, width), np.float32)
    mask = np.zeros((size, *steps), bool)
    for row, item in enumerate(items):
        value = item.streams.get(name)
        if value is None:
            continue
        where = (row, *(slice(n) for n in value.shape[:-1]))
        x[where] = value
        mask[where] = item.masks.get(name, True)
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
        where = (row, slice(len(label))) if len(lead) == 2 else (row,)
        mask[where] = labelled
        value[where] = np.where(labelled if is_class else labelled[..., None], label, 0)
    return Label(value, mask)

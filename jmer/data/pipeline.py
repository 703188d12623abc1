"""Batches as a pure function of (seed, step), in few static shapes.

Nothing is saved to resume: batch number `step` of a run is the same whenever and wherever it is asked for.
Items are sorted by length into buckets; every batch comes from one bucket and has that bucket's shape, so
a run compiles as many programs as there are buckets and pads little. The padded arrays are kept, which
makes a batch a choice of rows; a corpus therefore has to fit in memory. A batch that a bucket cannot fill is
completed with rows that are not present.

Where classes are unequal, an epoch can draw rare ones more often and others less (`pipeline(balance=)`), which is
the sampling half of what imbalanced learning asks for; `losses.class_balance` is the other one.
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
        shares: of every item in what an epoch draws, [n], summing to 1; None draws every item once.
    """

    items: tuple[Item, ...]
    spec: Spec
    target: str | None
    batch_size: int
    buckets: tuple[Bucket, ...]
    process: tuple[int, int] = (0, 1)
    shares: np.ndarray | None = None

    @property
    def steps_per_epoch(self) -> int:
        return sum(-(-self._draws(bucket) // self.batch_size) for bucket in self.buckets)

    def stream(self, seed: int, step: int) -> Batch:
        """Batch `step` of the run with this seed; every epoch sees every item once, in its own order.

        With shares it sees an item about as often as its share of all draws says, which are as many as items.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        bucket, rows = self._plan((seed, epoch))[position]
        return self._batch(bucket, rows)

    def streams(self, seeds: Sequence[int], step: int) -> Batch:
        """Batch `step` of the runs with these seeds, stacked on a new leading axis.

        Seeds order the items of a bucket each in their own way; which bucket a step draws from is the
        same for all, so that their batches have one shape.
        """
        return jax.tree.map(lambda *leaves: np.stack(leaves), *[self.stream(seed, step) for seed in seeds])

    def labels(self) -> Label | None:
        """What is to be predicted of all items, in their order; of dialogues their turns, padded to the longest."""
        if self.target is None:
            return None
        lead: tuple[int, ...] = (len(self.items),)
        if self.spec.layout == 'dialogue':
            lead += (max(len(item.speakers) for item in self.items if item.speakers is not None),)
        return _pad_label(self.items, self.spec.target(self.target), lead)

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
            order = np.arange(len(bucket.members)) if rng is None else self._order(bucket, rng)
            batches += [(bucket, order[k:k + self.batch_size]) for k in range(0, len(order), self.batch_size)]
        if shuffle is None:
            return batches
        return [batches[k] for k in np.random.default_rng(shuffle[1]).permutation(len(batches))]

    def _draws(self, bucket: Bucket) -> int:
        """How many rows of a bucket an epoch sees: the same in every epoch, at least one."""
        if self.shares is None:
            return len(bucket.members)
        return max(1, round(len(self.items) * self.shares[bucket.members].sum()))

    def _order(self, bucket: Bucket, rng: np.random.Generator) -> np.ndarray:
        """The rows of a bucket that an epoch sees, in its order."""
        if self.shares is None:
            return rng.permutation(len(bucket.members))
        return drawn(rng, self.shares[bucket.members], self._draws(bucket))

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
    balance: float = 0.0,
    also: Sequence[str] = (),
) -> Pipeline:
    """A pipeline over items. Raises ValueError for no items, or a batch that processes cannot share.

    buckets: shapes of the whole; items are sorted by their total steps and cut into so many equal parts.
    balance: power of the inverse frequency of its class by which an item is drawn, see `shares_of`; 0 draws
        every item once an epoch. ValueError for a negative one, and for a target that has no classes.
    also: further targets that the batches tell.
    """
    if not items:
        raise ValueError(f'{spec.name}: there are no items to make batches of')
    if batch_size < 1 or batch_size % process[1]:
        raise ValueError(f'a batch of {batch_size} cannot be shared by {process[1]} processes')
    if buckets < 1:
        raise ValueError(f'buckets: found {buckets}, expected at least 1')
    known = spec.target(target) if target else None
    told = [*([known] if known else []), *map(spec.target, also)]
    lengths = [sum(math.prod(item.streams[s].shape[:-1]) for s in streams if s in item.streams)
               for item in items]
    parts = np.array_split(np.argsort(lengths, kind='stable'), min(buckets, len(items)))
    made = []
    for part in parts:
        members = [items[k] for k in part]
        steps = common_steps(members, spec, streams)
        made.append(Bucket(part, make_batch(members, spec, told, steps)._replace(items=part.astype(np.int32))))
    shares = shares_of(items, _classes(spec, known), balance) if balance else None
    return Pipeline(tuple(items), spec, target, batch_size, tuple(made), process, shares)


def _classes(spec: Spec, target: Target | None) -> Target:
    if target is None:
        raise ValueError(f'balance: {spec.name} is read without a target, expected one whose classes are counted')
    return target


def class_counts(items: Sequence[Item], target: Target) -> np.ndarray:
    """How many items, or turns of dialogues, are labelled with each class, [c]; ValueError without classes."""
    if target.kind != 'class':
        raise ValueError(f'balance: found the target {target.name} of the kind {target.kind}, expected classes')
    found = np.concatenate([np.zeros(0, int), *(_labels(item, target) for item in items)])
    return np.bincount(found, minlength=len(target.names))


def shares_of(items: Sequence[Item], target: Target, balance: float) -> np.ndarray:
    """In what share every item is drawn, [n], summing to 1.

    In proportion to n^-balance, where n counts what is labelled with the item's class: at 1 all classes are
    drawn equally often, below 1 rare ones still less often than others. Of a dialogue it is the mean over its
    labelled turns, and of an item without any the mean over all that have some.
    """
    if not 0 <= balance < np.inf:
        raise ValueError(f'balance: found {balance}, expected a number >= 0')
    worth = np.maximum(class_counts(items, target), 1.0) ** -balance
    labels = [_labels(item, target) for item in items]
    means = np.array([worth[label].mean() if len(label) else np.nan for label in labels])
    labelled = ~np.isnan(means)
    shares = np.where(labelled, means, means[labelled].mean() if labelled.any() else 1.0)
    return shares / shares.sum()


def drawn(rng: np.random.Generator, shares: np.ndarray, count: int) -> np.ndarray:
    """So many rows in random order, each about as often as its share of them says.

    Systematic sampling: marks at equal distances over the rows in random order. A row is drawn as often as
    expected, up to one time more or less, and equal shares of as many rows draw each of them once.
    """
    order = rng.permutation(len(shares))
    ends = np.cumsum(shares[order])
    marks = (rng.random() + np.arange(count)) / count * ends[-1]
    rows = np.minimum(np.searchsorted(ends, marks, side='right'), len(shares) - 1)
    return rng.permutation(order[rows])


def _labels(item: Item, target: Target) -> np.ndarray:
    """The classes that an item is labelled with, one or one for each labelled turn."""
    found = np.atleast_1d(item.labels.get(target.name, -1))
    return found[found >= 0].astype(int)


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
    items: Sequence[Item], spec: Spec, targets: Sequence[Target], steps: dict[str, tuple[int, ...]]
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
    labels = {target.name: _pad_label(items, target, lead) for target in targets}
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

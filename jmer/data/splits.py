"""Which items train, which choose, which judge: three sides that share no group.

A group is what would leak if it stood on two sides: the speaker of a clip, the video of an utterance, the
dialogue of a turn.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jmer.data.corpus import Corpus, Item


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a corpus is split.

    test: parts of the corpus that judge; empty where weights are made to be used on other data.
    validation: parts that choose epochs and settings; if empty, `held_out` groups are drawn from the
        training parts for it.
    train: parts that train; empty: all that is left.
    held_out: number of groups drawn for validation.
    seed: of that draw.
    """

    test: tuple[str, ...] = ('test',)
    validation: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    held_out: int = 0
    seed: int = 0


class Splits(NamedTuple):
    """The three sides. validation and test may be empty."""

    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]


def split(corpus: Corpus, protocol: Protocol) -> Splits:
    """Splits a corpus by a protocol. Raises ValueError where a part is unknown or a group would leak."""
    parts = {item.part for item in corpus.items}
    for field in ('test', 'validation', 'train'):
        unknown = set(getattr(protocol, field)) - parts
        if unknown:
            raise ValueError(f'{corpus.spec.name} has no part {", ".join(sorted(unknown))} ({field}); '
                             f'found: {", ".join(sorted(parts))}')
    if protocol.held_out < 0:
        raise ValueError(f'held_out: found {protocol.held_out}, expected 0 or more groups')
    taken = protocol.test + protocol.validation
    train_parts = protocol.train or tuple(sorted(parts - set(taken)))
    test = _of_parts(corpus, protocol.test)
    validation = _of_parts(corpus, protocol.validation)
    train = _of_parts(corpus, train_parts)
    if protocol.held_out:
        chosen = _draw_groups(train, protocol.held_out, protocol.seed)
        validation += tuple(item for item in train if item.group in chosen)
        train = tuple(item for item in train if item.group not in chosen)
    splits = Splits(train, validation, test)
    _refuse_leaks(splits)
    if not train:
        raise ValueError(f'{corpus.spec.name}: nothing is left to train on under {protocol}')
    return splits


def _of_parts(corpus: Corpus, parts: Sequence[str]) -> tuple[Item, ...]:
    return tuple(item for item in corpus.items if item.part in parts)


def _draw_groups(items: Sequence[Item], count: int, seed: int) -> set[str]:
    groups = sorted({item.group for item in items})
    if count >= len(groups):
        raise ValueError(f'cannot hold out {count} of {len(groups)} groups for validation')
    return set(np.random.default_rng(seed).choice(groups, count, replace=False).tolist())


def _refuse_leaks(splits: Splits) -> None:
    sides = {name: {item.group for item in side} for name, side in splits._asdict().items()}
    for one, other in (('train', 'validation'), ('train', 'test'), ('validation', 'test')):
        both = sides[one] & sides[other]
        if both:
            raise ValueError(f'the groups {sorted(both)[:5]} stand in {one} and in {other}: '
                             'results on them would not be honest')

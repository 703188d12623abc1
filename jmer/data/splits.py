"""Which items train, which choose, which judge: three sides that share no group, speaker or copy.

A group is what would leak if it stood on two sides: the speaker of a clip, the video of an utterance, the
dialogue of a turn. The test side is sealed: who is in it may be known at any time, what it holds can be had
once, and only when the choice that it is to judge has been written down.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jmer.data.corpus import Corpus, Item, speakers_of


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a corpus is split.

    test: parts of the corpus, or groups, that judge; empty where weights are made to be used on other data.
    validation: parts or groups that choose epochs and settings; if empty, `held_out` groups are drawn from
        the training parts for it.
    train: parts or groups that train; empty: all that is left.
    held_out: number of groups drawn for validation.
    seed: of that draw.
    disjoint: what may not stand on two sides: always groups; speakers as well where a corpus is split by
        dialogue and speakers are meant to be new.
    copies: what becomes of items that hold the same numbers as one on another side: 'refuse' the split, or 'drop'
        them from the side that comes first (short lines that everybody says, once turns stand alone).
    """

    test: tuple[str, ...] = ('test',)
    validation: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    held_out: int = 0
    seed: int = 0
    disjoint: Literal['groups', 'speakers'] = 'groups'
    copies: Literal['refuse', 'drop'] = 'refuse'


@dataclasses.dataclass(frozen=True)
class Side:
    """The items of one side."""

    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.items]

    @property
    def groups(self) -> set[str]:
        return {item.group for item in self.items}

    @property
    def speakers(self) -> set[str]:
        return {name for item in self.items for name in speakers_of(item)}


class Sealed:
    """A side that cannot be looked into before its seal is broken, once, by a choice that is written down."""

    def __init__(self, side: Side):
        self.__side = side
        self.__broken_for: Path | None = None

    def __len__(self) -> int:
        return len(self.__side)

    @property
    def ids(self) -> list[str]:
        return self.__side.ids

    @property
    def groups(self) -> set[str]:
        return self.__side.groups

    @property
    def speakers(self) -> set[str]:
        return self.__side.speakers

    def open(self, choice: Path) -> Side:
        """The side. choice: the file that says what was chosen, of which the test is to judge.

        Raises ValueError where that file is not there, or the side was opened before.
        """
        if self.__broken_for is not None:
            raise ValueError(f'the test side was opened before, for {self.__broken_for}; it can be opened once')
        if not choice.is_file():
            raise ValueError('the test side is sealed until the choice that it judges is written down: '
                             f'{choice} is not there')
        self.__broken_for = choice
        return self.__side


class Splits(NamedTuple):
    """The three sides. validation and test may be empty."""

    train: Side
    validation: Side
    test: Sealed


def split(corpus: Corpus, protocol: Protocol) -> Splits:
    """Splits a corpus by a protocol.

    Raises ValueError where a part is unknown, or where a group, a speaker (if the protocol says so) or a copy
    of an item would stand on two sides.
    """
    known = {item.part for item in corpus.items} | {item.group for item in corpus.items}
    for field in ('test', 'validation', 'train'):
        unknown = set(getattr(protocol, field)) - known
        if unknown:
            raise ValueError(f'{corpus.spec.name} has no part {", ".join(sorted(unknown))} ({field}); '
                             f'found: {", ".join(sorted({item.part for item in corpus.items}))}')
    if protocol.held_out < 0:
        raise ValueError(f'held_out: found {protocol.held_out}, expected 0 or more groups')
    test = _named(corpus.items, protocol.test)
    validation = _named(corpus.items, protocol.validation)
    taken = {item.id for item in test + validation}
    train = (_named(corpus.items, protocol.train) if protocol.train
             else tuple(item for item in corpus.items if item.id not in taken))
    if protocol.held_out:
        chosen = _draw_groups(train, protocol.held_out, protocol.seed)
        validation += tuple(item for item in train if item.group in chosen)
        train = tuple(item for item in train if item.group not in chosen)
    if protocol.copies == 'drop':
        validation = _without_copies(validation, test)
        train = _without_copies(train, validation + test)
    if not train:
        raise ValueError(f'{corpus.spec.name}: nothing is left to train on under {protocol}')
    sides = {'train': Side(train), 'validation': Side(validation), 'test': Side(test)}
    _refuse_leaks(sides, protocol.disjoint)
    return Splits(sides['train'], sides['validation'], Sealed(sides['test']))


def folds(corpus: Corpus, by: Literal['parts', 'groups']) -> list[str]:
    """The parts, or the groups, of a corpus, each of which is to judge once."""
    return sorted({item.part if by == 'parts' else item.group for item in corpus.items})


def _named(items: Iterable[Item], names: Sequence[str]) -> tuple[Item, ...]:
    """The items whose part or group is among the names."""
    return tuple(item for item in items if item.part in names or item.group in names)


def _draw_groups(items: Sequence[Item], count: int, seed: int) -> set[str]:
    groups = sorted({item.group for item in items})
    if count >= len(groups):
        raise ValueError(f'cannot hold out {count} of {len(groups)} groups for validation')
    return set(np.random.default_rng(seed).choice(groups, count, replace=False).tolist())


def _refuse_leaks(sides: dict[str, Side], disjoint: str) -> None:
    copies = {name: {_content(item): item.id for item in side.items if item.streams} for name, side in sides.items()}
    for one, other in (('train', 'validation'), ('train', 'test'), ('validation', 'test')):
        for what in dict.fromkeys(('groups', disjoint)):
            both = sorted(getattr(sides[one], what) & getattr(sides[other], what))
            if both:
                raise ValueError(f'the {what} {both[:5]} stand in {one} and in {other}: '
                                 'results on them would not be honest')
        for content in copies[one].keys() & copies[other].keys():
            raise ValueError(f'{copies[one][content]} in {one} and {copies[other][content]} in {other} hold the '
                             'same numbers: one is a copy of the other, and results on it would not be honest')


def _without_copies(items: tuple[Item, ...], others: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items of which there is no copy among the others."""
    known = {_content(item) for item in others if item.streams}
    return tuple(item for item in items if not item.streams or _content(item) not in known)


def _content(item: Item) -> bytes:
    """A digest of all that a model could see of an item."""
    digest = hashlib.sha256()
    for name in sorted(item.streams):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(item.streams[name]).tobytes())
    return digest.digest()

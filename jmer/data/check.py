"""What is in a corpus, and what is wrong with it: `jmer data check`.

Problems are what makes a corpus unusable or figures on it wrong; notes are what one should know. As many as
possible are collected; only a folder that holds no corpus at all stops the check.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from jmer.data import load
from jmer.data.corpus import Corpus, Item, Spec, Target, speakers_of, validate

Counts = dict[str, dict[str, int]]
SIGNS = ('negative', 'zero', 'positive')


class StreamReport(NamedTuple):
    """items: that have it. steps: least, median and most. constant: columns that never change."""

    items: int
    steps: tuple[int, int, int]
    constant: tuple[int, ...]


class Report(NamedTuple):
    """What was found; plain enough for JSON.

    parts, groups: items in each. turns: labelled units, which are the items where there are no dialogues.
    labels: target -> part -> label -> count of turns. A regression target is counted by sign.
    speakers: the same by speaker; the speaker is the item's group where nothing else is known.
    """

    name: str
    place: str
    items: int
    turns: int
    parts: dict[str, int]
    groups: dict[str, int]
    labels: dict[str, Counts]
    speakers: dict[str, Counts]
    streams: dict[str, StreamReport]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check(corpus: Corpus | str, data_dir: str | os.PathLike | None = None) -> Report:
    """Checks a corpus, or one by name in its owners' folder (see `jmer.data.load`).

    Raises ValueError for an unknown name, FileNotFoundError if the folder does not hold the corpus.
    """
    problems: list[str] = []
    notes: list[str] = []
    if isinstance(corpus, str):
        corpus = _read(corpus, data_dir, problems, notes)
    spec, items = corpus
    problems += _faults(spec, items)
    problems += _overlaps('group', [(item.group, item.part) for item in items])
    notes += _overlaps('speaker', [(name, item.part) for item in items for name in speakers_of(item)
                                   if item.attributes])
    streams = {stream.name: _stream_report(stream.name, items) for stream in spec.streams}
    notes += [f'stream {name}: {len(stream.constant)} columns never change: {_some(stream.constant)}'
              for name, stream in streams.items() if stream.constant]
    notes += [note for name in streams for note in _repeats(name, items)]
    labels = {t.name: _count(t, items, lambda item: [item.part] * _turns(item)) for t in spec.targets}
    notes += [note for t in spec.targets if t.kind == 'class' for note in _gaps(t.name, labels[t.name])]
    return Report(
        name=spec.name,
        place='' if data_dir is None else str(data_dir),
        items=len(items),
        turns=sum(_turns(item) for item in items),
        parts=dict(Counter(item.part for item in items)),
        groups=dict(Counter(item.group for item in items)),
        labels=labels,
        speakers={t.name: _count(t, items, speakers_of) for t in spec.targets},
        streams=streams,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _read(name: str, data_dir: str | os.PathLike | None, problems: list[str], notes: list[str]) -> Corpus:
    """A corpus read leniently: not through the cache, which holds faultless copies only."""
    if name in load.TOYS:
        return load.load(name)
    source = load.source(name)
    if data_dir is None:
        raise ValueError(f'{name} is read from a folder, and none was given: {source.TREE}')
    parts = source.parts(Path(data_dir).expanduser(), problems.append, notes.append)
    return Corpus(source.SPEC, tuple(item for items in parts.values() for item in items))


def _turns(item: Item) -> int:
    return 1 if item.speakers is None else len(item.speakers)


def _faults(spec: Spec, items: Iterable[Item]) -> Iterator[str]:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            yield f'{spec.name}: two items are called {item.id!r}'
        seen.add(item.id)
        try:
            validate(Corpus(spec, (item,)))
        except ValueError as error:
            yield str(error)
        if not item.streams:
            yield f'{spec.name}: {item.id}: has no stream at all'


def _overlaps(kind: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Names that stand in several parts."""
    parts: dict[str, set[str]] = {}
    for name, part in pairs:
        parts.setdefault(name, set()).add(part)
    shared: dict[tuple[str, ...], list[str]] = {}
    for name, where in sorted(parts.items()):
        if len(where) > 1:
            shared.setdefault(tuple(sorted(where)), []).append(name)
    for several, found in sorted(shared.items()):
        yield f'in {" and ".join(several)} alike: {len(found)} {kind}{"s"[:len(found) > 1]}: {_some(found)}'


def _count(target: Target, items: Iterable[Item], keys) -> Counts:
    """Counts of labels by what `keys` says of each turn of an item."""
    counts: dict[str, Counter[str]] = {}
    for item in items:
        for key, labels in zip(keys(item), _labels(target, item), strict=False):
            counts.setdefault(key, Counter()).update(labels)
    known = _vocabulary(target)
    return {key: {label: found[label] for label in (*known, *sorted(set(found) - set(known)))}
            for key, found in sorted(counts.items())}


def _gaps(target: str, counts: Counts) -> Iterator[str]:
    for part, found in counts.items():
        absent = [label for label, count in found.items() if not count]
        if absent:
            yield f'part {part}: no turn has the {target} {_some(absent)}'


def _vocabulary(target: Target) -> tuple[str, ...]:
    if target.kind != 'regression':
        return target.names
    if len(target.names) == 1:
        return SIGNS
    return tuple(f'{name} {sign}' for name in target.names for sign in SIGNS)


def _labels(target: Target, item: Item) -> list[list[str]]:
    """The labels of each turn, as words."""
    if target.name not in item.labels:
        return [['(none)']] * _turns(item)
    value = np.asarray(item.labels[target.name])
    if target.kind == 'class':
        return [[_class(target, code)] for code in value.reshape(-1).tolist()]
    return [_words(target, row) for row in value.reshape(-1, value.shape[-1])]


def _class(target: Target, code: int) -> str:
    if code == -1:
        return '(none)'
    return target.names[code] if 0 <= code < len(target.names) else f'(unknown: {code})'


def _words(target: Target, row: np.ndarray) -> list[str]:
    if np.isnan(row).any():
        return ['(none)']
    if target.kind == 'distribution':
        return [target.names[int(row.argmax())]]
    if target.kind == 'multilabel':
        return [name for name, value in zip(target.names, row, strict=False) if value > 0]
    names = [f'{name} ' for name in target.names] if len(target.names) > 1 else ['']
    return [name + SIGNS[int(np.sign(value)) + 1] for name, value in zip(names, row, strict=False)]


def _stream_report(name: str, items: Iterable[Item]) -> StreamReport:
    found = [_present(item, name) for item in items if name in item.streams]
    if not found:
        return StreamReport(0, (0, 0, 0), ())
    steps = [len(x) for x in found]
    return StreamReport(len(found), (min(steps), int(np.median(steps)), max(steps)), _constant(found))


def _present(item: Item, name: str) -> np.ndarray:
    """The steps of a stream that are there, [n d]."""
    x, mask = item.streams[name], item.masks.get(name)
    return x.reshape(-1, x.shape[-1]) if mask is None or mask.shape != x.shape[:-1] else x[mask]


def _constant(found: list[np.ndarray]) -> tuple[int, ...]:
    found = [x for x in found if len(x)]
    if sum(map(len, found)) < 2:
        return ()
    first = found[0][0]
    # Another width is a problem, which is told elsewhere.
    same = [(x == first).all(axis=0) for x in found if x.shape[-1] == len(first)]
    return tuple(np.flatnonzero(np.all(same, axis=0)).tolist())


def _repeats(name: str, items: Iterable[Item]) -> Iterator[str]:
    """Turns whose features are, to the bit, those of another one: copies of a file, or of a row."""
    places: dict[bytes, list[tuple[str, str]]] = {}
    for item in items:
        for where, row in _units(item, name):
            digest = hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest()
            places.setdefault(digest, []).append((item.part, where))
    copies = [found for found in places.values() if len(found) > 1]
    if copies:
        across = sum(len({part for part, _ in found}) > 1 for found in copies)
        example = ' = '.join(f'{where} ({part})' for part, where in copies[0][:2])
        yield (f'stream {name}: {sum(map(len, copies))} turns share their features with another one '
               f'({len(copies)} sets, {across} of them across parts), as {example}')


def _units(item: Item, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """A stream by turns, those left out that are missing."""
    if name not in item.streams:
        return
    x, mask = item.streams[name], item.masks.get(name)
    if item.speakers is None:
        yield item.id, x
        return
    for turn, (where, row) in enumerate(zip(item.turns, x, strict=False)):
        if mask is None or mask[turn].any():
            yield where, row


def _some(names: Iterable[Any], most: int = 8) -> str:
    names = [str(name) for name in names]
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def show(report: Report, console: Console | None = None) -> None:
    """Prints a report as tables."""
    console = console or Console()
    place = f' in {report.place}' if report.place else ''
    _print(console, f'{report.name}{place}: {report.items} items, {report.turns} turns, '
                    f'{len(report.groups)} groups')
    for target, counts in report.labels.items():
        console.print(_count_table(f'{target} by part', counts))
    for target, counts in list(report.speakers.items())[:1]:   # the others would fill the screen
        console.print(_count_table(f'{target} by speaker', counts))
    console.print(_stream_table(report))
    for kind, style, messages in (('problem', 'red', report.problems), ('note', 'yellow', report.notes)):
        for message in messages:
            _print(console, f'{kind}: {message}', style)
    _print(console, f'{len(report.problems)} problems, {len(report.notes)} notes')


def _print(console: Console, text: str, style: str | None = None) -> None:
    # Messages hold brackets and paths: they are no markup, and must not be broken or coloured.
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _count_table(title: str, counts: Mapping[str, Mapping[str, int]], most: int = 24) -> Table:
    labels = list(dict.fromkeys(label for found in counts.values() for label in found))
    table = Table('', *labels, 'all', title=title, title_justify='left')
    rows = sorted(counts, key=lambda key: -sum(counts[key].values())) if len(counts) > most else counts
    for key in list(rows)[:most]:
        _add_row(table, key, labels, counts[key])
    if len(counts) > most:
        rest = sum((Counter(counts[key]) for key in list(rows)[most:]), Counter())
        _add_row(table, f'{len(counts) - most} others', labels, rest)
    return table


def _add_row(table: Table, key: str, labels: list[str], found: Mapping[str, int]) -> None:
    table.add_row(key, *(str(found.get(label, 0)) for label in labels), str(sum(found.values())))


def _stream_table(report: Report) -> Table:
    table = Table('stream', 'items', 'steps: least', 'median', 'most', 'constant columns',
                  title='streams', title_justify='left')
    for name, stream in report.streams.items():
        table.add_row(name, str(stream.items), *map(str, stream.steps), str(len(stream.constant)))
    return table

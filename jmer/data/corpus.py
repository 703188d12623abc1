"""A corpus in memory: ragged items, what their numbers mean, and the protocols that split them.

Every source of data ends here, whether a TFDS builder over the owners' files, an npz of features or the
synthetic corpus; everything behind (splits, standardisation, batches) starts here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal['class', 'multilabel', 'regression', 'distribution']


@dataclasses.dataclass(frozen=True)
class StreamSpec:
    """One modality. rate: steps a second, 0 where a step is not a stretch of time (a turn, a word)."""

    name: str
    width: int
    rate: float = 0.0
    about: str = ''


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be recognised. names: the classes, in the order of their codes, or the dimensions."""

    name: str
    kind: Kind
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a corpus holds. version: of the features; weights fit the version they were trained on."""

    name: str
    version: str
    layout: Literal['utterance', 'dialogue', 'speech']
    streams: tuple[StreamSpec, ...]
    targets: tuple[Target, ...]
    licence: str = ''
    citation: str = ''
    source: str = ''

    def stream(self, name: str) -> StreamSpec:
        return _named(self.streams, name, f'{self.name} has no stream')

    def target(self, name: str) -> Target:
        return _named(self.targets, name, f'{self.name} has no target')


def _named(choices, name, complaint):
    for choice in choices:
        if choice.name == name:
            return choice
    raise ValueError(f'{complaint} {name!r}; it has {", ".join(c.name for c in choices)}')


class Item(NamedTuple):
    """One utterance, or one dialogue.

    id: unique in the corpus.
    group: what a protocol keeps on one side: the speaker (RAVDESS), the video (MOSI), the dialogue (MELD).
    part: the part of the corpus the owners put it in: 'train', 'dev', 'test', or a fold, 'fold0'.
    streams: float32 [t d]; in dialogues [u d] or [u t d]. A modality that is absent from the whole item
        has no entry.
    labels: by target: an int, or float [c]; in dialogues int [u] or float [u c]. -1 (class) or NaN
        (others) is *not labelled*, and so is a target without entry.
    masks: bool [t] (or [u], [u t]), for the streams of which steps are missing; absent means all present.
    speakers: int [u], 0, 1, ... in order of appearance; None for utterances.
    turns: ids of the turns, for dialogues.
    attributes: what else is known ('speaker', 'sex', ...), for reports and fairness.
    """

    id: str
    group: str
    part: str
    streams: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray] = {}
    speakers: np.ndarray | None = None
    turns: tuple[str, ...] = ()
    attributes: Mapping[str, str] = {}


class Corpus(NamedTuple):
    """All items of a corpus, sorted by id, and what their numbers mean."""

    spec: Spec
    items: tuple[Item, ...]


def speakers_of(item: Item) -> list[str]:
    """Who speaks each turn of a dialogue, or the utterance; where no name is known, the group's."""
    if item.speakers is None:
        return [item.attributes.get('speaker', item.group)]
    if 'speakers' in item.attributes:
        names = item.attributes['speakers'].split(' | ')
        return [names[speaker] for speaker in item.speakers]
    return [item.attributes.get('speaker', item.group)] * len(item.speakers)


def as_utterances(corpus: Corpus) -> Corpus:
    """The corpus with every turn of a dialogue as an utterance of its own, without its context.

    Raises ValueError where the corpus holds no dialogues.
    """
    spec, items = corpus
    if spec.layout != 'dialogue':
        raise ValueError(f'{spec.name}: found the layout {spec.layout}, expected dialogues to take turns from')
    return Corpus(dataclasses.replace(spec, layout='utterance'), tuple(
        turn for item in items for turn in _turns_of(item)))


def _turns_of(item: Item) -> list[Item]:
    speakers = speakers_of(item)
    names = item.turns or tuple(f'{item.id}#{k}' for k in range(len(speakers)))
    found = []
    for k, (name, speaker) in enumerate(zip(names, speakers, strict=True)):
        steps = {s: (x[k] if x.ndim == 3 else x[k:k + 1]) for s, x in item.streams.items()}
        masks = {s: np.atleast_1d(m[k]) for s, m in item.masks.items()}
        there = [s for s in steps if s not in masks or masks[s].any()]
        found.append(Item(
            name, item.group, item.part, {s: steps[s] for s in there},
            {target: np.asarray(label[k]) for target, label in item.labels.items()},
            {s: masks[s] for s in there if s in masks}, attributes={'speaker': speaker}))
    return found


def validate(corpus: Corpus) -> None:
    """Raises ValueError naming item and field where an item does not fit its spec.

    Wrong widths or dtypes, NaN or infinite features, labels outside the set, repeated ids, turns that
    do not agree in number.
    """
    seen: set[str] = set()
    for item in corpus.items:
        if item.id in seen:
            raise ValueError(f'{corpus.spec.name}: two items are called {item.id!r}')
        seen.add(item.id)
        _validate_item(corpus.spec, item)


def _validate_item(spec: Spec, item: Item) -> None:
    def fault(field: str, found: object, expected: object) -> ValueError:
        return ValueError(f'{spec.name}: {item.id}: {field}: found {found}, expected {expected}')

    axes = {'utterance': (2,), 'speech': (2,), 'dialogue': (2, 3)}[spec.layout]
    for name, x in item.streams.items():
        stream = spec.stream(name)
        if x.ndim not in axes or x.shape[-1] != stream.width:
            raise fault(f'stream {name}', f'shape {x.shape}', f'{axes} axes, the last {stream.width} wide')
        if x.dtype != np.float32:
            raise fault(f'stream {name}', x.dtype, 'float32')
        if not np.isfinite(x).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
            raise fault(f'stream {name}', f'{x[where]} at {list(where)}', 'finite numbers')
        if name in item.masks and item.masks[name].shape != x.shape[:-1]:
            raise fault(f'mask of {name}', item.masks[name].shape, x.shape[:-1])
    for name, value in item.labels.items():
        target = spec.target(name)
        if target.kind == 'class':
            wrong = (np.asarray(value) < -1) | (np.asarray(value) >= len(target.names))
            if wrong.any():
                raise fault(f'label {name}', np.asarray(value)[wrong].tolist(),
                            f'-1 (none) to {len(target.names) - 1} ({", ".join(target.names)})')
        elif np.shape(value)[-1] != len(target.names):
            raise fault(f'label {name}', f'shape {np.shape(value)}', f'{len(target.names)} values')
    if spec.layout == 'dialogue':
        if item.speakers is None or not len(item.speakers):
            raise fault('speakers', item.speakers, 'one for each of at least one turn')
        for field, part in (('stream', item.streams), ('label', item.labels)):
            for name, value in part.items():
                if len(value) != len(item.speakers):
                    raise fault(f'{field} {name}', f'{len(value)} turns', f'{len(item.speakers)} turns')

"""EmoryNLP as text: the scenes of Friends that have sound and video, with the split of MELD's owners.

The files are train.npz, valid.npz and test.npz. An item is a scene. There are no embeddings: the text stream is
made here, of the words of a turn (see jmer.data.text), and what has to be learned for it is learned from
train.npz, without which the other two cannot be read. Numbers 0 and 1 stand for no word and for a rare one, and
do not count.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jmer.data import folder, text
from jmer.data.corpus import Item, Spec, StreamSpec, Target

EMOTIONS = ('joyful', 'mad', 'peaceful', 'neutral', 'sad', 'powerful', 'scared')
PARTS = ('train', 'valid', 'test')
WIDTH = 256
FIRST_WORD = 2

SPEC = Spec(
    name='emorynlp',
    version='1.0.0',
    layout='dialogue',
    streams=(StreamSpec('text', WIDTH, about='tf-idf of the words along the main directions of the train part '
                                             '(jmer.data.text), one vector an utterance'),),
    targets=(Target('emotion', 'class', EMOTIONS),),
    licence='Apache-2.0 (annotations); the clips belong to the makers of Friends',
    citation='S. M. Zahiri and J. D. Choi. Emotion Detection on TV Show Transcripts with Sequence-based '
             'Convolutional Neural Networks. AAAI Workshops 2018.',
    source='https://github.com/declare-lab/MELD',
)

ATTRIBUTES = ('speakers',)

_ARRAYS = ('label', 'dialog_offsets', 'dialog_name_bytes', 'dialog_name_offsets', 'speaker_bytes',
           'speaker_offsets', 'tokens', 'token_offsets')

TREE = f"""
    <folder>/train.npz      659 scenes, 7551 utterances
    <folder>/valid.npz       89 scenes,  954 utterances
    <folder>/test.npz        79 scenes,  984 utterances
with the arrays {', '.join(_ARRAYS)}.
The transcripts come from {SPEC.source} (data/emorynlp).
"""


class _Part(NamedTuple):
    """One file. names, ends: of the scenes; speakers, words, labels: of the turns."""

    names: list[str]
    ends: list[int]
    speakers: list[str]
    words: list[np.ndarray]
    labels: np.ndarray


def parts(
    root: Path, fault: folder.Tell = folder.refuse, note: folder.Tell = folder.ignore
) -> dict[str, Iterator[Item]]:
    """The items of each file that is there."""
    folder.present(root, TREE)
    paths = {part: root / f'{part}.npz' for part in PARTS}
    if not paths['train'].is_file():
        raise folder.missing(root, 'train.npz was not found; the text stream is learned from it', TREE)
    found: dict[str, _Part] = {}
    for part, path in paths.items():
        if not path.is_file():
            note(f'{path}: absent')
            continue
        try:
            found[part] = _read(path, fault)
        except ValueError as error:
            fault(str(error))
    if 'train' not in found:
        return {}
    words = text.fit(found['train'].words, WIDTH)
    return {part: _items(part, scenes, words) for part, scenes in found.items()}


def _items(part: str, scenes: _Part, words: text.Words) -> Iterator[Item]:
    x = text.vectors(scenes.words, words)
    for name, (start, stop) in zip(scenes.names, pairwise(scenes.ends), strict=True):
        speakers = scenes.speakers[start:stop]
        names = list(dict.fromkeys(speakers))
        yield Item(
            id=name,
            group=name,
            part=part,
            streams={'text': x[start:stop]},
            labels={'emotion': scenes.labels[start:stop]},
            speakers=np.array([names.index(speaker) for speaker in speakers], np.int32),
            turns=tuple(f'{name}_utt{k}' for k in range(stop - start)),
            attributes={'speakers': ' | '.join(names)},
        )


def _read(path: Path, fault: folder.Tell) -> _Part:
    found = folder.arrays(path, _ARRAYS)
    names, speakers = (folder.strings(path, found, name) for name in ('dialog_name', 'speaker'))
    ends = folder.bounds(path, 'dialog_offsets', found['dialog_offsets'], len(speakers))
    labels, tokens = (_numbers(path, name, found[name]) for name in ('label', 'tokens'))
    cuts = folder.bounds(path, 'token_offsets', found['token_offsets'], len(tokens))
    for array, count, expected in (('dialog_offsets', len(ends) - 1, len(names)),
                                   ('token_offsets', len(cuts) - 1, len(speakers)),
                                   ('label', len(labels), len(speakers))):
        if count != expected:
            raise ValueError(f'{path}: array {array}: found {count} entries, expected {expected}, since there are '
                             f'{len(names)} scenes and {len(speakers)} turns')
    words = [turn[turn >= FIRST_WORD] for turn in np.split(tokens, cuts[1:-1])]
    return _Part(names, ends, speakers, words, _known(path, labels, fault))


def _numbers(path: Path, name: str, found: np.ndarray) -> np.ndarray:
    if found.ndim != 1 or found.dtype.kind not in 'iu' or (found < 0).any():
        raise ValueError(f'{path}: array {name}: found {found.dtype} {found.shape}, expected whole numbers from 0 '
                         'in one row')
    return found.astype(np.int32)


def _known(path: Path, labels: np.ndarray, fault: folder.Tell) -> np.ndarray:
    """The labels; none (-1) where there is no such emotion, which is told."""
    for row in np.flatnonzero(labels >= len(EMOTIONS)):
        fault(f'{path}: array label: row {row}: found {labels[row]}, expected 0 to {len(EMOTIONS) - 1} '
              f'({", ".join(EMOTIONS)})')
    return np.where(labels < len(EMOTIONS), labels, -1).astype(np.int32)

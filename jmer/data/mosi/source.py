"""CMU-MOSI as features of utterances in video context (Poria et al., ACL 2017).

The files are train.npz and test.npz. An item is a video, its turns are the utterances. The parts
are the two files and nothing else. The files also carry `std_split`, the usual 52/10/31 videos, and
it is never read here: the networks behind the text and vision features were trained with the labels
of the videos in train.npz, 24 of which are test videos of the usual split, so that figures on it
would be figures on training data. Validation videos have to come from 'train'.

Features are as extracted, not standardised. A sentiment of zero counts as positive.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from jmer.data import folder
from jmer.data.corpus import Item, Spec, StreamSpec, Target

SPEC = Spec(
    name='mosi',
    version='1.0.0',
    layout='dialogue',
    streams=(
        StreamSpec('text', 100, about='CNN over word2vec, one vector an utterance'),
        StreamSpec('audio', 73, about='openSMILE statistics, one vector an utterance'),
        StreamSpec('vision', 100, about='3D-CNN, one vector an utterance'),
    ),
    targets=(
        Target('sentiment', 'regression', ('sentiment',)),
        Target('polarity', 'class', ('negative', 'positive')),
    ),
    licence='CMU-MOSI: research use; videos belong to their makers',
    citation='A. Zadeh, R. Zellers, E. Pincus and L.-P. Morency. MOSI: Multimodal Corpus of '
             'Sentiment Intensity. arXiv:1606.06259, 2016. Features: S. Poria et al. '
             'Context-Dependent Sentiment Analysis in User-Generated Videos. ACL 2017.',
    source='https://github.com/declare-lab/multimodal-deep-learning',
)

ATTRIBUTES = ()

_STREAMS = {'text': 'text', 'audio': 'audio', 'vision': 'video'}   # our name: the file's
_ARRAYS = (*_STREAMS.values(), 'label2', 'sentiment', 'dialog_offsets', 'dialog_name_bytes',
           'dialog_name_offsets', 'utt_id_bytes', 'utt_id_offsets')

TREE = f"""
    <folder>/train.npz      62 videos, 1447 utterances
    <folder>/test.npz       31 videos,  752 utterances
with the arrays {', '.join(_ARRAYS)}.
The features come from {SPEC.source} (bc-LSTM/data), the corpus from CMU MultiComp.
"""


def parts(
    root: Path, fault: folder.Tell = folder.refuse, note: folder.Tell = folder.ignore
) -> dict[str, Iterator[Item]]:
    """The items of each file that is there, read as they are asked for."""
    folder.present(root, TREE)
    found = {part: root / f'{part}.npz' for part in ('train', 'test')}
    if not any(path.is_file() for path in found.values()):
        raise folder.missing(root, 'neither train.npz nor test.npz was found', TREE)
    for path in found.values():
        if not path.is_file():
            note(f'{path}: absent')
    return {part: _items(part, path, fault) for part, path in found.items() if path.is_file()}


def _items(part: str, path: Path, fault: folder.Tell) -> Iterator[Item]:
    try:
        found = folder.arrays(path, _ARRAYS)
        videos = folder.strings(path, found, 'dialog_name')
        turns = folder.strings(path, found, 'utt_id')
        _check_sizes(path, found, len(videos), len(turns))
    except ValueError as error:
        fault(str(error))
        return
    _check_values(path, found, turns, fault)
    bounds = found['dialog_offsets']
    for video, (start, stop) in zip(videos, pairwise(bounds.tolist()), strict=True):
        rows = slice(start, stop)
        yield Item(
            id=video,
            group=video,
            part=part,
            streams={name: found[array][rows].astype(np.float32)
                     for name, array in _STREAMS.items()},
            labels={'sentiment': found['sentiment'][rows, None].astype(np.float32),
                    'polarity': found['label2'][rows].astype(np.int32)},
            speakers=np.zeros(stop - start, np.int32),
            turns=tuple(turns[rows]),
        )


def _check_sizes(path: Path, found: dict[str, np.ndarray], videos: int, turns: int) -> None:
    folder.bounds(path, 'dialog_offsets', found['dialog_offsets'], turns)
    expected: dict[str, tuple[int, ...]] = {
        array: (turns, SPEC.stream(name).width) for name, array in _STREAMS.items()}
    expected |= {'label2': (turns,), 'sentiment': (turns,), 'dialog_offsets': (videos + 1,)}
    for array, shape in expected.items():
        if found[array].shape != shape:
            raise ValueError(f'{path}: array {array}: found shape {found[array].shape}, '
                             f'expected {shape}')


def _check_values(
    path: Path, found: dict[str, np.ndarray], turns: list[str], fault: folder.Tell
) -> None:
    wrong = {array: ~np.isfinite(found[array]).all(axis=1) for array in _STREAMS.values()}
    wrong['sentiment'] = ~(np.abs(found['sentiment']) <= 3)
    wrong['label2'] = ~np.isin(found['label2'], (0, 1))
    expected = {'sentiment': 'a number from -3 to 3', 'label2': '0 or 1'}
    for array, rows in wrong.items():
        for row in np.flatnonzero(rows):
            value = found[array][row]
            fault(f'{path}: array {array}: row {row} ({turns[row]}): '
                  f'found {value if np.ndim(value) == 0 else "NaN or infinity"}, '
                  f'expected {expected.get(array, "finite numbers")}')

"""MELD as text: the three csv files of its owners, and a sentence embedding of every row.

An item is a dialogue. Dialogue numbers repeat across the parts, so that ids carry the part. Rows
are joined to the embeddings by their order in the csv, then sorted by dialogue and utterance.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jmer.data import folder
from jmer.data.corpus import Item, Spec, StreamSpec, Target

EMOTIONS = ('neutral', 'surprise', 'fear', 'sadness', 'joy', 'disgust', 'anger')
SENTIMENTS = ('neutral', 'positive', 'negative')
PARTS = ('train', 'dev', 'test')
TEXT_FILE = 'minilm_l6_384.npz'

SPEC = Spec(
    name='meld',
    version='1.0.0',
    layout='dialogue',
    streams=(StreamSpec('text', 384, about='all-MiniLM-L6-v2 embedding, one vector an utterance'),),
    targets=(Target('emotion', 'class', EMOTIONS), Target('sentiment', 'class', SENTIMENTS)),
    licence='GPL-3.0 (annotations); the clips belong to the makers of Friends',
    citation='S. Poria, D. Hazarika, N. Majumder, G. Naik, E. Cambria and R. Mihalcea. MELD: A '
             'Multimodal Multi-Party Dataset for Emotion Recognition in Conversations. ACL 2019.',
    source='https://github.com/declare-lab/MELD',
)

ATTRIBUTES = ('speakers',)

_COLUMNS = ('Speaker', 'Emotion', 'Sentiment', 'Dialogue_ID', 'Utterance_ID')

TREE = f"""
    <folder>/train_sent_emo.csv       9989 utterances
    <folder>/dev_sent_emo.csv         1109
    <folder>/test_sent_emo.csv        2610
    <folder>/{TEXT_FILE}        arrays train, dev, test: one row of 384 for each row of the csv
The csv files come from {SPEC.source} (data/MELD); the embeddings are those of all-MiniLM-L6-v2.
"""


class _Turn(NamedTuple):
    """A row of the csv; rows sort by dialogue and utterance. row: from 0, without the header."""

    dialogue: int
    utterance: int
    row: int
    speaker: str
    emotion: int
    sentiment: int


def parts(
    root: Path, fault: folder.Tell = folder.refuse, note: folder.Tell = folder.ignore
) -> dict[str, Iterator[Item]]:
    """The items of each csv file that is there, read as they are asked for."""
    folder.present(root, TREE)
    tables = {part: root / f'{part}_sent_emo.csv' for part in PARTS}
    found = {part: path for part, path in tables.items() if path.is_file()}
    if not found:
        raise folder.missing(root, 'no <part>_sent_emo.csv was found', TREE)
    if not (root / TEXT_FILE).is_file():
        raise folder.missing(root, f'{TEXT_FILE} was not found; there is no other text stream', TREE)
    for part in PARTS:
        if part not in found:
            note(f'{tables[part]}: absent')
    return {part: _items(part, path, root / TEXT_FILE, fault) for part, path in found.items()}


def _items(part: str, path: Path, vectors: Path, fault: folder.Tell) -> Iterator[Item]:
    try:
        turns, rows = _turns(path, fault)
        text = _text(vectors, part, rows, path, fault)
    except ValueError as error:
        fault(str(error))
        return
    dialogues: dict[int, list[_Turn]] = {}
    for turn in turns:
        dialogues.setdefault(turn.dialogue, []).append(turn)
    for number, dialogue in dialogues.items():
        names = list(dict.fromkeys(turn.speaker for turn in dialogue))
        name = f'{part}-dia{number:04d}'
        yield Item(
            id=name,
            group=name,
            part=part,
            streams={'text': text[[turn.row for turn in dialogue]]},
            labels={'emotion': np.array([turn.emotion for turn in dialogue], np.int32),
                    'sentiment': np.array([turn.sentiment for turn in dialogue], np.int32)},
            speakers=np.array([names.index(turn.speaker) for turn in dialogue], np.int32),
            turns=tuple(f'dia{turn.dialogue}_utt{turn.utterance}' for turn in dialogue),
            attributes={'speakers': ' | '.join(names)},
        )


def _turns(path: Path, fault: folder.Tell) -> tuple[list[_Turn], int]:
    """The turns of a csv file, sorted, and the number of its rows."""
    turns: dict[tuple[int, int], _Turn] = {}
    row = -1
    for row, (line, fields) in enumerate(folder.table(path, _COLUMNS, folder.refuse)):
        place = f'{path}: line {line}'
        dialogue = _index(fields, 'Dialogue_ID', place, fault)
        utterance = _index(fields, 'Utterance_ID', place, fault)
        if (dialogue, utterance) in turns:
            fault(f'{place}: a second row for Dialogue_ID {dialogue}, Utterance_ID {utterance}')
        elif dialogue >= 0 and utterance >= 0:
            emotion = _code(fields, 'Emotion', EMOTIONS, place, fault)
            sentiment = _code(fields, 'Sentiment', SENTIMENTS, place, fault)
            turns[dialogue, utterance] = _Turn(
                dialogue, utterance, row, fields['Speaker'], emotion, sentiment)
    return sorted(turns.values()), row + 1


def _index(fields, column: str, place: str, fault: folder.Tell) -> int:
    if fields[column].isdecimal():
        return int(fields[column])
    fault(f'{place}: column {column}: found {fields[column]!r}, expected a number from 0')
    return -1


def _code(fields, column: str, names: tuple[str, ...], place: str, fault: folder.Tell) -> int:
    label = fields[column].lower()
    if label in names:
        return names.index(label)
    fault(f'{place}: column {column}: found {fields[column]!r}, expected one of {", ".join(names)}')
    return -1


def _text(
    path: Path, part: str, rows: int, table: Path, fault: folder.Tell
) -> Float[np.ndarray, 'rows 384']:
    text = folder.arrays(path, (part,))[part]
    if text.shape != (rows, 384):
        raise ValueError(f'{path}: array {part}: found shape {text.shape}, expected '
                         f'({rows}, 384), since {table.name} has {rows} rows')
    for row in np.flatnonzero(~np.isfinite(text).all(axis=1)):
        fault(f'{path}: array {part}: row {row}: found NaN or infinity, expected finite numbers')
    return text.astype(np.float32)

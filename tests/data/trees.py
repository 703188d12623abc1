"""Tiny corpora as their owners distribute them, written by the tests; and where the real ones are."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jmer.data.meld import source as meld_source
from jmer.data.ravdess import source as ravdess_source


def shared(name: str) -> Path:
    """A real corpus under $JMER_DATA, ../shared/data by default; skips the test where it is absent."""
    root = Path(os.environ.get('JMER_DATA') or Path(__file__).parents[3] / 'shared/data') / name
    if not root.is_dir():
        pytest.skip(f'the corpus is not here: {root}')
    return root


CLIPS = (
    '03-01-01-01-01-01-01',  # neutral, actor 1: fold4
    '03-01-05-02-02-01-02',  # angry, strong, dogs, actor 2: fold0
    '03-01-08-01-01-02-24',  # surprised, second time, actor 24: fold3
    '03-01-04-01-02-02-31',  # sad, an actor that no fold knows
)


def tone(seconds: float, rate: int, pitch: float) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


def ravdess(root: Path, features: bool = True) -> Path:
    """Two clips as the owners have them (48 kHz, by actor), two as flac; videos and songs beside them."""
    for number, clip in enumerate(CLIPS):
        rate, suffix = (48_000, 'wav') if number < 2 else (16_000, 'flac')
        folder = root / (f'Actor_{clip[-2:]}' if number < 2 else 'audio')
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            folder / f'{clip}.{suffix}', tone(0.2 + 0.1 * number, rate, 200 + 50 * number), rate
        )
    for other in (
        '01-01-01-01-01-01-01.mp4',
        '02-01-05-02-02-01-02.mp4',
        '03-02-04-01-01-01-02.wav',
        '._03-01-01-01-01-01-01.wav',
        'notes.txt',
    ):
        (root / 'Actor_02' / other).write_bytes(b'not to be opened')
    if features:
        names = np.array([f'01{clip[2:]}' for clip in CLIPS[:3]])
        length = np.array([1, 2, 3], np.int32)
        seq = np.arange(6 * 512, dtype=np.float16).reshape(6, 512) / 512
        np.savez(root / 'whisper_base_5hz.npz', names=names, length=length, seq=seq)
        np.savez(
            root / 'egemaps_v02.npz', names=names[1:], x=np.arange(176, dtype=np.float32).reshape(2, 88)
        )
        units(root / 'labels_au.csv')
    return root


def units(path: Path, columns=ravdess_source.UNITS, clips=CLIPS, **cells) -> None:
    """A table of action units: column k of row r holds r + k / 100, unless `cells` says otherwise."""
    rows = [
        [f'01{clip[2:]}', *(r + k / 100 for k in range(len(columns)))] for r, clip in enumerate(clips)
    ]
    for column, value in cells.items():
        rows[0][1 + columns.index(column)] = value
    _write(path, ['clip', *columns], rows)


def mosi(root: Path, **changes) -> Path:
    """train.npz with videos 'a' (2 utterances) and 'bé' (1), test.npz with 'c' (2). changes: of train.npz."""
    root.mkdir(exist_ok=True)
    train = mosi_arrays({'a': 2, 'bé': 1}, seed=0)
    np.savez(root / 'train.npz', **{name: x for name, x in (train | changes).items() if x is not None})
    np.savez(root / 'test.npz', **mosi_arrays({'c': 2}, seed=1))
    return root


def mosi_arrays(videos: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    rng, n = np.random.default_rng(seed), sum(videos.values())
    arrays = {
        name: rng.standard_normal((n, width)).astype(np.float32)
        for name, width in (('text', 100), ('audio', 73), ('video', 100))
    }
    arrays['sentiment'] = np.linspace(-2, 3, n).astype(np.float32)
    arrays['label2'] = (arrays['sentiment'] >= 0).astype(np.int8)
    arrays['std_split'] = np.array([2] * n, np.int8)
    arrays['dialog_offsets'] = np.cumsum([0, *videos.values()]).astype(np.int32)
    turns = [f'{name}_{k + 1}' for name, count in videos.items() for k in range(count)]
    return arrays | _coded('dialog_name', list(videos)) | _coded('utt_id', turns)


MELD_COLUMNS = ('Sr No.', 'Utterance', 'Speaker', 'Emotion', 'Sentiment', 'Dialogue_ID', 'Utterance_ID')
MELD_ROWS = {
    # In another order than that of the dialogues; an utterance with a line break and a comma.
    'train': [
        (1, 'Oh, \nno.', 'Joey', 'sadness', 'negative', 7, 1),
        (2, 'Hi.', 'Ross', 'neutral', 'neutral', 7, 0),
        (3, 'It\u2019s you!', 'Ross', 'Surprise', 'positive', 7, 2),
        (4, 'Go.', 'Monica', 'anger', 'negative', 0, 0),
    ],
    'dev': [(1, 'Yes!', 'Joey', 'joy', 'positive', 0, 0)],
    'test': [
        (1, 'Eek.', 'Phoebe', 'fear', 'negative', 0, 0),
        (2, 'Yuck.', 'Ross', 'disgust', 'negative', 0, 1),
    ],
}


def meld(root: Path, columns=MELD_COLUMNS, **rows) -> Path:
    """Three csv files with a byte order mark, and embeddings: row r of a part is r everywhere."""
    root.mkdir(exist_ok=True)
    for part, found in (MELD_ROWS | rows).items():
        kept = [MELD_COLUMNS.index(column) for column in columns]
        _write(root / f'{part}_sent_emo.csv', columns, [[row[k] for k in kept] for row in found])
    embeddings = {
        part: np.repeat(np.arange(len(found), dtype=np.float16)[:, None], 384, axis=1)
        for part, found in MELD_ROWS.items()
    }
    np.savez(root / meld_source.TEXT_FILE, **embeddings)
    return root


def _write(path: Path, header, rows) -> None:
    with path.open('w', encoding='utf-8-sig', newline='') as file:
        csv.writer(file).writerows([header, *rows])


EMODB_CLIPS = (
    '03a01Wa',  # anger, a man: fold0
    '08b10Lb',  # boredom, a woman: fold1
    '16a07Na',  # neutral: fold4
    '12b02Tc',  # sadness: fold4
)
EMODB_COLUMNS = ('file', 'speaker', 'emotion', 'complete', 'recognised_pct')
EMODB_ROWS = (
    ('03a01Wa.flac', '03', 'anger', '1', '95.00'),
    ('08b10Lb.flac', '08', 'boredom', '0', '100.00'),
    ('16a07Na.flac', '16', 'neutral', '0', ''),
)


def emodb(root: Path, folder: str = 'audio', labels: bool = True) -> Path:
    """Four clips, two as wav and two as flac, and a table that lacks one; uncut ones in a folder not to be read."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(EMODB_CLIPS):
        suffix = 'wav' if number < 2 else 'flac'
        soundfile.write(root / folder / f'{clip}.{suffix}', tone(0.2 + 0.1 * number, 16_000, 200 + 50 * number), 16_000)
    (root / 'audio_full').mkdir(exist_ok=True)
    for other in ('audio_full/03a01Wa.wav', 'audio_full/09a01Fa.wav', f'{folder}/silence.wav'):
        (root / other).write_bytes(b'not to be opened')
    if labels:
        emodb_labels(root)
    return root


def emodb_labels(root: Path, columns=EMODB_COLUMNS, rows=EMODB_ROWS) -> None:
    _write(root / 'labels.csv', columns, rows)


EMORYNLP_PARTS = {
    # scenes: turns of (speaker, words, label)
    'train': {
        '1_2_1': [('Ross', [2, 3, 3], 0), ('Joey', [4, 1], 3), ('Ross', [2], 6)],
        '1_2_10': [('#ALL#', [5, 2, 4], 1)],
    },
    'valid': {'2_1_3': [('Zoë', [3, 9], 2)]},
    'test': {'1_3_1': [('Joey', [0, 9], 4), ('Monica', [3, 2, 3], 5)]},
}


def emorynlp(root: Path, **changes) -> Path:
    """train, valid and test.npz of EMORYNLP_PARTS. changes: of train.npz, None where an array is left out."""
    root.mkdir(exist_ok=True)
    for part in EMORYNLP_PARTS:
        arrays = emorynlp_arrays(part) | (changes if part == 'train' else {})
        np.savez(root / f'{part}.npz', **{name: x for name, x in arrays.items() if x is not None})
    return root


def emorynlp_arrays(part: str) -> dict[str, np.ndarray]:
    scenes = EMORYNLP_PARTS[part]
    turns = [turn for scene in scenes.values() for turn in scene]
    arrays = {
        'label': np.array([label for _, _, label in turns], np.int8),
        'tokens': np.concatenate([words for _, words, _ in turns]).astype(np.uint16),
        'token_offsets': np.cumsum([0, *(len(words) for _, words, _ in turns)]).astype(np.int32),
        'dialog_offsets': np.cumsum([0, *map(len, scenes.values())]).astype(np.int32),
    }
    return arrays | _coded('dialog_name', list(scenes)) | _coded('speaker', [speaker for speaker, _, _ in turns])


def _coded(name: str, strings: list[str]) -> dict[str, np.ndarray]:
    """Strings as bytes and offsets."""
    coded = [string.encode() for string in strings]
    return {
        f'{name}_bytes': np.frombuffer(b''.join(coded), np.uint8),
        f'{name}_offsets': np.cumsum([0, *map(len, coded)]).astype(np.int32),
    }

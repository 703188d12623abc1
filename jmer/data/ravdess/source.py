"""RAVDESS speech, read from the folder as its owners distribute it.

Every clip is called MM-VC-EE-II-SS-RR-AA (modality, channel, emotion, intensity, statement,
repetition, actor) and all labels are taken from that name. Only sound of speech is an item:
modality 03, channel 01; videos and songs may lie in the same folder. Features computed by others
join by the fields after the modality, since they were computed from videos (01-01-...): a file of
them that is absent, or a clip absent from the file, means that the stream is absent.

The parts are the subject-wise folds of Luna-Jimenez et al. (Applied Sciences 12(1):327, 2021).

Two clips of actor 07, 03-01-03-01-02-01-07 and 03-01-03-01-02-02-07, hold the same sound in the
original. Both stay, as in the published protocols; they can never stand on two sides, since the
actor cannot.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jmer.data import audio, folder
from jmer.data.corpus import Item, Spec, StreamSpec, Target

EMOTIONS = ('neutral', 'calm', 'happy', 'sad', 'angry', 'fearful', 'disgust', 'surprised')
INTENSITIES = ('normal', 'strong')
STATEMENTS = ('Kids are talking by the door', 'Dogs are sitting by the door')
FOLDS = (
    (2, 5, 14, 15, 16),
    (3, 6, 7, 13, 18),
    (10, 11, 12, 19, 20),
    (8, 17, 21, 23, 24),
    (1, 4, 9, 22),
)
UNITS = (
    *(f'AU{n:02d}_r' for n in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)),
    *(f'AU{n:02d}_c' for n in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45)),
)
"""Action units as OpenFace names them: 17 intensities (_r, 0 to 5), 18 presences (_c, 0 to 1)."""

UNITS_FILE = 'labels_au.csv'
WHISPER_FILE = 'whisper_base_5hz.npz'
EGEMAPS_FILE = 'egemaps_v02.npz'
POSTERIORS_FILE = 'published_posteriors.npz'

PUBLISHED = {'xlsr': 'wav2vec_xlsr', 'au_lstm': 'au_bilstm', 'au_mlp': 'au_mlp80'}
"""Streams of published decisions, and the arrays that hold them."""

SPEC = Spec(
    name='ravdess',
    version='1.1.0',
    layout='utterance',
    streams=(
        StreamSpec('audio', audio.BANDS, audio.FRAME_RATE, 'log-mel, see jmer.data.audio'),
        StreamSpec('whisper', 512, 5.0, 'Whisper base encoder, averaged to 5 Hz'),
        StreamSpec('egemaps', 88, 0.0, 'openSMILE eGeMAPSv02 functionals'),
        StreamSpec('vision', len(UNITS), 0.0, 'OpenFace 2 action units, averaged over the video'),
        StreamSpec('xlsr', 8, 0.0, 'published scores of a fine-tuned wav2vec 2.0 XLSR, out of fold'),
        StreamSpec('au_lstm', 8, 0.0, 'published scores of an LSTM over action units, out of fold'),
        StreamSpec('au_mlp', 8, 0.0, 'published log probabilities of an MLP over action units, out of fold'),
    ),
    targets=(Target('emotion', 'class', EMOTIONS),),
    licence='CC BY-NC-SA 4.0',
    citation='S. R. Livingstone and F. A. Russo. The Ryerson Audio-Visual Database of Emotional '
             'Speech and Song (RAVDESS). PLoS ONE 13(5): e0196391, 2018.',
    source='https://zenodo.org/records/1188976',
)

ATTRIBUTES = ('speaker', 'sex', 'intensity', 'statement', 'repetition')

TREE = f"""
    <folder>/Actor_01/03-01-01-01-01-01-01.wav   speech of all actors: wav or flac, any rate, any nesting
    <folder>/Actor_01/...
    <folder>/{UNITS_FILE}                       optional: clip, {UNITS[0]} ... {UNITS[-1]} (OpenFace 2)
    <folder>/{WHISPER_FILE}                optional: names, length, seq [sum(length) 512]
    <folder>/{EGEMAPS_FILE}                    optional: names, x [n 88]
    <folder>/{POSTERIORS_FILE}          optional: names, {', '.join(PUBLISHED.values())} [n 8]
The sound comes as Audio_Speech_Actors_01-24.zip from {SPEC.source} (CC BY-NC-SA 4.0).
"""


class Clip(NamedTuple):
    """What the name of a sound file says. key: the name without its modality; features join by it."""

    path: Path
    key: str
    emotion: int
    intensity: int
    statement: int
    repetition: int
    actor: int

    @property
    def part(self) -> str:
        return next((f'fold{k}' for k, fold in enumerate(FOLDS) if self.actor in fold), 'other')


def parts(
    root: Path, fault: folder.Tell = folder.refuse, note: folder.Tell = folder.ignore
) -> dict[str, Iterator[Item]]:
    """The items of each part that has any, read as they are asked for."""
    folder.present(root, TREE)
    clips = _clips(root, fault, note)
    features = {}
    for name, file, read in (('whisper', WHISPER_FILE, _whisper),
                             ('egemaps', EGEMAPS_FILE, _egemaps),
                             ('vision', UNITS_FILE, _units)):
        features[name] = _optional(read, root / file, fault, note)
        _compare(root / file, features[name], {clip.key for clip in clips}, note)
    for name, array in PUBLISHED.items():
        features[name] = _optional(partial(_scores, array), root / POSTERIORS_FILE, fault, note)
    return {part: _items([clip for clip in clips if clip.part == part], features, fault)
            for part in sorted({clip.part for clip in clips})}


def _items(
    clips: list[Clip], features: Mapping[str, Mapping[str, np.ndarray]], fault: folder.Tell
) -> Iterator[Item]:
    for clip in clips:
        streams = {name: rows[clip.key] for name, rows in features.items() if clip.key in rows}
        try:
            streams['audio'] = audio.log_mel(audio.read(clip.path))
        except ValueError as error:
            fault(str(error))
        yield Item(
            id=f'03-{clip.key}',
            group=f'{clip.actor:02d}',
            part=clip.part,
            streams=streams,
            labels={'emotion': np.array(clip.emotion, np.int32)},
            attributes={
                'speaker': f'{clip.actor:02d}',
                'sex': 'male' if clip.actor % 2 else 'female',
                'intensity': INTENSITIES[clip.intensity],
                'statement': STATEMENTS[clip.statement],
                'repetition': str(clip.repetition),
            },
        )


def _clips(root: Path, fault: folder.Tell, note: folder.Tell) -> list[Clip]:
    """The speech clips under a folder, by name; of two files of one name the first path counts."""
    clips: dict[str, Clip] = {}
    for path in folder.files(root):
        match = re.fullmatch(r'03-(01((?:-\d\d){5}))\.(?:wav|flac)', path.name, re.IGNORECASE)
        if not match:
            continue
        key, codes = match[1], [int(code) for code in match[2].split('-')[1:]]
        if key in clips:
            note(f'{path}: ignored, the same clip was found as {clips[key].path}')
        elif _known(path, codes, fault):
            emotion, intensity, statement, repetition, actor = codes
            clips[key] = Clip(
                path, key, emotion - 1, intensity - 1, statement - 1, repetition, actor)
    if not clips:
        raise folder.missing(root, 'no speech clips (03-01-*.wav or .flac) were found', TREE)
    return [clips[key] for key in sorted(clips)]


def _known(path: Path, codes: list[int], fault: folder.Tell) -> bool:
    fields = (('emotion', len(EMOTIONS)), ('intensity', len(INTENSITIES)),
              ('statement', len(STATEMENTS)), ('repetition', 2), ('actor', 99))
    for (field, count), code in zip(fields, codes, strict=True):
        if not 1 <= code <= count:
            fault(f'{path}: {field} in the file name: found {code:02d}, expected 01 to {count:02d}')
            return False
    return True


def _optional(read, path: Path, fault: folder.Tell, note: folder.Tell) -> dict[str, np.ndarray]:
    """What an optional file holds, by clip; nothing where it is absent or (which is told) unusable."""
    if not path.is_file():
        note(f'{path}: absent')
        return {}
    try:
        return read(path, fault)
    except ValueError as error:
        fault(str(error))
        return {}


def _compare(
    path: Path, rows: Mapping[str, object], keys: set[str], note: folder.Tell
) -> None:
    for complaint, lacking in (('it lacks clips that have a sound file', keys - set(rows)),
                               ('it holds clips that have no sound file', set(rows) - keys)):
        if rows and lacking:
            some = ', '.join(sorted(lacking)[:3]) + (', ...' if len(lacking) > 3 else '')
            note(f'{path}: {complaint}: {len(lacking)} ({some})')


def _units(path: Path, fault: folder.Tell) -> dict[str, np.ndarray]:
    rows: dict[str, np.ndarray] = {}
    for line, fields in folder.table(path, ('clip', *UNITS), fault):
        values = [_number(fields[unit]) for unit in UNITS]
        for unit, value in zip(UNITS, values, strict=True):
            if not np.isfinite(value):
                fault(f'{path}: line {line}: column {unit}: found {fields[unit]!r}, '
                      'expected a number')
        _add(rows, fields['clip'], np.array([values], np.float32), f'{path}: line {line}', fault)
    return rows


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float('nan')


def _egemaps(path: Path, fault: folder.Tell) -> dict[str, np.ndarray]:
    found = folder.arrays(path, ('names', 'x'))
    _expect(path, 'x', found['x'].shape, (len(found['names']), 88))
    rows: dict[str, np.ndarray] = {}
    for name, x in zip(found['names'], found['x'], strict=True):
        _add(rows, str(name), x[None].astype(np.float32), path, fault)
    return rows


def _scores(array: str, path: Path, fault: folder.Tell) -> dict[str, np.ndarray]:
    """Published decisions, as scores before softmax; of probabilities these are the logarithms."""
    found = folder.arrays(path, ('names', array))
    names, x = found['names'], found[array].astype(np.float32)
    _expect(path, array, x.shape, (len(names), len(EMOTIONS)))
    if len(x) and x.min() >= 0 and np.allclose(x.sum(-1), 1, atol=1e-3):
        x = np.log(np.maximum(x, 1e-6))
    rows: dict[str, np.ndarray] = {}
    for name, scores in zip(names, x, strict=True):
        _add(rows, str(name), scores[None], path, fault)
    return rows


def _whisper(path: Path, fault: folder.Tell) -> dict[str, np.ndarray]:
    found = folder.arrays(path, ('names', 'length', 'seq'))
    names, length, seq = found['names'], found['length'], found['seq']
    _expect(path, 'length', length.shape, names.shape)
    _expect(path, 'seq', seq.shape, (int(length.sum()), 512))
    rows: dict[str, np.ndarray] = {}
    for name, x in zip(names, np.split(seq, np.cumsum(length)[:-1]), strict=True):
        if len(x):
            _add(rows, str(name), x.astype(np.float32), path, fault)
    return rows


def _expect(path: Path, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ValueError(f'{path}: array {name}: found shape {found}, expected {expected}')


def _add(
    rows: dict[str, np.ndarray], name: str, x: np.ndarray, place: object, fault: folder.Tell
) -> None:
    """Files a clip's features under its name without the modality, if all is in order."""
    name = name.rsplit('.', 1)[0]
    key = name[3:]
    if not re.fullmatch(r'\d\d(-\d\d){6}', name):
        fault(f'{place}: clip: found {name!r}, expected a name such as 01-01-01-01-01-01-01')
    elif key in rows:
        fault(f'{place}: a second row for the clip {name}')
    elif not np.isfinite(x).all():
        fault(f'{place}: {name}: NaN or infinite at {np.argwhere(~np.isfinite(x))[0].tolist()}')
    else:
        rows[key] = x

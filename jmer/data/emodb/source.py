"""EmoDB, the Berlin database of emotional speech, read from the folder as its owners distribute it.

Every file is called SSTTTEV (speaker, sentence, emotion, take) and all labels are taken from that name. The
sound lies in one folder, 'wav' (the owners') or 'audio' (a copy of which every utterance is cut after two
seconds); no other folder is looked into. A set of uncut originals of some emotions only, such as 'audio_full',
must never join it: the length of a clip would give the emotion away.

The parts are five folds of two speakers, a woman and a man each, of 99 to 113 utterances, paired so that every
fold holds all seven emotions.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jmer.data import audio, folder
from jmer.data.corpus import Item, Spec, StreamSpec, Target

EMOTIONS = ('anger', 'boredom', 'disgust', 'fear', 'happiness', 'neutral', 'sadness')
LETTERS = {'W': 'anger', 'L': 'boredom', 'E': 'disgust', 'A': 'fear', 'F': 'happiness', 'N': 'neutral', 'T': 'sadness'}
"""The letter of an emotion is the first of its German name."""
WOMEN = ('08', '09', '13', '14', '16')
MEN = ('03', '10', '11', '12', '15')
FOLDS = (('13', '03'), ('08', '11'), ('09', '15'), ('14', '10'), ('16', '12'))
SENTENCES = ('a01', 'a02', 'a04', 'a05', 'a07', 'b01', 'b02', 'b03', 'b09', 'b10')

FOLDERS = ('wav', 'audio')
LABELS_FILE = 'labels.csv'

SPEC = Spec(
    name='emodb',
    version='1.0.0',
    layout='utterance',
    streams=(
        StreamSpec('audio', audio.BANDS, audio.FRAME_RATE, 'log-mel, see jmer.data.audio'),
        StreamSpec('mfcc', audio.CEPSTRA, audio.FRAME_RATE, 'cepstra of the log-mel, see jmer.data.audio'),
    ),
    targets=(Target('emotion', 'class', EMOTIONS),),
    licence='free for research; see the owners\' site',
    citation='F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier and B. Weiss. A Database of German Emotional '
             'Speech. Interspeech 2005.',
    source='http://emodb.bilderbar.info',
)

ATTRIBUTES = ('speaker', 'sex', 'sentence', 'take', 'complete', 'recognised_pct')
"""complete: 'yes' or 'no' (cut); recognised_pct: of 20 listeners. Empty where no LABELS_FILE tells."""

TREE = f"""
    <folder>/wav/03a01Fa.wav     535 utterances, wav or flac; the folder may be called audio instead
    <folder>/wav/...
    <folder>/{LABELS_FILE}          optional: file, emotion, complete (0 or 1), recognised_pct
The sound comes from {SPEC.source}.
"""

_COLUMNS = ('file', 'emotion', 'complete', 'recognised_pct')


class Clip(NamedTuple):
    """What the name of a sound file says."""

    path: Path
    speaker: str
    sentence: str
    emotion: str
    take: str

    @property
    def part(self) -> str:
        return next(f'fold{k}' for k, fold in enumerate(FOLDS) if self.speaker in fold)


def parts(
    root: Path, fault: folder.Tell = folder.refuse, note: folder.Tell = folder.ignore
) -> dict[str, Iterator[Item]]:
    """The items of each part that has any, read as they are asked for."""
    folder.present(root, TREE)
    clips = _clips(root, fault, note)
    known = _labels(root / LABELS_FILE, clips, fault, note)
    return {part: _items([clip for clip in clips.values() if clip.part == part], known, fault)
            for part in sorted({clip.part for clip in clips.values()})}


def _items(clips: list[Clip], known: Mapping[str, dict[str, str]], fault: folder.Tell) -> Iterator[Item]:
    for clip in clips:
        streams: dict[str, np.ndarray] = {}
        try:
            streams = audio.streams(audio.read(clip.path))
        except ValueError as error:
            fault(str(error))
        yield Item(
            id=clip.path.stem,
            group=clip.speaker,
            part=clip.part,
            streams=streams,
            labels={'emotion': np.array(EMOTIONS.index(clip.emotion), np.int32)},
            attributes={
                'speaker': clip.speaker,
                'sex': 'female' if clip.speaker in WOMEN else 'male',
                'sentence': clip.sentence,
                'take': clip.take,
                'complete': '',
                'recognised_pct': '',
            } | known.get(clip.path.stem, {}),
        )


def _clips(root: Path, fault: folder.Tell, note: folder.Tell) -> dict[str, Clip]:
    """The clips of the folder of sound, by name; of two files of one name the first counts."""
    found = [root / name for name in FOLDERS if (root / name).is_dir()]
    if len(found) > 1:
        raise folder.missing(root, f'one folder of sound is expected, and found were {" and ".join(FOLDERS)}', TREE)
    clips: dict[str, Clip] = {}
    for path in folder.files(found[0]) if found else ():
        match = re.fullmatch(r'(\d\d)([a-z]\d\d)([A-Z])([a-z])\.(?:wav|flac)', path.name)
        if not match:
            continue
        if path.stem in clips:
            note(f'{path}: ignored, the same clip was found as {clips[path.stem].path}')
        elif _known(path, match, fault):
            speaker, sentence, letter, take = match.groups()
            clips[path.stem] = Clip(path, speaker, sentence, LETTERS[letter], take)
    if not clips:
        raise folder.missing(root, 'no clips (wav/03a01Fa.wav, ...) were found', TREE)
    return clips


def _known(path: Path, match: re.Match[str], fault: folder.Tell) -> bool:
    fields = (('speaker', sorted(WOMEN + MEN)), ('sentence', SENTENCES), ('emotion', LETTERS))
    for (field, known), code in zip(fields, match.groups(), strict=False):
        if code not in known:
            fault(f'{path}: {field} in the file name: found {code}, expected one of {", ".join(known)}')
            return False
    return True


def _labels(
    path: Path, clips: Mapping[str, Clip], fault: folder.Tell, note: folder.Tell
) -> dict[str, dict[str, str]]:
    """What a table of labels says besides, by clip; nothing where it is absent or (which is told) unusable."""
    if not path.is_file():
        note(f'{path}: absent')
        return {}
    rows: dict[str, dict[str, str]] = {}
    try:
        for line, fields in folder.table(path, _COLUMNS, fault):
            name = fields['file'].rsplit('.', 1)[0]
            if name in rows:
                fault(f'{path}: line {line}: a second row for the clip {name}')
            elif _agrees(fields, clips.get(name), f'{path}: line {line}', fault):
                rows[name] = {'complete': ('no', 'yes')[int(fields['complete'])],
                              'recognised_pct': fields['recognised_pct']}
    except ValueError as error:
        fault(str(error))
        return {}
    for complaint, lacking in (('it lacks clips that have a sound file', set(clips) - set(rows)),
                               ('it holds clips that have no sound file', set(rows) - set(clips))):
        if lacking:
            some = ', '.join(sorted(lacking)[:3]) + (', ...' if len(lacking) > 3 else '')
            note(f'{path}: {complaint}: {len(lacking)} ({some})')
    return rows


def _agrees(fields: Mapping[str, str], clip: Clip | None, place: str, fault: folder.Tell) -> bool:
    """Whether a row holds what it should; the emotion has to be that of the name."""
    expected = {
        'emotion': (clip is None or fields['emotion'] == clip.emotion, clip and f'{clip.emotion}, as in the name'),
        'complete': (fields['complete'] in ('0', '1'), '0 or 1'),
        'recognised_pct': (_is_percentage(fields['recognised_pct']), 'a number from 0 to 100, or nothing'),
    }
    for column, (agrees, wanted) in expected.items():
        if not agrees:
            fault(f'{place}: column {column}: found {fields[column]!r}, expected {wanted}')
            return False
    return True


def _is_percentage(text: str) -> bool:
    return not text or (bool(re.fullmatch(r'\d+(\.\d*)?', text)) and float(text) <= 100)

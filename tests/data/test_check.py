"""What the check of a corpus finds."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from rich.console import Console

from jmer.data import synthetic
from jmer.data.check import check, show
from jmer.data.corpus import Corpus, Item, Spec, StreamSpec, Target
from tests.data import trees

SPEC = Spec(
    name='tiny',
    version='1.0.0',
    layout='utterance',
    streams=(StreamSpec('audio', 3), StreamSpec('vision', 2)),
    targets=(
        Target('emotion', 'class', ('sad', 'glad')),
        Target('arousal', 'regression', ('arousal',)),
    ),
)


def item(number, part='train', group=None, label=0, **fields):
    x = np.random.default_rng(number).standard_normal((4, 3)).astype(np.float32)
    found = Item(
        id=f'item{number}',
        group=group or f'speaker{number}',
        part=part,
        streams={'audio': x},
        labels={'emotion': np.array(label, np.int32)},
    )
    return found._replace(**fields)


def report(*items, spec=SPEC):
    return check(Corpus(spec, items))


def test_a_sound_corpus():
    found = report(item(0), item(1, label=1), item(2, 'test'), item(3, 'test', label=1))
    assert found.problems == ()
    assert found.notes == ()
    assert (found.items, found.turns, found.parts) == (4, 4, {'train': 2, 'test': 2})
    assert found.groups == {f'speaker{k}': 1 for k in range(4)}
    assert found.labels['emotion'] == {'test': {'sad': 1, 'glad': 1}, 'train': {'sad': 1, 'glad': 1}}
    assert found.speakers['emotion']['speaker1'] == {'sad': 0, 'glad': 1}
    assert found.streams['audio'] == (4, (4, 4, 4), ())
    assert found.streams['vision'] == (0, (0, 0, 0), ())


def test_all_problems_are_told_at_once():
    nan = np.full((2, 3), np.nan, np.float32)
    found = report(
        item(0),
        item(0),
        item(1, streams={'audio': nan}),
        item(2, streams={'audio': np.zeros((2, 5), np.float32)}),
        item(3, label=7),
        item(4, streams={}),
        item(5, 'train', 'anna'),
        item(6, 'test', 'anna'),
    )
    expected = [
        "two items are called 'item0'",
        'item1: stream audio: found nan',
        'item2: stream audio: found shape (2, 5)',
        'item3: label emotion: found',
        'item4: has no stream at all',
        'in test and train alike: 1 group: anna',
    ]
    assert len(found.problems) == len(expected)
    for message, words in zip(found.problems, expected, strict=True):
        assert words in message
    assert found.labels['emotion']['train']['(unknown: 7)'] == 1


def test_speakers_in_several_parts_are_noted():
    found = report(
        item(0, attributes={'speaker': 'eve'}),
        item(1, attributes={'speaker': 'eve'}, label=1),
        item(2, 'test', attributes={'speaker': 'eve'}),
    )
    assert found.problems == ()
    assert 'in test and train alike: 1 speaker: eve' in found.notes
    assert 'part test: no turn has the emotion glad' in found.notes
    assert found.speakers['emotion'] == {'eve': {'sad': 2, 'glad': 1}}


def test_constant_columns():
    def with_constant(number):
        x = item(number).streams['audio']
        x[:, 1] = 5
        return item(number, streams={'audio': x})

    found = report(with_constant(0), with_constant(1))
    assert found.streams['audio'].constant == (1,)
    assert 'stream audio: 1 columns never change: 1' in found.notes
    assert report(item(0)).streams['audio'].constant == ()


def test_copies_of_an_item():
    x = item(0).streams
    found = report(item(0), item(1, streams=x), item(2), item(3, 'test', streams=x))
    assert any(
        'stream audio: 3 turns share their features with another one (1 sets, 1 of them across parts), '
        'as item0 (train) = item1 (train)' in note
        for note in found.notes
    )


def test_labels_of_every_kind():
    targets = (
        Target('tags', 'multilabel', ('a', 'b')),
        Target('votes', 'distribution', ('a', 'b')),
        Target('arousal', 'regression', ('arousal',)),
        Target('av', 'regression', ('arousal', 'valence')),
    )
    spec = Spec('tiny', '1.0.0', 'utterance', SPEC.streams, targets)
    labels = {'tags': [1, 1], 'votes': [0.2, 0.8], 'arousal': [-0.5], 'av': [0, 2]}
    labels = {name: np.array(value, np.float32) for name, value in labels.items()}
    found = report(
        item(0, labels=labels),
        item(1, labels={}),
        item(2, labels={name: x * np.nan for name, x in labels.items()}),
        spec=spec,
    )
    train = {
        name: {label: n for label, n in counts['train'].items() if n}
        for name, counts in found.labels.items()
    }
    assert train == {
        'tags': {'a': 1, 'b': 1, '(none)': 2},
        'votes': {'b': 1, '(none)': 2},
        'arousal': {'negative': 1, '(none)': 2},
        'av': {'arousal zero': 1, 'valence positive': 1, '(none)': 2},
    }


def test_missing_turns_are_no_copies():
    spec = Spec('tiny', '1.0.0', 'dialogue', SPEC.streams, SPEC.targets[:1])
    x = np.zeros((3, 3), np.float32)
    x[0] = 1, 2, 3
    dialogue = Item(
        'd',
        'd',
        'train',
        {'audio': x},
        {'emotion': np.array([0, 1, -1])},
        masks={'audio': np.array([True, False, False])},
        speakers=np.zeros(3, np.int32),
        turns=('0', '1', '2'),
    )
    found = report(dialogue, spec=spec)
    assert found.notes == ()
    assert found.turns == 3
    assert found.labels['emotion']['train'] == {'sad': 1, 'glad': 1, '(none)': 1}


def test_ravdess_tells_of_files_that_are_missing(tmp_path):
    root = trees.ravdess(tmp_path)
    (root / 'whisper_base_5hz.npz').unlink()
    (root / 'Actor_01' / '03-01-01-01-01-01-01.wav').unlink()
    shutil.copytree(root / 'Actor_02', root / 'copy')
    found = check('ravdess', root)
    assert found.problems == ()
    assert found.items == 3
    notes = '\n'.join(found.notes)
    assert 'whisper_base_5hz.npz: absent' in notes
    assert 'labels_au.csv: it holds clips that have no sound file: 1 (01-01-01-01-01-01)' in notes
    assert 'egemaps_v02.npz: it lacks clips that have a sound file: 1 (01-04-01-02-02-31)' in notes
    assert 'part fold0: no turn has the emotion neutral, calm, happy, sad, fearful' in notes
    assert re.search('copy/.*03-01-05-02-02-01-02.wav: ignored, the same clip was found as', notes)


def test_ravdess_goes_on_after_a_problem(tmp_path):
    root = trees.ravdess(tmp_path)
    (root / '03-01-09-01-01-01-01.wav').write_bytes(b'')
    (root / '03-01-08-01-01-01-01.wav').write_bytes(b'')
    trees.units(root / 'labels_au.csv', AU12_r='much')
    np.savez(root / 'egemaps_v02.npz', names=np.array(['x']))
    found = check('ravdess', root)
    assert len(found.problems) == 6
    for words in (
        'emotion in the file name: found 09',
        '03-01-08-01-01-01-01.wav: cannot be read as sound',
        'line 2: column AU12_r',
        'NaN or infinite',
        'egemaps_v02.npz: not the npz file',
        'has no stream at all',
    ):
        assert any(words in problem for problem in found.problems), words
    assert found.items == 5
    assert found.streams['vision'].items == 3


def test_meld_goes_on_after_a_problem(tmp_path):
    rows = [
        (1, 'Oh.', 'Joey', 'rage', 'negative', 0, 0),
        (2, 'Oh.', 'Joey', 'joy', 'bad', 0, 1),
        (3, 'Oh.', 'Joey', 'joy', 'positive', 0, 1),
        (4, 'Go.', 'Monica', 'joy', 'positive', 'x', 0),
    ]
    root = trees.meld(tmp_path, train=rows)
    (root / 'dev_sent_emo.csv').write_text('Emotion\n')
    found = check('meld', root)
    for words in (
        "line 2: column Emotion: found 'rage'",
        "line 3: column Sentiment: found 'bad'",
        'line 4: a second row',
        'line 5: column Dialogue_ID',
        'dev_sent_emo.csv: lacks the columns',
    ):
        assert any(words in problem for problem in found.problems), words
    assert len(found.problems) == 5
    assert found.parts == {'train': 1, 'test': 1}
    assert found.labels['emotion']['train']['(none)'] == 1
    assert found.speakers['emotion']['Joey']['joy'] == 1


def test_mosi_video_on_both_sides(tmp_path):
    root = trees.mosi(tmp_path)
    shutil.copy(root / 'train.npz', root / 'test.npz')
    found = check('mosi', root)
    assert any("two items are called 'a'" in problem for problem in found.problems)
    assert 'in test and train alike: 2 groups: a, bé' in found.problems


def test_emodb_goes_on_after_a_problem(tmp_path):
    root = trees.emodb(tmp_path)
    (root / 'audio/03a01Xa.wav').write_bytes(b'')
    (root / 'audio/03a01Ea.wav').write_bytes(b'')
    (root / 'audio/copy').mkdir()
    shutil.copy(root / 'audio/16a07Na.flac', root / 'audio/copy')
    trees.emodb_labels(root, rows=[('03a01Wa.wav', '03', 'fear', '1', ''), ('09a01Fa.wav', '09', 'happiness', '1', '')])
    found = check('emodb', root)
    expected = (
        'labels.csv: line 2: column emotion',
        '03a01Xa.wav: emotion in the file name: found X',
        '03a01Ea.wav: cannot be read as sound',
        '03a01Ea: has no stream at all',
    )
    assert len(found.problems) == len(expected)
    for words in expected:
        assert any(words in problem for problem in found.problems), words
    assert found.items == 5
    notes = '\n'.join(found.notes)
    assert 'it lacks clips that have a sound file: 5 (03a01Ea, 03a01Wa, 08b10Lb, ...)' in notes
    assert 'it holds clips that have no sound file: 1 (09a01Fa)' in notes
    assert re.search('copy/16a07Na.flac: ignored, the same clip was found as', notes)


def test_emorynlp_goes_on_after_a_problem(tmp_path):
    root = trees.emorynlp(tmp_path, label=np.array([0, 9, 6, 1]))
    (root / 'valid.npz').write_bytes(b'')
    (root / 'test.npz').unlink()
    found = check('emorynlp', root)
    assert len(found.problems) == 2
    for words in ('train.npz: array label: row 1: found 9', 'valid.npz: not the npz file'):
        assert any(words in problem for problem in found.problems), words
    assert f'{root / "test.npz"}: absent' in found.notes
    assert found.labels['emotion']['train']['(none)'] == 1
    (root / 'train.npz').write_bytes(b'')
    assert check('emorynlp', root).items == 0


def test_what_cannot_be_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match='the folder is empty'):
        check('meld', tmp_path)
    with pytest.raises(ValueError, match="no corpus is called 'meldd'"):
        check('meldd', tmp_path)
    with pytest.raises(ValueError, match='none was given'):
        check('meld')


def test_toy_is_sound():
    found = check(synthetic.corpus(layout='dialogue', dialogues=(9, 3, 3)))
    assert found.problems == ()
    assert found.parts == {'train': 9, 'validation': 3, 'test': 3}


def test_a_report_is_plain():
    found = report(item(0), item(1))
    assert json.loads(json.dumps(found._asdict()))['parts'] == {'train': 2}


def test_show():
    found = report(
        item(0, group='anna'),
        item(1, 'test', 'anna', streams={'audio': np.full((1, 3), np.inf, np.float32)}),
        *(item(k) for k in range(2, 40)),
    )
    output = io.StringIO()
    show(found, Console(file=output, width=60))
    text = output.getvalue()
    assert 'tiny: 40 items, 40 turns, 39 groups' in text
    assert 'problem: tiny: item1: stream audio: found inf at [0, 0], expected finite numbers\n' in text
    assert '15 others' in text
    assert f'{len(found.problems)} problems, {len(found.notes)} notes' in text

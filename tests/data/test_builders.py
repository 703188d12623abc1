"""The corpora: from the owners' files, through TFDS, back into memory."""

import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile

from jmer.data import audio, text
from jmer.data.corpus import validate
from jmer.data.features import clip
from jmer.data.load import load, names, source
from tests.data import trees

WRITERS = {
    'ravdess': trees.ravdess,
    'mosi': trees.mosi,
    'meld': trees.meld,
    'emodb': trees.emodb,
    'emorynlp': trees.emorynlp,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('JMER_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def same(a, b):
    assert a._replace(streams={}, labels={}, speakers=None) == b._replace(
        streams={}, labels={}, speakers=None
    )
    np.testing.assert_equal(dict(a.streams), dict(b.streams))
    np.testing.assert_equal(dict(a.labels), dict(b.labels))
    np.testing.assert_equal(a.speakers, b.speakers)


@pytest.mark.parametrize('name', WRITERS)
def test_tfds_gives_back_what_the_source_holds(name, tmp_path):
    root = WRITERS[name](tmp_path / 'corpus')
    corpus = load(name, root)
    parts = source(name).parts(root)
    expected = sorted((item for items in parts.values() for item in items), key=lambda item: item.id)
    assert len(corpus.items) == len(expected) > 1
    for item, wanted in zip(corpus.items, expected, strict=True):
        same(item, wanted)
    validate(corpus)


# RAVDESS


def test_ravdess_reads_labels_from_the_name(tmp_path):
    neutral, sad, angry, surprised = load('ravdess', trees.ravdess(tmp_path / 'corpus')).items
    assert [item.id for item in (neutral, angry, surprised, sad)] == list(trees.CLIPS)
    assert [int(item.labels['emotion']) for item in (neutral, sad, angry, surprised)] == [0, 3, 4, 7]
    assert [item.part for item in (neutral, sad, angry, surprised)] == [
        'fold4',
        'other',
        'fold0',
        'fold3',
    ]
    assert [item.group for item in (neutral, sad, angry, surprised)] == ['01', '31', '02', '24']
    assert neutral.attributes == {
        'speaker': '01',
        'sex': 'male',
        'intensity': 'normal',
        'statement': 'Kids are talking by the door',
        'repetition': '1',
    }
    assert angry.attributes == {
        'speaker': '02',
        'sex': 'female',
        'intensity': 'strong',
        'statement': 'Dogs are sitting by the door',
        'repetition': '1',
    }
    assert surprised.attributes['repetition'] == '2'


def test_ravdess_folds_hold_every_actor_once():
    folds = source('ravdess').FOLDS
    assert sorted(actor for fold in folds for actor in fold) == list(range(1, 25))


def test_ravdess_joins_features_by_name(tmp_path):
    neutral, sad, angry, surprised = load('ravdess', trees.ravdess(tmp_path / 'corpus')).items
    seq = np.arange(6 * 512, dtype=np.float16).reshape(6, 512) / 512
    np.testing.assert_array_equal(neutral.streams['whisper'], seq[:1])
    np.testing.assert_array_equal(surprised.streams['whisper'], seq[3:])
    assert set(neutral.streams) == {'audio', 'whisper', 'vision'}  # eGeMAPS lacks this clip
    assert set(angry.streams) == {'audio', 'whisper', 'egemaps', 'vision'}
    assert set(sad.streams) == {'audio', 'vision'}
    np.testing.assert_array_equal(angry.streams['egemaps'], np.arange(88)[None])
    np.testing.assert_allclose(angry.streams['vision'], 1 + np.arange(35)[None] / 100, rtol=1e-6)


def test_ravdess_columns_are_found_by_name(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus')
    units = source('ravdess').UNITS
    trees.units(root / 'labels_au.csv', columns=(*units[::-1], 'AU99_r'))
    neutral = load('ravdess', root).items[0]
    np.testing.assert_allclose(neutral.streams['vision'], np.arange(35)[None, ::-1] / 100, rtol=1e-6)


def test_ravdess_resamples_to_what_16_khz_would_give(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus', features=False)
    direct = trees.tone(0.2, audio.RATE, 200)
    found = load('ravdess', root).items[0].streams['audio']
    expected = audio.log_mel(direct.astype(np.float32))
    assert found.shape == expected.shape == (21, 64)
    np.testing.assert_allclose(found[3:-3, 2:6], expected[3:-3, 2:6], atol=1e-3)  # where the tone is


def test_ravdess_without_features_has_audio_alone(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus', features=False)
    assert {tuple(item.streams) for item in load('ravdess', root).items} == {('audio',)}


def test_ravdess_ignores_a_second_copy_of_a_clip(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus')
    shutil.copytree(root / 'Actor_01', root / 'audio_speech_actors_01-24' / 'Actor_01')
    assert len(load('ravdess', root).items) == len(trees.CLIPS)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('03-01-09-01-01-01-01.wav', 'emotion in the file name: found 09, expected 01 to 08'),
        ('03-01-00-01-01-01-01.wav', 'emotion in the file name: found 00, expected 01 to 08'),
        ('03-01-02-03-01-01-01.wav', 'intensity in the file name: found 03, expected 01 to 02'),
        ('03-01-02-01-03-01-01.wav', 'statement in the file name: found 03, expected 01 to 02'),
    ],
)
def test_ravdess_unknown_code(tmp_path, name, message):
    root = trees.ravdess(tmp_path / 'corpus')
    (root / name).write_bytes(b'')
    with pytest.raises(ValueError, match=f'{name}: {message}'):
        load('ravdess', root)


def test_ravdess_unreadable_sound(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus')
    (root / '03-01-02-01-01-01-02.wav').write_bytes(b'nothing')
    with pytest.raises(ValueError, match=r'03-01-02-01-01-01-02.wav: cannot be read as sound'):
        load('ravdess', root)


def test_ravdess_csv_lacks_columns(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus')
    trees.units(root / 'labels_au.csv', columns=source('ravdess').UNITS[2:])
    with pytest.raises(
        ValueError, match=r'labels_au.csv: lacks the columns AU01_r, AU02_r; found clip'
    ):
        load('ravdess', root)


@pytest.mark.parametrize('value', ['much', '', 'nan', 'inf'])
def test_ravdess_csv_holds_no_number(tmp_path, value):
    root = trees.ravdess(tmp_path / 'corpus')
    trees.units(root / 'labels_au.csv', AU12_r=value)
    with pytest.raises(ValueError, match=rf"labels_au.csv: line 2: column AU12_r: found '{value}'"):
        load('ravdess', root)


def test_ravdess_csv_names_a_clip_twice(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus')
    trees.units(root / 'labels_au.csv', clips=(*trees.CLIPS, trees.CLIPS[0]))
    with pytest.raises(
        ValueError, match=r'labels_au.csv: line 6: a second row for the clip 01-01-01-01-01-01-01'
    ):
        load('ravdess', root)


@pytest.mark.parametrize(
    ('file', 'arrays', 'message'),
    [
        ('whisper_base_5hz.npz', {'names': np.array(['x'])}, 'it lacks length, seq; found names'),
        (
            'whisper_base_5hz.npz',
            {
                'names': np.array(['01-01-01-01-01-01-01']),
                'length': np.array([2]),
                'seq': np.zeros((3, 512)),
            },
            r'array seq: found shape \(3, 512\), expected \(2, 512\)',
        ),
        (
            'egemaps_v02.npz',
            {'names': np.array(['01-01-01-01-01-01-01']), 'x': np.zeros((1, 87))},
            r'array x: found shape \(1, 87\), expected \(1, 88\)',
        ),
        (
            'egemaps_v02.npz',
            {'names': np.array(['01-01-01-01-01-01-01']), 'x': np.full((1, 88), np.nan)},
            r'01-01-01-01-01-01-01: NaN or infinite at \[0, 0\]',
        ),
        (
            'egemaps_v02.npz',
            {'names': np.array(['clip one']), 'x': np.zeros((1, 88))},
            "found 'clip one', expected a name",
        ),
    ],
)
def test_ravdess_features_of_another_kind(tmp_path, file, arrays, message):
    root = trees.ravdess(tmp_path / 'corpus')
    np.savez(root / file, **arrays)
    with pytest.raises(ValueError, match=f'{file}: .*{message}'):
        load('ravdess', root)


def test_ravdess_takes_published_decisions_as_scores(tmp_path):
    """Scores as they are, probabilities as their logarithms."""
    root = trees.ravdess(tmp_path / 'corpus')
    names = np.array(['01-01-01-01-01-01-01'])
    scores, shares = np.arange(8.0)[None], np.full((1, 8), 0.125)
    np.savez(root / 'published_posteriors.npz', names=names, wav2vec_xlsr=scores, au_bilstm=-scores, au_mlp80=shares)
    item = next(item for item in load('ravdess', root).items if item.id == '03-01-01-01-01-01-01')
    np.testing.assert_array_equal(item.streams['xlsr'], scores)
    np.testing.assert_array_equal(item.streams['au_lstm'], -scores)
    np.testing.assert_allclose(item.streams['au_mlp'], np.log(shares), rtol=1e-6)


# MOSI


def test_mosi_items_are_videos(tmp_path):
    corpus = load('mosi', trees.mosi(tmp_path / 'corpus'))
    assert [(item.id, item.part, item.turns) for item in corpus.items] == [
        ('a', 'train', ('a_1', 'a_2')),
        ('bé', 'train', ('bé_1',)),
        ('c', 'test', ('c_1', 'c_2')),
    ]
    assert [item.group for item in corpus.items] == ['a', 'bé', 'c']
    a, b, _ = corpus.items
    arrays = trees.mosi_arrays({'a': 2, 'bé': 1}, seed=0)
    for name, array in (('text', 'text'), ('audio', 'audio'), ('vision', 'video')):
        np.testing.assert_array_equal(a.streams[name], arrays[array][:2])
        np.testing.assert_array_equal(b.streams[name], arrays[array][2:])
    np.testing.assert_array_equal(a.labels['sentiment'], [[-2], [0.5]])
    np.testing.assert_array_equal(a.labels['polarity'], [0, 1])
    np.testing.assert_array_equal(a.speakers, [0, 0])


def test_mosi_never_reads_std_split(tmp_path):
    kept = load('mosi', trees.mosi(tmp_path / 'corpus')).items
    other = load(
        'mosi', trees.mosi(tmp_path / 'other', std_split=np.array(['not', 'even', 'numbers']))
    ).items
    none = load('mosi', trees.mosi(tmp_path / 'none', std_split=None)).items
    for items in (other, none):
        assert [(item.id, item.part) for item in items] == [(item.id, item.part) for item in kept]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'video': None, 'label2': None}, 'it lacks video, label2; found'),
        (
            {'audio': np.zeros((3, 74), np.float32)},
            r'array audio: found shape \(3, 74\), expected \(3, 73\)',
        ),
        ({'text': np.full((3, 100), np.nan)}, r'array text: row 0 \(a_1\): found NaN or infinity'),
        (
            {'sentiment': np.array([0, 3.5, 0])},
            r'array sentiment: row 1 \(a_2\): found 3.5, expected a number from -3',
        ),
        (
            {'sentiment': np.array([0, 0, np.nan])},
            r'array sentiment: row 2 \(bé_1\): found nan, expected a number',
        ),
        ({'label2': np.array([0, 1, 2])}, r'array label2: row 2 \(bé_1\): found 2, expected 0 or 1'),
        ({'label2': np.array([0, 1])}, r'array label2: found shape \(2,\), expected \(3,\)'),
        (
            {'dialog_offsets': np.array([0, 2, 4])},
            'array dialog_offsets: expected increasing numbers from 0 to 3',
        ),
        (
            {'utt_id_offsets': np.array([0, 9, 3, 11])},
            'array utt_id_offsets: expected increasing numbers from 0 to 11',
        ),
    ],
)
def test_mosi_file_is_not_as_expected(tmp_path, changes, message):
    root = trees.mosi(tmp_path / 'corpus', **changes)
    with pytest.raises(ValueError, match=f'train.npz: .*{message}'):
        load('mosi', root)


def test_mosi_video_in_both_files(tmp_path):
    root = trees.mosi(tmp_path / 'corpus')
    np.savez(root / 'test.npz', **trees.mosi_arrays({'a': 1}, seed=1))
    with pytest.raises(ValueError, match="two items are called 'a'"):
        load('mosi', root)


# MELD


def test_meld_items_are_dialogues(tmp_path):
    corpus = load('meld', trees.meld(tmp_path / 'corpus'))
    assert [(item.id, item.part) for item in corpus.items] == [
        ('dev-dia0000', 'dev'),
        ('test-dia0000', 'test'),
        ('train-dia0000', 'train'),
        ('train-dia0007', 'train'),
    ]
    item = corpus.items[-1]
    assert item.turns == ('dia7_utt0', 'dia7_utt1', 'dia7_utt2')
    np.testing.assert_array_equal(item.streams['text'][:, 0], [1, 0, 2])  # rows of the csv
    np.testing.assert_array_equal(item.labels['emotion'], [0, 3, 1])
    np.testing.assert_array_equal(item.labels['sentiment'], [0, 2, 1])
    np.testing.assert_array_equal(item.speakers, [0, 1, 0])
    assert item.attributes == {'speakers': 'Ross | Joey'}


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        (
            (4, 'Go.', 'Monica', 'rage', 'negative', 0, 0),
            "line 6: column Emotion: found 'rage', expected one of neutral",
        ),
        (
            (4, 'Go.', 'Monica', 'anger', 'bad', 0, 0),
            "line 6: column Sentiment: found 'bad', expected one of neutral",
        ),
        (
            (4, 'Go.', 'Monica', 'anger', 'negative', 'x', 0),
            "line 6: column Dialogue_ID: found 'x', expected a number",
        ),
        (
            (4, 'Go.', 'Monica', 'anger', 'negative', 7, 2),
            'line 6: a second row for Dialogue_ID 7, Utterance_ID 2',
        ),
    ],
)
def test_meld_row_is_not_as_expected(tmp_path, row, message):
    root = trees.meld(tmp_path / 'corpus', train=[*trees.MELD_ROWS['train'][:3], row])
    with pytest.raises(ValueError, match=f'train_sent_emo.csv: {message}'):
        load('meld', root)


def test_meld_csv_lacks_columns(tmp_path):
    root = trees.meld(tmp_path / 'corpus', columns=trees.MELD_COLUMNS[3:])
    with pytest.raises(
        ValueError, match=r'train_sent_emo.csv: lacks the columns Speaker; found Emotion'
    ):
        load('meld', root)


def test_meld_row_is_cut_off(tmp_path):
    root = trees.meld(tmp_path / 'corpus')
    with (root / 'dev_sent_emo.csv').open('a', encoding='utf-8') as file:
        file.write('2,"Yes."\n')
    with pytest.raises(ValueError, match=r'dev_sent_emo.csv: line 3: found 2 fields, expected 7'):
        load('meld', root)


def test_meld_in_another_encoding(tmp_path):
    root = trees.meld(tmp_path / 'corpus')
    text = (root / 'train_sent_emo.csv').read_text(encoding='utf-8-sig')
    (root / 'train_sent_emo.csv').write_text(text, encoding='cp1252')
    with pytest.raises(ValueError, match=r'train_sent_emo.csv: cannot be read as csv in UTF-8'):
        load('meld', root)


def test_meld_rows_and_embeddings_differ_in_number(tmp_path):
    root = trees.meld(tmp_path / 'corpus', train=trees.MELD_ROWS['train'][:3])
    message = (
        r'minilm_l6_384.npz: array train: found shape \(4, 384\), expected \(3, 384\).* has 3 rows'
    )
    with pytest.raises(ValueError, match=message):
        load('meld', root)


def test_meld_without_embeddings(tmp_path):
    root = trees.meld(tmp_path / 'corpus')
    (root / 'minilm_l6_384.npz').unlink()
    with pytest.raises(FileNotFoundError, match=r'minilm_l6_384.npz was not found'):
        load('meld', root)


# EmoDB


def test_emodb_reads_labels_from_the_name(tmp_path):
    angry, bored, sad, neutral = load('emodb', trees.emodb(tmp_path / 'corpus')).items
    assert [item.id for item in (angry, bored, neutral, sad)] == list(trees.EMODB_CLIPS)
    assert [int(item.labels['emotion']) for item in (angry, bored, sad, neutral)] == [0, 1, 6, 5]
    assert [item.part for item in (angry, bored, sad, neutral)] == ['fold0', 'fold1', 'fold4', 'fold4']
    assert [item.group for item in (angry, bored, sad, neutral)] == ['03', '08', '12', '16']
    assert angry.attributes == {
        'speaker': '03',
        'sex': 'male',
        'sentence': 'a01',
        'take': 'a',
        'complete': 'yes',
        'recognised_pct': '95.00',
    }
    assert bored.attributes['sex'] == neutral.attributes['sex'] == 'female'
    assert (bored.attributes['complete'], neutral.attributes['recognised_pct']) == ('no', '')
    assert (sad.attributes['complete'], sad.attributes['recognised_pct']) == ('', ''), 'the table lacks it'


def test_emodb_folds_hold_a_woman_and_a_man_each():
    emodb = source('emodb')
    assert all(woman in emodb.WOMEN and man in emodb.MEN for woman, man in emodb.FOLDS)
    assert sorted(speaker for fold in emodb.FOLDS for speaker in fold) == sorted(emodb.WOMEN + emodb.MEN)


def test_emodb_sound_is_log_mel_and_its_cepstra(tmp_path):
    angry = load('emodb', trees.emodb(tmp_path / 'corpus')).items[0]
    frames = audio.log_mel(audio.read(tmp_path / 'corpus/audio/03a01Wa.wav'))
    np.testing.assert_array_equal(angry.streams['audio'], frames)
    np.testing.assert_array_equal(angry.streams['mfcc'], audio.cepstra(frames))


def test_emodb_as_its_owners_have_it(tmp_path):
    """In the folder 'wav', without the table."""
    ours = load('emodb', trees.emodb(tmp_path / 'ours')).items
    theirs = load('emodb', trees.emodb(tmp_path / 'theirs', 'wav', labels=False)).items
    for one, other in zip(ours, theirs, strict=True):
        same(one._replace(attributes={}), other._replace(attributes={}))
        assert (other.attributes['complete'], other.attributes['speaker']) == ('', one.attributes['speaker'])


def test_emodb_folders_of_sound_do_not_mix(tmp_path):
    root = trees.emodb(trees.emodb(tmp_path / 'corpus'), 'wav')
    with pytest.raises(FileNotFoundError, match='one folder of sound is expected, and found were wav and audio'):
        load('emodb', root)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('04a01Wa.wav', 'speaker in the file name: found 04, expected one of 03, 08'),
        ('03a03Wa.wav', 'sentence in the file name: found a03, expected one of a01'),
        ('03a01Xa.wav', 'emotion in the file name: found X, expected one of W, L'),
        ('03a01Ea.wav', 'cannot be read as sound'),
    ],
)
def test_emodb_clip_is_not_as_expected(tmp_path, name, message):
    root = trees.emodb(tmp_path / 'corpus')
    (root / 'audio' / name).write_bytes(b'no sound')
    with pytest.raises(ValueError, match=f'{name}: {message}'):
        load('emodb', root)


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        (('03a01Wa.flac', '03', 'fear', '1', '95'), "column emotion: found 'fear', expected anger, as in the name"),
        (('03a01Wa.flac', '03', 'anger', '2', '95'), "column complete: found '2', expected 0 or 1"),
        (('03a01Wa.flac', '03', 'anger', '1', '101'), "column recognised_pct: found '101', expected a number from 0"),
        (('03a01Wa.flac', '03', 'anger', '1', 'nan'), "column recognised_pct: found 'nan', expected a number from 0"),
        (('03a01Wa.flac', '03', 'anger', '1'), 'found 4 fields, expected 5'),
        (('08b10Lb.wav', '08', 'boredom', '1', ''), 'a second row for the clip 08b10Lb'),
    ],
)
def test_emodb_row_is_not_as_expected(tmp_path, row, message):
    root = trees.emodb(tmp_path / 'corpus')
    trees.emodb_labels(root, rows=[trees.EMODB_ROWS[1], row])
    with pytest.raises(ValueError, match=f'labels.csv: line 3: {message}'):
        load('emodb', root)


def test_emodb_table_lacks_columns(tmp_path):
    root = trees.emodb(tmp_path / 'corpus')
    trees.emodb_labels(root, columns=trees.EMODB_COLUMNS[:3], rows=())
    with pytest.raises(ValueError, match=r'labels.csv: lacks the columns complete, recognised_pct'):
        load('emodb', root)


# EmoryNLP


def test_emorynlp_items_are_scenes(tmp_path):
    corpus = load('emorynlp', trees.emorynlp(tmp_path / 'corpus'))
    assert [(item.id, item.part) for item in corpus.items] == [
        ('1_2_1', 'train'),
        ('1_2_10', 'train'),
        ('1_3_1', 'test'),
        ('2_1_3', 'valid'),
    ]
    first = corpus.items[0]
    assert first.turns == ('1_2_1_utt0', '1_2_1_utt1', '1_2_1_utt2')
    np.testing.assert_array_equal(first.labels['emotion'], [0, 3, 6])
    np.testing.assert_array_equal(first.speakers, [0, 1, 0])
    assert first.attributes == {'speakers': 'Ross | Joey'}
    assert corpus.items[3].attributes == {'speakers': 'Zoë'}


def test_emorynlp_text_is_learned_from_the_train_part(tmp_path):
    root = trees.emorynlp(tmp_path / 'corpus')
    texts = {item.id: item.streams['text'] for item in load('emorynlp', root).items}
    words = text.fit([np.array(turn) for turn in ([2, 3, 3], [4], [2], [5, 2, 4])], 256)
    np.testing.assert_allclose(texts['1_2_1'], text.vectors([np.array(t) for t in ([2, 3, 3], [4], [2])], words))
    np.testing.assert_array_equal(texts['1_3_1'][0], 0)  # it holds no word that the train part holds
    np.testing.assert_allclose(texts['1_3_1'][1], texts['1_2_1'][0], atol=1e-6)  # the same words
    arrays = trees.emorynlp_arrays('test') | {'tokens': np.array([2, 2, 5, 5, 5], np.uint16)}
    np.savez(root / 'test.npz', **arrays)
    changed = {item.id: item.streams['text'] for item in load('emorynlp', root).items}
    for scene in ('1_2_1', '1_2_10', '2_1_3'):
        np.testing.assert_array_equal(changed[scene], texts[scene])
    assert np.abs(changed['1_3_1'] - texts['1_3_1']).max() > 0.1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'label': None, 'tokens': None}, 'it lacks label, tokens; found'),
        ({'label': np.array([0, 3, 7, 1])}, r'array label: row 2: found 7, expected 0 to 6 \(joyful'),
        ({'label': np.array([0.0, 3, np.nan, 1])}, 'array label: found float64 .*, expected whole numbers'),
        ({'label': np.array([0, 3, -1, 1])}, 'array label: found int64 .*, expected whole numbers from 0'),
        ({'label': np.array([0, 3, 1])}, 'array label: found 3 entries, expected 4, since there are 2 scenes'),
        ({'tokens': np.zeros((3, 3), int)}, r'array tokens: found int64 \(3, 3\)'),
        ({'tokens': np.zeros(8, int)}, 'array token_offsets: expected increasing numbers from 0 to 8'),
        ({'token_offsets': np.array([0, 3, 9])}, 'array token_offsets: found 2 entries, expected 4'),
        ({'token_offsets': np.array([0, 5, 3, 6, 9], np.uint32)}, 'array token_offsets: expected increasing'),
        ({'token_offsets': np.array([0, 3.5, 5, 6, 9])}, 'array token_offsets: expected increasing'),
        ({'dialog_offsets': np.array([0, 3, 3])}, 'array dialog_offsets: expected increasing numbers from 0 to 4'),
        ({'dialog_offsets': np.array([0, 4])}, 'array dialog_offsets: found 1 entries, expected 2'),
        ({'speaker_bytes': np.full(17, 255, np.uint8)}, 'array speaker_bytes: no UTF-8 where speaker_offsets'),
    ],
)
def test_emorynlp_file_is_not_as_expected(tmp_path, changes, message):
    root = trees.emorynlp(tmp_path / 'corpus', **changes)
    with pytest.raises(ValueError, match=f'train.npz: .*{message}'):
        load('emorynlp', root)


def test_emorynlp_cannot_do_without_its_train_part(tmp_path):
    root = trees.emorynlp(tmp_path / 'corpus')
    (root / 'train.npz').unlink()
    with pytest.raises(FileNotFoundError, match=r'train.npz was not found; the text stream is learned from it'):
        load('emorynlp', root)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 cut off'])
def test_emorynlp_file_is_torn(tmp_path, content):
    root = trees.emorynlp(tmp_path / 'corpus')
    (root / 'valid.npz').write_bytes(content)
    with pytest.raises(ValueError, match=r'valid.npz: not the npz file that was expected'):
        load('emorynlp', root)


# All corpora


@pytest.mark.parametrize('name', WRITERS)
def test_no_corpus_there(tmp_path, name):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'file.txt').write_text('something else')
    for folder, complaint in (
        ('absent', 'there is no such folder'),
        ('empty', 'the folder is empty'),
        ('other', 'found'),
    ):
        with pytest.raises(FileNotFoundError, match=complaint) as caught:
            load(name, tmp_path / folder)
        message = str(caught.value)
        assert str(tmp_path / folder) in message
        assert source(name).TREE.strip() in message
        assert source(name).SPEC.source in message


@pytest.mark.parametrize('name', WRITERS)
def test_no_folder_given(name):
    with pytest.raises(ValueError, match=f'{name} is read from a folder, and none was given'):
        load(name)


def test_unknown_corpus(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no corpus is called 'iemocop'; known: toy, toy-dialogue, .*meld, mosi, ravdess",
    ):
        load('iemocop', tmp_path)
    assert {'toy', 'toy-dialogue', *WRITERS} <= set(names())


@pytest.mark.parametrize('name', [name for name in WRITERS if name != 'emodb'])
def test_objects_are_not_unpickled(tmp_path, name):
    root = WRITERS[name](tmp_path / 'corpus')
    path = sorted(root.glob('*.npz'))[0]
    with np.load(path) as archive:
        arrays = dict(archive)
    array = next(array for array in ('names', 'text', 'dev', 'label') if array in arrays)
    arrays[array] = np.array([Bomb()] * 3, object)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f'{path.name}: .*allow_pickle=False'):
        load(name, root)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ('a pickle was opened',)


def test_bomb_explodes():
    with pytest.raises(pytest.fail.Exception):
        pickle.loads(pickle.dumps(Bomb()))


def test_streams_are_selected(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus')
    corpus = load('ravdess', root, streams=('vision', 'audio'))
    assert [stream.name for stream in corpus.spec.streams] == ['vision', 'audio']
    assert {tuple(item.streams) for item in corpus.items} == {('vision', 'audio')}
    with pytest.raises(ValueError, match=r"has no stream 'face'; it has audio, whisper"):
        load('ravdess', root, streams=('audio', 'face'))


def test_a_selected_stream_is_nowhere(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus', features=False)
    with pytest.warns(UserWarning, match='no item has the stream vision; it counts as missing'):
        corpus = load('ravdess', root, streams=('audio', 'vision'))
    assert [stream.name for stream in corpus.spec.streams] == ['audio', 'vision']
    with pytest.raises(ValueError, match='no item has the stream vision, whisper; found: audio'):
        load('ravdess', root, streams=('vision', 'whisper'))


# The cache


def copies(cache):
    return sorted(cache.glob('*/*'))


def test_a_corpus_is_prepared_once(tmp_path, cache, monkeypatch):
    root = trees.mosi(tmp_path / 'corpus')
    first = load('mosi', root).items
    monkeypatch.setattr(source('mosi'), 'parts', lambda root: pytest.fail('prepared again'))
    for item, wanted in zip(load('mosi', root).items, first, strict=True):
        same(item, wanted)
    assert len(copies(cache)) == 1


def test_a_changed_file_is_read_again(tmp_path):
    root = trees.mosi(tmp_path / 'corpus')
    load('mosi', root)
    changed = np.array([1, 1, 1], np.float32)
    size, times = (root / 'train.npz').stat().st_size, (root / 'train.npz').stat()
    trees.mosi(root, sentiment=changed)
    assert (root / 'train.npz').stat().st_size == size
    os.utime(
        root / 'train.npz', ns=(times.st_atime_ns, times.st_mtime_ns)
    )  # even with its time set back
    np.testing.assert_array_equal(load('mosi', root).items[0].labels['sentiment'], [[1], [1]])


def test_another_folder_is_another_corpus(tmp_path):
    load('mosi', trees.mosi(tmp_path / 'corpus'))
    other = load('mosi', trees.mosi(tmp_path / 'other', sentiment=np.array([1, 1, 1], np.float32)))
    np.testing.assert_array_equal(other.items[0].labels['sentiment'], [[1], [1]])


def test_a_failure_leaves_nothing_behind(tmp_path, cache):
    root = trees.mosi(tmp_path / 'corpus', label2=np.array([0, 1, 2]))
    with pytest.raises(ValueError, match='label2'):
        load('mosi', root)
    assert copies(cache) == []
    trees.mosi(root)
    assert len(load('mosi', root).items) == 3


KILLED = """
import os, signal, sys
from jmer.data.load import load, source
module = source('mosi')
parts = module.parts
def half(items):
    yield next(iter(items))
    os.kill(os.getpid(), signal.SIGKILL)
module.parts = lambda root: {part: half(items) for part, items in parts(root).items()}
load('mosi', sys.argv[1])
"""


def test_a_killed_preparation_is_never_served(tmp_path, cache):
    root = trees.mosi(tmp_path / 'corpus')
    killed = subprocess.run([sys.executable, '-c', KILLED, str(root)], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    drafts = copies(cache)
    assert drafts  # it had begun
    assert len(load('mosi', root).items) == 3
    assert set(drafts) < set(copies(cache))  # by a new copy


def test_processes_may_prepare_at_once(tmp_path, cache, monkeypatch):
    """Another process finishes the same copy while this one prepares."""
    from jmer.data import load as module

    root = trees.mosi(tmp_path / 'corpus')
    publish = module._publish

    def late(draft, copy):
        shutil.copytree(draft, copy)
        publish(draft, copy)

    monkeypatch.setattr(module, '_publish', late)
    assert len(load('mosi', root).items) == 3
    assert len(copies(cache)) == 1


SILENT = """
import sys
from jmer.data import audio, check, corpus, features, load
load.load('toy')
assert 'tensorflow' not in sys.modules
load.load('mosi', sys.argv[1])
assert 'tensorflow' in sys.modules
"""


def test_tensorflow_is_imported_only_to_read_and_is_quiet(tmp_path):
    root = trees.mosi(tmp_path / 'corpus')
    done = subprocess.run([sys.executable, '-c', SILENT, str(root)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


# The real corpora


def test_the_real_ravdess():
    corpus = load('ravdess', trees.shared('ravdess'))
    assert len(corpus.items) == 1200
    assert Counter(item.part for item in corpus.items) == {f'fold{k}': 300 for k in range(4)}
    assert len({item.group for item in corpus.items}) == 20
    counts = Counter(int(item.labels['emotion']) for item in corpus.items)
    assert counts == {0: 80, **{k: 160 for k in range(1, 8)}}
    for item in corpus.items:
        assert set(item.streams) == {'audio', 'whisper', 'egemaps', 'vision', *trees.ravdess_source.PUBLISHED}
        seconds = len(item.streams['audio']) / 100
        assert abs(len(item.streams['whisper']) / 5 - seconds) < 0.4


def test_the_real_mosi():
    corpus = load('mosi', trees.shared('cmu_mosi_utterance'))
    assert Counter(item.part for item in corpus.items) == {'train': 62, 'test': 31}
    turns = Counter()
    for item in corpus.items:
        turns[item.part] += len(item.turns)
        np.testing.assert_array_equal(item.labels['polarity'], item.labels['sentiment'][:, 0] >= 0)
    assert turns == {'train': 1447, 'test': 752}


def test_the_real_meld():
    corpus = load('meld', trees.shared('meld_text'))
    assert Counter(item.part for item in corpus.items) == {'train': 1038, 'dev': 114, 'test': 280}
    emotions = np.concatenate([item.labels['emotion'] for item in corpus.items if item.part == 'test'])
    assert np.bincount(emotions).tolist() == [1256, 281, 50, 208, 402, 68, 345]
    assert max(len(item.turns) for item in corpus.items) == 33


def test_the_real_emodb():
    corpus = load('emodb', trees.shared('emodb'))
    parts = Counter(item.part for item in corpus.items)
    assert parts == {'fold0': 110, 'fold1': 113, 'fold2': 99, 'fold3': 107, 'fold4': 106}
    for part in parts:
        assert len({int(item.labels['emotion']) for item in corpus.items if item.part == part}) == 7
    counts = Counter(int(item.labels['emotion']) for item in corpus.items)
    assert [counts[code] for code in range(7)] == [127, 81, 46, 69, 71, 79, 62]
    # As many frames as in two seconds where it is cut, fewer where it is complete.
    for item in corpus.items:
        frames = {len(x) for x in item.streams.values()}
        assert frames == {201} or (item.attributes['complete'] == 'yes' and max(frames) < 201)


def test_the_real_emorynlp():
    corpus = load('emorynlp', trees.shared('emorynlp_text'))
    assert Counter(item.part for item in corpus.items) == {'train': 659, 'valid': 89, 'test': 79}
    emotions = np.concatenate([item.labels['emotion'] for item in corpus.items if item.part == 'test'])
    assert np.bincount(emotions).tolist() == [217, 86, 111, 288, 70, 96, 116]
    x = np.concatenate([item.streams['text'] for item in corpus.items if item.part == 'train']).astype(np.float64)
    squares = x.T @ x
    energy = np.diag(squares)
    assert (np.diff(energy) < 0).all()  # main directions first
    np.testing.assert_allclose(squares - np.diag(energy), 0, atol=1e-4 * energy[0])
    assert np.linalg.norm(x, axis=1).max() < 1.001


# A user's own files

RAVDESS, MOSI = source('ravdess').SPEC, source('mosi').SPEC


def test_clip_of_a_sound_file_is_what_the_corpus_holds(tmp_path):
    root = trees.ravdess(tmp_path / 'corpus', features=False)
    path = root / 'Actor_02' / '03-01-05-02-02-01-02.wav'
    item = clip(RAVDESS, path)
    wanted = next(item for item in load('ravdess', root).items if item.id == path.stem)
    np.testing.assert_array_equal(item.streams['audio'], wanted.streams['audio'])
    assert (item.id, item.labels, item.speakers) == (str(path), {}, None)


def test_clip_of_a_sound_file_and_an_archive(tmp_path):
    soundfile.write(tmp_path / 'a.flac', trees.tone(0.5, 44_100, 300), 44_100)
    x, mask = np.ones((3, 512)), np.array([1, 0, 1])
    x[1] = np.nan
    np.savez(tmp_path / 'a.npz', vision=np.arange(35), whisper=x, whisper_mask=mask)
    item = clip(RAVDESS, tmp_path / 'a.flac', tmp_path / 'a.npz')
    assert {name: x.shape for name, x in item.streams.items()} == {
        'audio': (51, 64),
        'whisper': (3, 512),
        'vision': (1, 35),
    }
    assert item.masks['whisper'].tolist() == [True, False, True]
    np.testing.assert_array_equal(item.streams['whisper'][1], 0)


def test_clip_of_a_sound_file_gives_all_that_is_computed_from_sound(tmp_path):
    root = trees.emodb(tmp_path / 'corpus')
    item = clip(source('emodb').SPEC, root / 'audio/08b10Lb.wav')
    wanted = load('emodb', root).items[1]
    np.testing.assert_equal(dict(item.streams), dict(wanted.streams))
    assert set(item.streams) == {'audio', 'mfcc'}


def test_clip_of_a_dialogue(tmp_path):
    np.savez(tmp_path / 'd.npz', text=np.ones((4, 100)), audio=np.ones((4, 73)), speakers=[7, 3, 7, 5])
    item = clip(MOSI, tmp_path / 'd.npz')
    assert item.speakers.tolist() == [0, 1, 0, 2]
    assert len(item.turns) == 4
    np.savez(tmp_path / 'd.npz', text=np.ones((4, 100)))
    assert clip(MOSI, tmp_path / 'd.npz').speakers.tolist() == [0] * 4


@pytest.mark.parametrize(
    ('spec', 'arrays', 'message'),
    [
        (
            RAVDESS,
            {'vision': np.zeros((2, 34))},
            r'array vision: found shape \(2, 34\), expected .* 35 wide',
        ),
        (
            RAVDESS,
            {'vision': np.zeros((0, 35))},
            r'array vision: found shape \(0, 35\), expected at least one step',
        ),
        (
            RAVDESS,
            {'vision': np.full((2, 35), np.nan)},
            r'array vision: found NaN or infinity at \[0, 0\]',
        ),
        (RAVDESS, {'vision': np.array('x' * 35)}, 'array vision: found <U35, expected numbers'),
        (RAVDESS, {'vision': np.array([{}] * 35)}, 'allow_pickle=False'),
        (
            RAVDESS,
            {'face': np.zeros(35)},
            'array face: not known to ravdess, expected some of audio, audio_mask',
        ),
        (RAVDESS, {'speakers': np.zeros(1)}, 'array speakers: not known to ravdess'),
        (RAVDESS, {}, 'none of the streams of ravdess'),
        (
            RAVDESS,
            {'vision_mask': np.ones(3), 'whisper': np.zeros(512)},
            'vision_mask: there is no array vision',
        ),
        (
            RAVDESS,
            {'vision': np.zeros((2, 35)), 'vision_mask': np.ones(3)},
            r'mask of vision: found \(3,\), expected \(2,\)',
        ),
        (
            RAVDESS,
            {'vision': np.zeros((2, 35)), 'vision_mask': [0, 2]},
            'vision_mask: found other values than 0 and 1',
        ),
        (
            MOSI,
            {'text': np.zeros((2, 100)), 'audio': np.zeros((3, 73))},
            'audio: found 3 turns, expected 2 turns',
        ),
        (
            MOSI,
            {'text': np.zeros((2, 100)), 'speakers': np.zeros(3, int)},
            r'array speakers: found int64 \(3,\)',
        ),
    ],
)
def test_clip_of_an_archive_that_does_not_fit(tmp_path, spec, arrays, message):
    np.savez(tmp_path / 'bad.npz', **arrays)
    with pytest.raises(ValueError, match=rf'bad.npz.*{message}'):
        clip(spec, tmp_path / 'bad.npz')


def test_clip_of_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no.npz: no such file'):
        clip(RAVDESS, tmp_path / 'no.npz')
    with pytest.raises(ValueError, match='at least one file'):
        clip(RAVDESS)


def test_clip_that_holds_a_stream_twice(tmp_path):
    for name in ('a.npz', 'b.npz'):
        np.savez(tmp_path / name, vision=np.zeros(35))
    with pytest.raises(ValueError, match=r'b.npz: array vision: also in .*a.npz'):
        clip(RAVDESS, tmp_path / 'a.npz', tmp_path / 'b.npz')


def test_clip_of_sound_where_audio_is_something_else(tmp_path):
    soundfile.write(tmp_path / 'a.wav', trees.tone(0.5, 16_000, 300), 16_000)
    with pytest.raises(ValueError, match=r'a.wav: mosi takes no sound files'):
        clip(MOSI, tmp_path / 'a.wav')


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 cut off', b'\x93NUMPY'])
def test_clip_of_a_torn_archive(tmp_path, content):
    (tmp_path / 'torn.npz').write_bytes(content)
    with pytest.raises(ValueError, match=r'torn.npz: not the npz file that was expected'):
        clip(RAVDESS, tmp_path / 'torn.npz')

"""The command line: what it does, what it writes, and what it says when it cannot."""

import functools
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jmer import checkpoint, cli, zoo
from jmer.data import audio, synthetic
from jmer.data.ravdess.source import EMOTIONS, UNITS
from jmer.train import log
from tests.data import trees

ROOT = Path(__file__).parent.parent
TINY = ('model.hidden=8', 'model.pooling=mean', 'data.batch_size=32', 'data.buckets=1', 'epochs=2')
TOY = ('train', 'toy/early', '--devices', '1', '--set', *TINY)
RECIPE = """
from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment

def get():
    return Experiment(zoo.create('early', classes=8, streams=('audio', 'vision'), hidden=(4,)),
                      Data('ravdess', ('audio', 'vision'), batch_size=2, buckets=1, protocol=Protocol(
                          test=('fold3',), train=('fold0', 'fold4'))), epochs=2)
"""


@pytest.fixture(autouse=True, scope='module')
def surroundings(tmp_path_factory):
    """A small toy corpus, a cache of our own; and the tests' compilation cache stays the one in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, 'corpus', functools.partial(synthetic.corpus, dialogues=(6, 3, 3)))
        patch.setattr(cli, '_prepare', lambda: None)
        patch.setenv('JMER_CACHE', str(tmp_path_factory.mktemp('cache')))
        patch.setenv('COLUMNS', '200')
        yield


@pytest.fixture
def jmer(capsys):
    """Runs the command; its exit status and what it wrote on stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """A RAVDESS of four clips, one of them by a speaker that no fold knows."""
    return trees.ravdess(tmp_path_factory.mktemp('corpora') / 'ravdess')


@pytest.fixture(scope='module')
def run(tmp_path_factory, corpus):
    """A finished run on it, from a recipe of the user's own."""
    folder = tmp_path_factory.mktemp('work')
    (folder / 'mine.py').write_text(RECIPE)
    assert (
        cli.main(
            [
                'train',
                str(folder / 'mine.py'),
                '--data',
                str(corpus),
                '--workdir',
                str(folder / 'run'),
                '--set',
                'epochs=3',
                '--devices',
                '2',
            ]
        )
        == 0
    )
    return folder / 'run'


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    """Two finished runs on the toy corpus that differ in their seeds."""
    folder = tmp_path_factory.mktemp('toys')
    for seed in (0, 1):
        assert cli.main([*TOY, f'seed={seed}', '--workdir', str(folder / f'seed{seed}')]) == 0
    return folder


def commands():
    groups = cli.parser()._subparsers._group_actions[0].choices
    return sorted([[name] for name in groups] + [['data', 'check']])


@pytest.mark.parametrize('command', [[], *commands()], ids=' '.join)
def test_help_has_an_example(jmer, command):
    status, told, _ = jmer(*command, '--help')
    assert status == 0
    if command != ['data']:
        example = told[told.index('example') :]
        assert f'  jmer {" ".join(command)}'.rstrip() in example


@pytest.mark.parametrize('example', [line.strip() for line in cli.EXAMPLES.splitlines() if '  jmer' in line])
def test_the_examples_can_be_parsed(example):
    words = example.split('   ')[0].split()[1:]
    assert cli.parser().parse_args(words).run is not None


@pytest.mark.parametrize(
    'words',
    [
        (),
        ('trian',),
        ('train',),
        ('train', 'toy/gmu', '--via', 'xla'),
        ('list', '--colour'),
        ('data',),
        ('train', 'toy/gmu', '--devices', 'two'),
    ],
)
def test_wrong_usage_is_2(jmer, words):
    status, told, complaint = jmer(*words)
    assert (status, told) == (2, '') and complaint.startswith('usage: jmer')


def test_a_program_of_its_own():
    """As a shell meets it: status, streams, no traceback, and a reader that leaves early."""
    call = [sys.executable, '-m', 'jmer.cli']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [*call, 'describe', 'nothing'], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, '') and done.stderr.startswith(
        'jmer describe: nothing: no such'
    )
    assert 'Traceback' not in done.stderr
    piped = subprocess.run(
        f'{sys.executable} -m jmer.cli describe gmu | head -c 1',
        shell=True,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (piped.stdout, piped.stderr) == ('{', '')


def test_list(jmer):
    status, told, _ = jmer('list')
    assert status == 0 and all(f'{name} ' in told for name in zoo.list_models())
    def names(*options):
        told = jmer('list', *options)[1]
        return [line.split()[0] for line in told.splitlines() if line[:1].strip()]

    assert names('--tag', 'gated') == zoo.list_models(tag='gated')
    assert names('--family', 'dialogue') == zoo.list_models('dialogue')


def test_describe_a_model_and_a_run(jmer, toys):
    status, told, _ = jmer('describe', 'gmu')
    assert status == 0 and json.loads(told) == json.loads(json.dumps(zoo.profile('gmu')))
    described = json.loads(jmer('describe', toys / 'seed0')[1])
    assert described['step'] == 6 and described['finished'] and described['cards']['.']['model'] == 'early'
    (seed,) = described['seeds']
    assert len(seed['chosen_sha256']) == len(described['state_sha256']) == 64
    weights = json.loads(jmer('describe', toys / 'seed0' / 'weights')[1])
    assert weights['step'] == seed['chosen_step']
    assert weights['params_sha256'] == seed['chosen_sha256'] == described['cards']['.']['params_sha256']


def test_train_shows_the_figures_beside_the_ceiling(jmer, toys):
    status, told, _ = jmer(*TOY, 'seed=0', '--workdir', toys / 'seed0')
    assert status == 0 and 'Bayes ceiling (test)' in told and 'weights, predictions and log' in told
    card = checkpoint.read_json(toys / 'seed0' / 'weights' / 'card.json')
    assert f'{card["metrics"]["test"]["uar"]:.4f}' in told
    assert card['command'] == 'jmer train toy/early --set ' + ' '.join((*TINY, 'seed=0'))


@pytest.mark.parametrize(
    ('recipe', 'place'),
    [
        ('toy/gmu', 'toy/gmu'),
        ('toy/gmu.py', 'toy/gmu'),
        ('experiments/toy/gmu.py', 'toy/gmu'),
        ('../mine-v1.5.py', 'up/mine-v1.5'),
        ('./mine.py', 'here/mine'),
    ],
)
def test_a_run_stands_under_the_name_of_its_recipe(tmp_path, monkeypatch, recipe, place):
    """Also where the recipe lies above: the run does not climb out of runs/."""
    (tmp_path / 'up' / 'here').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'up' / 'here')
    assert cli._recipe(recipe) == place


SMALL = """
import functools, sys
from jmer import cli
from jmer.data import synthetic
synthetic.corpus = functools.partial(synthetic.corpus, dialogues=(6, 3, 3))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_train_one_run(toys, tmp_path):
    """As two hosts would, on one file system: the run of one process, one log, one set of weights."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JMER_CACHE': str(tmp_path / 'cache')}
    words = [*TOY[:2], *TOY[4:], 'seed=0', '--workdir', tmp_path / 'run', '--processes']
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', SMALL, *map(str, words), f'{address},2,{k}'],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    told = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert 'weights, predictions and log' in told[0][0] and 'epoch' not in told[1][0], 'the main process speaks for all'
    logs = [log.read(folder / 'log.jsonl') for folder in (tmp_path / 'run', toys / 'seed0')]
    for one, other in zip(*logs, strict=True):
        for name in ('step', 'train/loss', 'train/uar', 'validation/nll'):
            assert one[name] == pytest.approx(other[name], rel=1e-5), name
    states = [checkpoint.Run(folder).read(6, 'state') for folder in (tmp_path / 'run', toys / 'seed0')]
    for name, x in states[0].items():
        np.testing.assert_allclose(x, states[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert len(list((tmp_path / 'run' / 'tensorboard').iterdir())) == 1


# Evaluating


def evaluated(jmer, tmp_path, *arguments):
    status, told, _ = jmer('evaluate', *arguments, '--json', tmp_path / 'out.json')
    assert status == 0
    return json.loads((tmp_path / 'out.json').read_text()), told


def test_evaluate_on_speakers_never_met(jmer, tmp_path, run, corpus):
    result, told = evaluated(jmer, tmp_path, run, '--data', corpus, '--split', 'all')
    assert {'metrics', 'n', 'per_class', 'predictions', 'seen_in_training', 'split', 'model'} <= set(result)
    assert [p['id'] for p in result['predictions']] == sorted(trees.CLIPS)
    assert (result['n'], result['items'], result['seen_in_training']) == (4, 4, 2)
    assert 'Not an honest test: 2 of 4' in told
    for p in result['predictions']:
        assert p['label'] == EMOTIONS[int(p['id'][6:8]) - 1] and set(p['probabilities']) == set(EMOTIONS)
        assert sum(p['probabilities'].values()) == pytest.approx(1, abs=1e-5)
        assert p['predicted'] == max(p['probabilities'], key=p['probabilities'].get)
    right = [p['predicted'] == p['label'] for p in result['predictions']]
    assert result['metrics']['accuracy'] == pytest.approx(np.mean(right))
    assert set(result['per_class']['recall']) == set(EMOTIONS)
    assert result['per_class']['support']['disgust'] == 0


def test_evaluate_sides_and_parts(jmer, tmp_path, run, corpus):
    of_test, told = evaluated(jmer, tmp_path, run, '--data', corpus)
    assert [p['id'] for p in of_test['predictions']] == ['03-01-08-01-01-02-24']
    assert 'Not an honest' not in told
    on_card = checkpoint.read_json(run / 'weights' / 'card.json')['metrics']['test']
    assert {'n': of_test['n']} | of_test['metrics'] == pytest.approx(on_card, abs=1e-5)
    part, _ = evaluated(jmer, tmp_path, run, '--data', corpus, '--split', 'other')
    assert [p['id'] for p in part['predictions']] == ['03-01-04-01-02-02-31']
    assert evaluated(jmer, tmp_path, run, '--data', corpus, '--split', 'train')[0]['seen_in_training'] == 2
    for split, found in (
        ('fold9', "nothing here belongs to 'fold9'; name a part that is here (fold0, fold3, fold4, other) or all"),
        ('validation', "nothing here belongs to 'validation'"),
    ):
        status, _, complaint = jmer('evaluate', run, '--data', corpus, '--split', split)
        assert status == 1 and found in complaint


def test_a_folder_of_new_speakers_only(jmer, tmp_path, run, corpus):
    """What the checkpoint was trained on is not there at all; neither are its action units."""
    folder = tmp_path / 'new'
    folder.mkdir()
    shutil.copy(corpus / 'audio' / '03-01-04-01-02-02-31.flac', folder)
    with pytest.warns(UserWarning, match='no item has the stream vision; it counts as missing'):
        result, _ = evaluated(jmer, tmp_path, run, '--data', folder, '--split', 'all')
    assert (result['n'], result['seen_in_training']) == (1, 0)
    by_file, _ = predicted(jmer, tmp_path, run, folder / '03-01-04-01-02-02-31.flac')
    same(by_file[0], result['predictions'][0])


# Predicting


def predicted(jmer, tmp_path, *arguments):
    status, told, complaint = jmer('predict', *arguments, '--json', tmp_path / 'out.json')
    assert status == 0, complaint
    return json.loads((tmp_path / 'out.json').read_text())['predictions'], told


def same(one, other):
    for name, value in one['probabilities'].items():
        assert value == pytest.approx(other['probabilities'][name], abs=1e-5)


@pytest.fixture
def clips(tmp_path, corpus):
    """The clip of actor 2 as wav and npz, cut out of the corpus: see `trees`, row 1 of the table."""
    units = np.array([1 + k / 100 for k in range(len(UNITS))], np.float32)
    shutil.copy(corpus / 'Actor_02' / '03-01-05-02-02-01-02.wav', tmp_path / 'both.wav')
    np.savez(tmp_path / 'both.npz', vision=units)
    shutil.copy(tmp_path / 'both.wav', tmp_path / 'heard.wav')
    np.savez(tmp_path / 'seen.npz', vision=units[None])
    np.savez(
        tmp_path / 'whole.npz', vision=units[None], audio=audio.log_mel(audio.read(tmp_path / 'both.wav'))
    )
    return tmp_path


def test_predict_any_subset_of_the_streams_of_several_clips(jmer, clips, run, corpus):
    files = [clips / name for name in ('both.wav', 'heard.wav', 'both.npz', 'seen.npz', 'whole.npz')]
    predictions, told = predicted(jmer, clips, run, *files)
    by_id = {p['id']: p for p in predictions}
    assert list(by_id) == [f'{files[0]}+{files[2]}', *map(str, (files[1], files[3], files[4]))]
    assert told.count('\n') == 4 and 'label' not in predictions[0]
    both, heard, seen, whole = predictions
    same(both, whole)
    assert both['probabilities'] != heard['probabilities'] != seen['probabilities']
    evaluation, _ = evaluated(jmer, clips, run, '--data', corpus, '--split', 'fold0')
    same(both, evaluation['predictions'][0])
    alone, _ = predicted(jmer, clips, run, clips / 'heard.wav')
    same(alone[0], heard)


def test_predict_a_part_of_a_corpus(jmer, tmp_path, run, corpus):
    predictions, _ = predicted(jmer, tmp_path, run, 'fold3', 'other', '--data', corpus)
    assert [p['id'][-2:] for p in predictions] == ['24', '31']


def test_json_goes_into_a_pipe(jmer, clips, run):
    """And /dev/stdout, or what else is no plain file, is written to and not replaced."""
    link = clips / 'link.json'
    link.symlink_to(clips / 'target.json')
    (clips / 'target.json').write_text('')
    assert jmer('predict', run, clips / 'heard.wav', '--json', link)[0] == 0
    assert link.is_symlink() and json.loads((clips / 'target.json').read_text())['predictions']


def npz(folder, **arrays):
    np.savez(folder / 'bad.npz', **arrays)
    return folder / 'bad.npz'


BAD = {
    'no such file': (lambda d: d / 'gone.wav', r'gone.wav: no such file'),
    'empty file': (lambda d: (d / 'empty.wav').touch() or d / 'empty.wav', 'empty.wav: .*'),
    'no samples': (
        lambda d: soundfile.write(d / 'none.wav', np.zeros(0), 16000) or d / 'none.wav',
        'none.wav: found 0 samples',
    ),
    'no sound': (lambda d: (d / 'text.wav').write_text('hello') and d / 'text.wav', 'text.wav'),
    'a folder': (lambda d: d, 'no such file'),
    'width': (
        lambda d: npz(d, vision=np.zeros((2, 3), np.float32)),
        r'bad.npz: array vision: found shape \(2, 3\), expected at least one step, each 35 wide',
    ),
    'no step': (lambda d: npz(d, audio=np.zeros((0, 64), np.float32)), r'array audio: found shape \(0, 64\)'),
    'nan': (lambda d: npz(d, vision=np.full(35, np.nan, np.float32)), 'bad.npz: array vision: found NaN'),
    'unknown array': (
        lambda d: npz(d, video=np.zeros(35)),
        'bad.npz: array video: not known to ravdess, expected some of audio, audio_mask, vision',
    ),
    'objects': (lambda d: npz(d, vision=np.array([{}])), 'bad.npz: not the npz file that was expected'),
    'no npz': (lambda d: (d / 'x.npz').write_text('hello') and d / 'x.npz', 'x.npz: not the npz file'),
    'nothing': (lambda d: npz(d), 'bad.npz: none of the streams of ravdess'),
}


def refused(answer, command, message):
    import re

    status, told, complaint = answer
    assert status == 1 and told == ''
    assert complaint.startswith(f'jmer {command}: ') and 'Traceback' not in complaint
    assert re.search(message, complaint), complaint
    return complaint


@pytest.mark.parametrize('fault', BAD)
def test_a_bad_input_is_named(jmer, tmp_path, run, fault):
    make, message = BAD[fault]
    refused(jmer('predict', run, make(tmp_path)), 'predict', message)


# Refusing


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('train', 'toy/gnu'), r'toy/gnu: no such file, and none of the experiments shipped .*toy/gmu'),
        (('train', 'toy/gmu', '--set', 'optimizer.lr=1'), "no option is called 'optimizer.lr'"),
        (('train', 'toy/gmu', '--set', 'epochs=many'), "epochs: found 'many', expected a value like"),
        (('train', 'toy/gmu', '--set', 'epochs'), 'a setting has the form option=value'),
        (('train', 'toy/gmu', '--set', 'data.protocol.test=3'), 'data.protocol.test: found'),
        (('train', 'toy/gmu', '--set', 'data.batch_size=0'), 'data.batch_size: found 0'),
        (('train', 'toy/gmu', '--devices', '99'), '--devices: found 99, expected 1 to 8'),
        (('train', 'toy/gmu', '--processes', 'here'), "--processes: found 'here'"),
        (('train', 'ravdess/gmu'), 'ravdess is read from a folder, and none was given'),
        (
            ('train', 'ravdess/gmu', '--data', 'nowhere'),
            r'(?s)nowhere: there is no such folder. Expected:\n.*zenodo',
        ),
        (('train', 'mosi/bclstm', '--data', 'nowhere'), r'(?s)nowhere.*train.npz'),
        (('train', 'meld/bclstm', '--data', 'nowhere'), r'(?s)nowhere.*train_sent_emo.csv'),
        (('describe', 'gnu'), 'gnu: no such folder'),
        (('list', '--family', 'audio'), "no family is called 'audio'"),
        (('evaluate', 'gnu/ravdess'), 'gnu/ravdess: no such folder, and none of the checkpoints shipped'),
        (('publish', 'gnu', 'out'), 'gnu: no such folder'),
    ],
)
def test_what_cannot_be_done_is_1_and_says_why(jmer, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    refused(jmer(*words), words[0], message)
    assert not list(tmp_path.iterdir()), 'and nothing is left behind'


def test_data_check_tells_by_its_status(jmer, corpus, tmp_path):
    status, told, _ = jmer('data', 'check', 'ravdess', '--data', corpus)
    assert status == 0 and 'whisper' in told
    broken = trees.ravdess(tmp_path / 'broken')
    (broken / 'Actor_02' / '03-01-05-02-02-01-02.wav').write_bytes(b'')
    status, told, _ = jmer('data', 'check', 'ravdess', '--data', broken)
    assert status == 1 and '03-01-05-02-02-01-02.wav' in told
    refused(
        jmer('data', 'check', 'iemocap', '--data', corpus),
        'data',
        "no corpus is called 'iemocap'; known: toy",
    )
    refused(
        jmer('data', 'check', 'ravdess', '--data', tmp_path / 'gone'), 'data', 'gone: there is no such folder'
    )


@pytest.fixture
def weights(run, tmp_path):
    """A copy of published weights, to be spoilt."""
    return shutil.copytree(run / 'weights', tmp_path / 'weights')


def edit(card, **fields):
    found = json.loads(card.read_text())
    card.write_text(json.dumps({k: v for k, v in (found | fields).items() if v is not None}))


def test_weights_that_are_not_whole(jmer, weights, clips):
    file = max((p for p in (weights / 'params').rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    complaint = refused(jmer('predict', weights, clips / 'heard.wav'), 'predict', 'damaged checkpoint')
    assert str(file) in complaint
    shutil.rmtree(weights / 'params')
    refused(jmer('predict', weights, clips / 'heard.wav'), 'predict', 'params')


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'model': None}, 'card.json: found no model; this is not the card of a model'),
        ({'standardisation': None, 'data': None}, 'card.json: found no data, standardisation'),
        ({'params_sha256': None}, "card.json: no field 'params_sha256'"),
        ({'params_sha256': '0' * 64}, 'card and weights are of different versions'),
        ({'model': 'gnu'}, "no model is called 'gnu'"),
        ({'fields': {'classes': 8, 'gates': 3}}, "early has no field 'gates'"),
    ],
)
def test_a_card_of_another_kind(jmer, weights, clips, fields, message):
    edit(weights / 'card.json', **fields)
    refused(jmer('predict', weights, clips / 'heard.wav'), 'predict', message)


def test_a_card_that_is_no_json(jmer, weights, clips):
    (weights / 'card.json').write_text('{"model": "early",')
    refused(jmer('describe', weights), 'describe', 'card.json: not valid JSON')


def test_features_of_another_version_are_not_evaluated(jmer, weights, corpus):
    edit(weights / 'card.json', features='0.9.0')
    refused(
        jmer('evaluate', weights, '--data', corpus),
        'evaluate',
        'these are features of version 1.1.0; the weights were trained on version 0.9.0',
    )


def test_a_run_that_is_not_finished_has_no_weights(jmer, toys, tmp_path):
    run = shutil.copytree(toys / 'seed0', tmp_path / 'run', ignore=shutil.ignore_patterns('weights'))
    refused(jmer('evaluate', run), 'evaluate', 'this run has not finished')
    described = json.loads(jmer('describe', run)[1])
    assert not described['finished'] and described['step'] == 6


def test_a_workdir_of_another_experiment(jmer, toys):
    refused(
        jmer(*TOY, 'seed=0', 'epochs=9', '--workdir', toys / 'seed1'),
        'train',
        r'(?s)belongs to another experiment.*epochs: there 2, here 9\n  seed: there 1, here 0',
    )


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # TensorStore's late callbacks
def test_a_full_disk_while_training_loses_nothing(jmer, tmp_path):
    """A limit on the size of files stands for the full disk; the programs that JAX caches are smaller."""
    big = [*TOY, 'model.hidden=1024,512', '--workdir', tmp_path / 'run']
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        status, _, complaint = jmer(*big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1 and complaint.startswith('jmer train: ') and 'Traceback' not in complaint
    assert (
        f'{tmp_path / "run" / "checkpoints"}: could not save step' in complaint
        and 'File too large' in complaint
    )
    assert jmer(*big)[0] == 0


def test_publish_with_the_results_of_other_runs(jmer, toys, tmp_path):
    folder = tmp_path / 'early' / 'toy'
    status, told, _ = jmer(
        'publish', toys / 'seed0', folder, '--results', toys / 'seed0', toys / 'seed1', '--store', 'float16'
    )
    card = checkpoint.read_json(folder / 'card.json')
    assert status == 0 and card['params_sha256'] in told and card['stored_as'] == 'float16'
    uars = [
        checkpoint.read_json(toys / f'seed{seed}' / 'weights' / 'card.json')['metrics']['test']['uar']
        for seed in (0, 1)
    ]
    assert [one['uar'] for one in card['results']] == uars
    assert card['mean']['uar'] == pytest.approx(np.mean(uars))
    assert card['deviation']['uar'] == pytest.approx(np.std(uars, ddof=1))
    assert 'seed=1' in card['results'][1]['command']
    assert evaluated(jmer, tmp_path, folder)[0]['metrics']['uar'] == pytest.approx(uars[0], abs=0.02)


def test_a_card_of_figures_alone(jmer, toys, tmp_path):
    folder = tmp_path / 'early' / 'toy'
    assert jmer('publish', toys / 'seed0', folder, '--results', toys / 'seed0', '--store', 'none')[0] == 0
    card = checkpoint.read_json(folder / 'card.json')
    assert [path.name for path in folder.iterdir()] == ['card.json'] and len(card['results']) == 1
    assert not {'standardisation', 'groups', 'params_sha256'} & set(card)
    refused(
        jmer('evaluate', folder, '--data', 'toy'), 'evaluate',
        f'{folder}: a card of figures, without weights; they are made by: ' + card['command'],
    )


def test_results_of_another_recipe_are_not_published(jmer, toys, run, tmp_path):
    refused(
        jmer('publish', toys / 'seed0', tmp_path / 'out', '--results', toys / 'seed1', run),
        'publish',
        f'{run}: found another recipe than that of {toys / "seed0"}',
    )
    assert not (tmp_path / 'out').exists()


def test_predict_the_embedded_corpus(jmer, toys, tmp_path):
    """It needs no folder: its parts are known by name."""
    predictions, _ = predicted(jmer, tmp_path, toys / 'seed0', 'test')
    assert {p['id'][:4] for p in predictions} == {'test'}
    refused(
        jmer('predict', toys / 'seed0', 'tset'), 'predict',
        "nothing here belongs to 'tset'; name a part that is here .test, train"
    )


@pytest.fixture(scope='module')
def systems(tmp_path_factory):
    """Two systems of two seeds each, as one command leaves them."""
    folder = tmp_path_factory.mktemp('systems')
    for name, hidden in (('a', 8), ('b', 4)):
        assert cli.main([*TOY, f'model.hidden={hidden}', '--seeds', '2', '--also-test-selected',
                         '--workdir', str(folder / name)]) == 0
    return folder


def test_seeds_are_told_together(jmer, systems):
    described = json.loads(jmer('describe', systems / 'a')[1])
    assert [one['chosen_step'] for one in described['seeds']] == [
        described['cards'][f'seed{k}']['selected']['step'] for k in (0, 1)]
    card = described['cards']['seed1']
    assert '--seeds 2 --also-test-selected' in card['command'] and 'selection_gap' in card
    told = jmer(*TOY, '--seeds', 2, '--also-test-selected', '--workdir', systems / 'a')[1]
    assert '2 results' in told and 'chosen on the test: not a result' in told and '±' in told
    refused(jmer('predict', systems / 'a', 'test'), 'predict', 'several folds or seeds; name one of them: .*seed0')


def test_two_systems_are_compared(jmer, systems, toys, tmp_path):
    status, told, _ = jmer('compare', systems / 'a', systems / 'b', '--json', tmp_path / 'out.json')
    assert status == 0 and '95 % interval' in told and 'McNemar' in told
    assert json.loads((tmp_path / 'out.json').read_text())['metrics']['uar']['p'] > 0
    refused(jmer('compare', systems / 'a', toys / 'seed0'), 'compare', 'seeds')


def test_measurements_are_kept_beside_the_card_and_reported(jmer, systems, tmp_path):
    for what, word in (('robustness', 'area'), ('contribution', 'Shapley')):
        status, told, _ = jmer(what, systems / 'a' / 'seed0')
        assert status == 0 and word in told
        assert (systems / 'a' / 'seed0' / f'{what}.json').exists()
    page = tmp_path / 'page.html'
    status, told, _ = jmer('report', systems / 'a', systems / 'b', '--out', page, '--plots', tmp_path / 'plots')
    assert status == 0 and str(page) in told and '<html' in page.read_text()
    assert len(list((tmp_path / 'plots').glob('*.png'))) > 4


def test_the_page_of_results_is_in_step_with_the_cards(jmer):
    status, told, complaint = jmer('results', ROOT, '--check')
    assert status == 0 and 'in step' in told, complaint

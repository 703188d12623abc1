"""The trainer: what it writes, what it chooses, what it refuses."""

import dataclasses
import io
import json
import struct
from functools import cache

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

import jmer
from jmer import checkpoint, parallel, zoo
from jmer.data import synthetic
from jmer.data.corpus import Target
from jmer.data.pipeline import Pipeline
from jmer.data.splits import Protocol
from jmer.train import loop, use
from jmer.train.experiment import Data, Experiment, Loss, Optimizer
from jmer.train.log import read

STREAMS = ('text', 'audio', 'vision')
EXPERIMENT = Experiment(
    zoo.create('early', classes=6, hidden=(8,), pooling='mean', dropout=0.1),
    Data('toy', STREAMS, protocol=Protocol(validation=('validation',)), batch_size=32),
    Optimizer(rate=1e-2),
    epochs=3,
)


@cache
def corpus(seed=0, layout='utterance'):
    return synthetic.corpus(dialogues=(6, 3, 3), seed=seed, layout=layout)


def train(workdir, items=None, console=None, **changes):
    data = changes.pop('data', {})
    experiment = dataclasses.replace(EXPERIMENT, data=dataclasses.replace(EXPERIMENT.data, **data), **changes)
    cards = loop.train(
        experiment,
        items or corpus(),
        workdir,
        mesh=parallel.mesh(jax.devices()[:1]),
        console=console,
        command='jmer train x',
    )
    return cards[0] if len(cards) == 1 else cards


def untimed(lines):
    return [{k: v for k, v in line.items() if not k.startswith(('time/', 'memory/'))} for line in lines]


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run, its card, and what it told a screen that is no terminal."""
    workdir, told = tmp_path_factory.mktemp('runs') / 'finished', io.StringIO()
    return workdir, train(workdir, console=Console(file=told, width=200)), told.getvalue()


def test_what_a_run_leaves(finished):
    workdir, card, told = finished
    log = read(workdir / 'log.jsonl')
    steps = [line['step'] for line in log]
    assert steps == [3, 6, 9] and [line['epoch'] for line in log] == [1, 2, 3]
    for line in log:
        assert {
            'train/loss',
            'train/gradient_norm',
            'train/uar',
            'rate',
            'time/ms_per_step',
            'time/input_wait',
            'memory/peak_bytes',
            'validation/uar',
            'validation/nll',
        } <= set(line)
        assert line['rate'] == pytest.approx(1e-2) and line['train/loss'] > 0
        assert 0 <= line['time/input_wait'] <= 1
    assert checkpoint.Run(workdir).latest() == 9
    assert checkpoint.read_json(workdir / 'experiment.json')['model'] == zoo.describe(EXPERIMENT.model) | {
        'fields': json.loads(json.dumps(zoo.describe(EXPERIMENT.model)['fields']))
    }
    assert told.count('epoch') == 3 and 'validation/uar' in told and '\x1b' not in told, (
        'a line an evaluation'
    )
    model, variables, loaded = jmer.load(str(workdir))
    assert loaded == card and model == EXPERIMENT.model
    assert card['parameters'] == sum(x.size for x in jax.tree.leaves(variables['params']))
    assert card['command'] == 'jmer train x'


def scalars(file):
    """Of an event file: records of length (8 bytes), checksum (4), event, checksum (4)."""
    data, found = file.read_bytes(), {}
    while data:
        length = struct.unpack('<Q', data[:8])[0]
        event = Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    return found


def test_scalars_reach_tensorboard(finished):
    workdir, _, _ = finished
    (file,) = (workdir / 'tensorboard').iterdir()
    found = scalars(file)
    for line in read(workdir / 'log.jsonl'):
        for name in ('train/loss', 'validation/uar', 'rate'):
            assert found[name, line['step']] == pytest.approx(line[name])


def test_the_card_tells_who_was_seen_and_what_was_measured(finished):
    _, card, _ = finished
    parts = {part: {item.group for item in corpus().items if item.part == part} for part in synthetic.PARTS}
    assert {side: set(groups) for side, groups in card['groups'].items()} == parts
    for side in ('validation', 'test'):
        assert card['metrics'][side]['n'] == sum(item.part == side for item in corpus().items)
    assert 'train' not in card['metrics']


def test_the_moments_are_those_of_the_training_side(finished):
    _, card, _ = finished
    rows = np.concatenate(
        [item.streams['text'] for item in corpus().items if item.part == 'train' and 'text' in item.streams]
    )
    np.testing.assert_allclose(card['standardisation']['text']['mean'], rows.mean(0), rtol=1e-4, atol=1e-6)


def test_validation_and_test_never_touch_the_weights(finished, tmp_path):
    """Other validation and test items: the same log of training, the same latest parameters."""
    workdir, _, _ = finished
    items = tuple(
        x if x.part == 'train' else x._replace(streams={n: 2 - v for n, v in x.streams.items()})
        for x in corpus().items
    )
    train(tmp_path, corpus()._replace(items=items))
    for name, x in checkpoint.Run(workdir).read(9, 'state').items():
        np.testing.assert_array_equal(x, checkpoint.Run(tmp_path).read(9, 'state')[name])
    assert [line['validation/nll'] for line in read(tmp_path / 'log.jsonl')] != [
        line['validation/nll'] for line in read(workdir / 'log.jsonl')
    ]


def test_a_finished_run_called_again_changes_nothing(finished):
    workdir, card, _ = finished
    before = {p: x for p, x in snapshot(workdir).items() if 'tensorboard' not in p.parts}
    assert train(workdir) == card
    assert {p: x for p, x in snapshot(workdir).items() if 'tensorboard' not in p.parts} == before


@pytest.mark.parametrize(('monitor', 'best'), [('uar', max), ('nll', min)])
def test_the_best_epoch_is_chosen_and_patience_ends_the_run(tmp_path, monitor, best):
    """At a rate far too high the figures jump, so that the best is not the last."""
    card = train(
        tmp_path, optimizer=Optimizer(rate=0.3), epochs=40, patience=3, monitor=monitor
    )
    log = read(tmp_path / 'log.jsonl')
    values = [line[f'validation/{monitor}'] for line in log]
    chosen = values.index(best(values))
    assert len(log) == chosen + 1 + 3 < 40, 'three evaluations behind the best one and no more'
    assert card['selected'] == {'step': log[chosen]['step'], 'by': f'validation/{monitor}'}
    assert card['metrics']['validation'][monitor] == pytest.approx(values[chosen], abs=1e-6)
    kept = checkpoint.Run(tmp_path)
    assert kept.latest() == log[-1]['step']
    for name, x in kept.read(log[-1]['step'], 'progress/chosen/params').items():
        node = jmer.load(str(tmp_path))[1]['params']
        for key in name.split('/'):
            node = node[key]
        np.testing.assert_array_equal(node, x[0])


def test_evaluations_every_other_epoch_and_at_the_end(tmp_path):
    train(tmp_path, epochs=5, evaluate_every=2)
    assert [line['epoch'] for line in read(tmp_path / 'log.jsonl')] == [2, 4, 5]


@pytest.mark.parametrize(
    'options',
    [{'data': {'protocol': Protocol()}, 'monitor': 'no such figure'}, {'monitor': 'step', 'patience': 1}],
)
def test_nothing_chooses_but_the_last_epoch_counts(tmp_path, options):
    card = train(tmp_path, **options)
    log = read(tmp_path / 'log.jsonl')
    assert card['selected'] == {'step': log[-1]['step'], 'by': 'step'}


def test_without_a_validation_side_there_are_no_figures_of_one(tmp_path):
    card = train(tmp_path, data={'protocol': Protocol()})
    assert set(card['metrics']) == {'test'} and not card['groups']['validation']


def test_weights_for_others_need_no_test_side(tmp_path):
    card = train(tmp_path, data={'protocol': Protocol(test=(), validation=('validation',), train=('train',))})
    assert set(card['metrics']) == {'validation'} and card['groups']['test'] == []


KINDS = {
    'regression': (('valence', 'arousal'), 'ccc', True, lambda emotion: [emotion, -1.5]),
    'multilabel': (('sad', 'glad'), 'hamming_loss', False, lambda emotion: [emotion in (2, 3), emotion == 1]),
    'distribution': (
        ('sad', 'glad', 'else'),
        'kl',
        False,
        lambda emotion: np.eye(3)[emotion // 2] * 0.7 + 0.1,
    ),
}


@pytest.mark.parametrize('kind', KINDS)
def test_labels_of_every_kind(tmp_path, kind):
    """The test side is not labelled, and one regression target is constant: such figures are null."""
    names, monitor, higher, label = KINDS[kind]

    def relabelled(item):
        value = np.array(label(int(item.labels['emotion'])), np.float32)
        return item._replace(labels={'mood': np.full_like(value, np.nan) if item.part == 'test' else value})

    moody = corpus()._replace(
        items=tuple(relabelled(item) for item in corpus().items),
        spec=dataclasses.replace(corpus().spec, targets=(Target('mood', kind, names),)),
    )
    card = train(
        tmp_path,
        moody,
        epochs=2,
        monitor=monitor,
        data={'target': 'mood'},
        model=EXPERIMENT.model.clone(classes=len(names)),
    )
    values = [line[f'validation/{monitor}'] for line in read(tmp_path / 'log.jsonl')]
    assert card['metrics']['validation'][monitor] == pytest.approx((max if higher else min)(values), rel=1e-5)
    assert card['metrics']['test'].pop('n') == 0 and set(card['metrics']['test'].values()) == {None}
    if kind == 'regression':
        assert card['metrics']['validation']['pearson'] is None and card['metrics']['validation']['mae'] > 0
    assert jmer.load(str(tmp_path))[2]['target'] == card['target']


def test_a_second_task(tmp_path):
    """Its labels reach the model's loss, and those of the first alone judge."""
    items = tuple(item._replace(labels={**item.labels, 'meme': np.int32(item.labels['emotion'] > 2)})
                  for item in corpus().items)
    spec = dataclasses.replace(corpus().spec, targets=(*corpus().spec.targets, Target('meme', 'class', ('no', 'yes'))))
    two = corpus()._replace(items=items, spec=spec)
    model = zoo.create('magnet', classes=6, width=4, hidden=4)
    card = train(tmp_path / 'two', two, epochs=1, model=model, data={'also': ('meme',)})
    line, = read(tmp_path / 'two' / 'log.jsonl')
    assert line['train/loss_meme'] > 0 and line['train/loss_label'] > 0
    assert card['target']['name'] == 'emotion'
    other = two._replace(items=tuple(item._replace(labels={**item.labels, 'meme': np.int32(0)}) for item in items))
    with pytest.raises(ValueError, match='data_sha256'):
        train(tmp_path / 'two', other, epochs=1, model=model, data={'also': ('meme',)})


def spoil(monkeypatch, at, value=np.nan):
    """Batch `at` of every run holds a bad value from now on."""
    stream = Pipeline.stream

    def spoilt(self, seed, step):
        batch = stream(self, seed, step)
        if step == at:
            batch.streams['text'].x[0] = value
            batch.streams['text'].mask[0] = True
        return batch

    monkeypatch.setattr(Pipeline, 'stream', spoilt)


def test_a_bad_step_is_named_and_the_good_checkpoint_stays(finished, tmp_path, monkeypatch):
    """And when what was wrong is put right, the run goes on as if nothing had been."""
    workdir, card, _ = finished
    with monkeypatch.context() as patch:
        spoil(patch, at=7)
        with pytest.raises(FloatingPointError, match=r'step 8 \(seed 0\) are not finite'):
            train(tmp_path)
        assert checkpoint.Run(tmp_path).steps() == [3, 6]
        before = snapshot(tmp_path / 'checkpoints')
        with pytest.raises(FloatingPointError, match='step 8 '):
            train(tmp_path)
        assert snapshot(tmp_path / 'checkpoints') == before and not (tmp_path / 'weights').exists()
    with (tmp_path / 'log.jsonl').open('a') as log:  # of an evaluation whose checkpoint was never finished
        log.write('{"step": 9, "epoch": 3}\n{"step": 12, "ep')
    assert train(tmp_path) == card
    assert untimed(read(tmp_path / 'log.jsonl')) == untimed(read(workdir / 'log.jsonl'))


def test_patience_outlives_an_interruption(tmp_path, monkeypatch):
    """What was best, and for how long, is part of what a run remembers."""
    options = {
        'optimizer': Optimizer(rate=0.3),
        'epochs': 40,
        'patience': 3,
        'monitor': 'nll',
    }
    card = train(tmp_path / 'whole', **options)
    log = untimed(read(tmp_path / 'whole' / 'log.jsonl'))
    with monkeypatch.context() as patch:
        spoil(patch, at=log[-2]['step'])
        with pytest.raises(FloatingPointError):
            train(tmp_path / 'cut', **options)
    assert train(tmp_path / 'cut', **options) == card
    assert untimed(read(tmp_path / 'cut' / 'log.jsonl')) == log


def test_a_run_goes_on_over_another_number_of_devices(finished, tmp_path, monkeypatch):
    workdir, _, _ = finished
    with monkeypatch.context() as patch:
        spoil(patch, at=7)
        with pytest.raises(FloatingPointError):
            train(tmp_path)
    loop.train(EXPERIMENT, corpus(), tmp_path, mesh=parallel.mesh(jax.devices()[:4]))
    before, after = untimed(read(workdir / 'log.jsonl')), untimed(read(tmp_path / 'log.jsonl'))
    assert before[:2] == after[:2]
    assert after[2] == pytest.approx(before[2], rel=1e-4)


def test_a_run_that_is_bad_from_the_start_saves_nothing(tmp_path, monkeypatch):
    spoil(monkeypatch, at=0, value=1e38)
    with pytest.raises(FloatingPointError, match=r'step 1 \(seed 0\) are not'):
        train(tmp_path)
    assert checkpoint.Run(tmp_path).latest() is None


def test_a_folder_of_another_experiment_is_refused_difference_by_difference(finished):
    workdir, _, _ = finished
    before = snapshot(workdir)
    with pytest.raises(ValueError) as fault:
        train(workdir, epochs=9, optimizer=Optimizer(rate=0.5), data={'batch_size': 16})
    assert f'{workdir} belongs to another experiment' in str(fault.value)
    assert [line.strip() for line in str(fault.value).splitlines()[1:]] == [
        'data.batch_size: there 32, here 16',
        'epochs: there 3, here 9',
        'optimizer.rate: there 0.01, here 0.5',
    ]
    with pytest.raises(ValueError, match='data_sha256: there'):
        train(workdir, corpus(seed=1))
    items = tuple(item._replace(labels={'emotion': np.array(0, np.int32)}) for item in corpus().items)
    with pytest.raises(ValueError, match='data_sha256: there'):
        train(workdir, corpus()._replace(items=items))
    assert snapshot(workdir) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / 'thesis.tex').write_text('x')
    with pytest.raises(
        ValueError, match=r'is not empty and holds no experiment.json \(it holds thesis.tex\)'
    ):
        train(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']
    (tmp_path / 'experiment.json').write_text('{"model": ')
    with pytest.raises(ValueError, match=r'experiment.json: not valid JSON'):
        train(tmp_path)


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path):
    (tmp_path / '.experiment.json.x1y2').write_text('{')
    assert train(tmp_path, epochs=1)['selected']['step'] == 3


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / 'run').write_text('x')
    with pytest.raises(OSError, match=str(tmp_path / 'run')):
        train(tmp_path / 'run')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'epochs': 0}, 'epochs: found 0, expected 1 or more'),
        ({'evaluate_every': 0}, 'evaluate_every: found 0'),
        ({'accumulate': 0}, 'accumulate: found 0'),
        ({'accumulate': 5}, 'data.batch_size: found 32, expected a multiple of 5'),
        ({'seed': -1}, 'seed: found -1'),
        ({'patience': -1}, 'patience: found -1'),
        ({'monitor': 'f1'}, "monitor: found 'f1', expected one of step, accuracy, uar"),
        ({'optimizer': Optimizer(rate=-1.0)}, 'optimizer.rate: found -1.0'),
        ({'optimizer': Optimizer(warmup=1.5)}, 'optimizer.warmup: found 1.5, expected 0 to 1'),
        ({'optimizer': Optimizer(freeze=('encoder/*',))}, "no parameter matches 'encoder/"),
        (
            {'model': zoo.create('early', classes=5)},
            'model.classes: found 5, expected 6, the names of target emotion',
        ),
        (
            {'model': zoo.create('early', classes=6, streams=('eeg',))},
            'model.streams: eeg not among data.streams',
        ),
        ({'model': zoo.create('early', classes=6, pooling='median')}, "pooling 'median'"),
        ({'model': zoo.create('bclstm', classes=6)}, 'bclstm is a model of the family dialogue; toy holds'),
        ({'data': {'batch_size': 0}}, 'data.batch_size: found 0'),
        ({'data': {'buckets': 0}}, 'data.buckets: found 0'),
        ({'data': {'drop_modalities': 1.5}}, 'data.drop_modalities: found 1.5'),
        ({'data': {'pool': (('audoi', 2),)}}, "data.pool: found 'audoi', 2; expected one of data.streams"),
        ({'data': {'truncate': (('audio', 0),)}}, "data.truncate: found 'audio', 0"),
        ({'data': {'stand_ins': (('audio', 'eeg'),)}}, 'data.stand_ins: found audio for eeg'),
        ({'data': {'target': 'mood'}}, "no target 'mood'"),
        ({'data': {'also': ('meme',)}}, 'data.also: found meme, but early has no loss of its own'),
        ({'data': {'also': ('mood',)}, 'model': zoo.create('magnet', classes=6)}, "no target 'mood'"),
        ({'data': {'also': ('emotion',)}, 'model': zoo.create('magnet', classes=6)},
         'data.also: found emotion, expected targets beside data.target'),
        ({'data': {'protocol': Protocol(test=('fold3',))}}, r'no part fold3 \(test\)'),
        ({'loss': Loss(name='mae')}, "loss: found 'mae'"),
    ],
    ids=lambda x: x if isinstance(x, str) else '',
)
def test_an_experiment_that_cannot_run_leaves_no_mark(tmp_path, changes, message):
    """Else the corrected command would be refused the folder."""
    with pytest.raises(ValueError, match=message):
        train(tmp_path / 'run', **changes)
    assert not (tmp_path / 'run').exists()


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'a multiple of 8 \(8 devices, 1 accumulated parts\)'):
        loop.train(
            dataclasses.replace(EXPERIMENT, data=dataclasses.replace(EXPERIMENT.data, batch_size=12)),
            corpus(),
            tmp_path / 'run',
        )


def test_dialogues(tmp_path):
    """Turns are what is counted, dialogues what is held out."""
    experiment = Experiment(
        zoo.create('bclstm', classes=6, streams=STREAMS, width=4, hidden=4, layers=1, dropout=0.1),
        Data('toy-dialogue', STREAMS, protocol=Protocol(held_out=2), batch_size=4),
        Optimizer(),
        epochs=1,
    )
    card, = loop.train(experiment, corpus(layout='dialogue'), tmp_path, mesh=parallel.mesh(jax.devices()[:1]))
    turns = sum(len(item.speakers) for item in corpus(layout='dialogue').items if item.part == 'test')
    assert card['metrics']['test']['n'] == turns
    assert len(card['groups']['validation']) == 2

    for name, item in zip('ab', corpus(layout='dialogue').items, strict=False):
        np.savez(tmp_path / f'{name}.npz', text=item.streams['text'], speakers=item.speakers + 5)
    both = use.predict(str(tmp_path), [str(tmp_path / 'a.npz'), str(tmp_path / 'b.npz')])
    lengths = [len(item.speakers) for item in corpus(layout='dialogue').items[:2]]
    assert [p['id'] for p in both] == [
        f'{tmp_path / name}.npz#{k}' for name, n in zip('ab', lengths, strict=True) for k in range(n)
    ], 'turns of two clips have two names'
    for alone, beside in zip(
        use.predict(str(tmp_path), [str(tmp_path / 'b.npz')]), both[lengths[0] :], strict=True
    ):
        assert alone['probabilities'] == pytest.approx(beside['probabilities'], abs=1e-6)


def test_all_the_options_at_once(tmp_path):
    card = train(
        tmp_path,
        epochs=2,
        compute_dtype='bfloat16',
        optimizer=Optimizer(schedule='cosine', warmup=0.2, clip=1.0, freeze=('head/dense_0/*',)),
        data={
            'drop_modalities': 0.2,
            'noise': 0.1,
            'pool': (('audio', 5),),
            'truncate': (('text', 6),),
            'stand_ins': (('audio', 'vision'),),
        },
    )
    first, last = (
        checkpoint.Run(tmp_path).read(step, 'state/params') for step in checkpoint.Run(tmp_path).steps()
    )
    assert {name for name in first if (first[name] != last[name]).any()} == {
        'head/dense_1/bias',
        'head/dense_1/kernel',
    }
    assert {x.dtype for x in last.values()} == {np.dtype('float32')} and card['metrics']['test']['nll'] < 3

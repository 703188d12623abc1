"""Seeds as an axis, folds as runs: each result is that of a run of its own."""

import dataclasses

import jax
import numpy as np
import pytest

import jmer
from jmer import checkpoint, parallel, zoo
from jmer.data import synthetic
from jmer.data.splits import Protocol
from jmer.train import loop, predictions
from jmer.train.experiment import Data, Experiment, Optimizer
from jmer.train.log import read

STREAMS = ('text', 'audio', 'vision')
EXPERIMENTS = {
    'dropout': (zoo.create('early', classes=6, hidden=(8,), pooling='mean', dropout=0.3), 'toy'),
    'dropout and batch statistics': (zoo.create('gmu', classes=6, streams=STREAMS, hidden=4, dropout=0.3), 'toy'),
    'recurrence': (zoo.create('bclstm', classes=6, streams=STREAMS, width=4, hidden=4, layers=1, dropout=0.1),
                   'toy-dialogue'),
}


def corpus(name):
    return synthetic.corpus(dialogues=(8, 4, 4), layout='dialogue' if name == 'toy-dialogue' else 'utterance')


def train(workdir, what='dropout', devices=1, via='jit', **changes):
    model, name = EXPERIMENTS[what]
    data = Data(name, STREAMS, protocol=changes.pop('protocol', Protocol(validation=('validation',))), batch_size=8,
                buckets=2, drop_modalities=0.1)
    experiment = dataclasses.replace(Experiment(model, data, Optimizer(rate=1e-2), epochs=3), **changes)
    return loop.train(experiment, corpus(name), workdir, via=via, mesh=parallel.mesh(jax.devices()[:devices]))


def smooth(folder):
    """The figures of a log that a rounding error cannot make jump."""
    return [{k: v for k, v in line.items() if not k.startswith(('time/', 'memory/')) and not k.endswith('ece15')}
            for line in read(folder / 'log.jsonl')]


def assert_same_result(one, other, rel=1e-5):
    """Logs, choices, figures and weights of two folders agree."""
    assert len(smooth(one)) == len(smooth(other))
    for a, b in zip(smooth(one), smooth(other), strict=True):
        assert a == pytest.approx(b, rel=rel, abs=1e-6)
    cards = [checkpoint.read_json(folder / 'weights' / 'card.json') for folder in (one, other)]
    assert cards[0]['selected'] == cards[1]['selected'] and cards[0]['seed'] == cards[1]['seed']
    for name in ('accuracy', 'uar', 'nll'):
        assert cards[0]['metrics']['test'][name] == pytest.approx(cards[1]['metrics']['test'][name], rel=1e-4)
    weights = [jax.tree.leaves(jmer.load(str(folder))[1]) for folder in (one, other)]
    for x, y in zip(*weights, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('what', ['dropout and batch statistics', 'recurrence'])
def test_every_seed_ends_as_it_would_have_alone(tmp_path, what):
    cards = train(tmp_path / 'all', what, seed=4, seeds=3)
    assert [card['seed'] for card in cards] == [4, 5, 6]
    train(tmp_path / 'alone', what, seed=5)
    assert_same_result(tmp_path / 'all' / 'seed5', tmp_path / 'alone')
    assert len({card['params_sha256'] for card in cards}) == 3


def test_a_seed_whose_patience_ends_stops_while_others_go_on(tmp_path):
    """At a rate far too high the figures jump, so that seeds stop at different times."""
    options = {'optimizer': Optimizer(rate=0.2), 'epochs': 20, 'patience': 2, 'monitor': 'nll'}
    train(tmp_path / 'all', seeds=3, **options)
    lengths = [len(read(tmp_path / 'all' / f'seed{k}' / 'log.jsonl')) for k in range(3)]
    assert len(set(lengths)) > 1 and max(lengths) < 20
    first = lengths.index(min(lengths))
    train(tmp_path / 'alone', seed=first, **options)
    alone = read(tmp_path / 'alone' / 'log.jsonl')
    assert [line['step'] for line in alone] == [
        line['step'] for line in read(tmp_path / 'all' / f'seed{first}' / 'log.jsonl')]
    assert checkpoint.read_json(tmp_path / 'all' / 'selection.json')['seeds'][first]['step'] == (
        checkpoint.read_json(tmp_path / 'alone' / 'selection.json')['seeds'][0]['step'])


@pytest.mark.parametrize(('devices', 'via', 'seeds'), [(2, 'jit', 2), (4, 'jit', 2)])
def test_seeds_over_several_devices(tmp_path, devices, via, seeds):
    """Two seeds on two devices are split by seed, on four by rows."""
    train(tmp_path / 'one', seeds=seeds)
    train(tmp_path / 'many', devices=devices, via=via, seeds=seeds)
    for k in range(seeds):
        assert_same_result(tmp_path / 'one' / f'seed{k}', tmp_path / 'many' / f'seed{k}', rel=1e-3)


def test_pmap_takes_an_axis_of_seeds(tmp_path):
    """Without anything drawn at random the two doors agree."""
    still = {'model': zoo.create('early', classes=6, hidden=(8,), dropout=0.0), 'seeds': 2}
    protocol = Protocol(validation=('validation',))
    for via in ('jit', 'pmap'):
        experiment = Experiment(data=Data('toy', STREAMS, protocol=protocol, batch_size=8), epochs=2, **still)
        loop.train(experiment, corpus('toy'), tmp_path / via, via=via, mesh=parallel.mesh(jax.devices()[:2]))
    assert_same_result(tmp_path / 'jit' / 'seed1', tmp_path / 'pmap' / 'seed1', rel=1e-4)


def test_every_part_judges_once_in_a_run_of_its_own(tmp_path):
    cards = train(tmp_path / 'all', folds='parts', seeds=2, epochs=1, protocol=Protocol(held_out=2))
    assert [(card['data']['protocol']['test'], card['seed']) for card in cards] == [
        ([part], seed) for part in ('test', 'train', 'validation') for seed in (0, 1)]
    train(tmp_path / 'alone', seeds=2, epochs=1, protocol=Protocol(test=('train',), held_out=2))
    for seed in ('seed0', 'seed1'):
        assert_same_result(tmp_path / 'all' / 'train' / seed, tmp_path / 'alone' / seed)


def test_groups_can_be_left_out_one_by_one():
    found = corpus('toy')
    groups = {item.group for item in found.items}
    assert loop.folds(found, 'groups') == sorted(groups)
    splits = loop.split(found, Protocol(test=(min(groups),)))
    assert splits.test.groups == {min(groups)} and splits.train.groups == groups - {min(groups)}


def test_the_choice_is_written_before_the_test_is_seen(tmp_path, monkeypatch):
    """A kill in between loses nothing; a choice that changes afterwards is refused."""
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, '_judge', killed)
        train(tmp_path)
    choice = checkpoint.read_json(tmp_path / 'selection.json')
    card, = train(tmp_path)
    assert choice['by'] == 'validation/uar'
    assert choice['seeds'][0]['step'] == card['selected']['step']
    checkpoint.write_json(tmp_path / 'selection.json', {**choice, 'by': 'test/uar'})
    with pytest.raises(ValueError, match='another choice was written down'):
        train(tmp_path)


def test_predictions_are_kept_of_both_sides(tmp_path):
    card, = train(tmp_path, 'recurrence')
    sides = predictions.read(tmp_path / 'predictions.npz')
    assert set(sides) == {'validation', 'test'}
    test = sides['test']
    assert len(test.ids) == card['metrics']['test']['n'] == len(set(test.ids))
    assert set(test.groups) == set(card['groups']['test'])
    assert (test.scores.argmax(-1) == test.truth).mean() == pytest.approx(card['metrics']['test']['accuracy'])
    (tmp_path / 'predictions.npz').write_bytes(b'PK nothing')
    with pytest.raises(ValueError, match=r'predictions\.npz: damaged'):
        predictions.read(tmp_path / 'predictions.npz')


def test_what_the_test_would_have_chosen_stands_apart(tmp_path):
    """The honest figures stay as they are; the other ones are the best of all evaluations."""
    plain = train(tmp_path / 'plain', seeds=2)
    cards = train(tmp_path / 'both', seeds=2, also_test_selected=True)
    for one, both in zip(plain, cards, strict=True):
        assert one['metrics'] == both['metrics'] and one['params_sha256'] == both['params_sha256']
        assert 'test_selected' not in one
        assert both['test_selected']['accuracy'] >= both['metrics']['test']['accuracy']
        assert both['test_selected']['nll'] <= both['metrics']['test']['nll']
        assert both['selection_gap']['accuracy'] == pytest.approx(
            both['test_selected']['accuracy'] - both['metrics']['test']['accuracy'])
        assert min(both['selection_gap'].values()) >= 0
    assert not (tmp_path / 'both' / 'evaluations').exists(), 'the weights kept for it are gone'
    assert train(tmp_path / 'both', seeds=2, also_test_selected=True) == cards

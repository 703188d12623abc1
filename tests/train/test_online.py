"""A user's conversation turn by turn, and what is refused before a model of conversations reads anything."""

import dataclasses
import json
from functools import cache

import jax
import numpy as np
import pytest

from jmer import cli, parallel, zoo
from jmer.data import synthetic
from jmer.data.corpus import Corpus, Target
from jmer.data.splits import Protocol
from jmer.train import loop, use
from jmer.train.experiment import Data, Experiment, Optimizer

STREAMS = ('text', 'audio')
EXPERIMENT = Experiment(
    zoo.create('sacl_lstm', classes=6, streams=STREAMS, width=4, layers=1, speakers=4, causal=True),
    Data('toy-dialogue', STREAMS, protocol=Protocol(validation=('validation',)), batch_size=4),
    Optimizer(rate=1e-2), monitor='step', epochs=1)


@cache
def corpus() -> Corpus:
    return synthetic.corpus(dialogues=(4, 2, 2), layout='dialogue')


def train(folder, model=EXPERIMENT.model, items=None):
    experiment = dataclasses.replace(EXPERIMENT, model=model)
    loop.train(experiment, items or corpus(), folder, mesh=parallel.mesh(jax.devices()[:1]))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    train(folder)
    return folder


@pytest.fixture(scope='module')
def conversations(tmp_path_factory):
    """One of five turns without audio, and a whole one."""
    folder = tmp_path_factory.mktemp('conversations')
    for name, item, streams, turns in zip('ab', corpus().items, (STREAMS[:1], STREAMS), (5, None), strict=False):
        arrays = {'speakers': item.speakers, **{s: item.streams[s] for s in streams}}
        np.savez(folder / f'{name}.npz', **{array: x[:turns] for array, x in arrays.items()})
    return [str(folder / 'a.npz'), str(folder / 'b.npz')]


def test_turn_by_turn_a_causal_model_says_the_same(run, conversations, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, '_prepare', lambda: None)
    online, whole = (use.predict(str(run), conversations, online) for online in (True, False))
    assert [p['id'] for p in online] == [p['id'] for p in whole]
    for one, other in zip(online, whole, strict=True):
        assert one['probabilities'] == pytest.approx(other['probabilities'], abs=1e-6)
    cut = dict(np.load(conversations[1]))
    np.savez(tmp_path / 'b.npz', **{name: x[:2] for name, x in cut.items()})
    said = ['predict', str(run), str(tmp_path / 'b.npz'), '--online', '--json', str(tmp_path / 'out.json')]
    assert cli.main(said) == 0
    begun = json.loads((tmp_path / 'out.json').read_text())['predictions']
    for one, other in zip(begun, online[5:7], strict=True):
        assert one['probabilities'] == pytest.approx(other['probabilities'], abs=1e-6)


def test_what_cannot_be_said_turn_by_turn(run, conversations, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_prepare', lambda: None)
    assert cli.main(['predict', str(run), 'test', '--online']) == 1
    assert '--online: found parts of a corpus, expected files' in capsys.readouterr().err
    train(tmp_path / 'run', zoo.create('sacl_lstm', classes=6, streams=STREAMS, width=2, layers=1, speakers=4))
    assert cli.main(['predict', str(tmp_path / 'run'), *conversations, '--online']) == 1
    assert 'sacl_lstm: field causal: found False' in capsys.readouterr().err


def test_more_speakers_than_the_model_has_states_for(run, tmp_path):
    """In training, evaluation and prediction alike."""
    crowd = 1 + max(int(item.speakers.max()) for item in corpus().items)
    few = zoo.create('sacl_lstm', classes=6, streams=STREAMS, width=2, layers=1, speakers=crowd - 1)
    message = f'^sacl_lstm: field speakers: found a dialogue of {crowd} speakers, expected at most {crowd - 1}$'
    with pytest.raises(ValueError, match=message):
        train(tmp_path / 'run', few)
    assert not (tmp_path / 'run').exists()
    turns = 5
    text = np.zeros((turns, corpus().spec.stream('text').width), np.float32)
    np.savez(tmp_path / 'crowd.npz', text=text, speakers=np.arange(turns))
    for online in (True, False):
        with pytest.raises(ValueError, match=r'^sacl_lstm: field speakers: found a dialogue of 5 speakers, expected at '
                                             r'most 4$'):
            use.predict(str(run), [str(tmp_path / 'crowd.npz')], online)


def test_a_kind_of_label_that_the_loss_does_not_take(tmp_path):
    spec, items = corpus()
    values = [item._replace(labels={'emotion': np.zeros((len(item.speakers), 6), np.float32)}) for item in items]
    for kind in ('regression', 'multilabel', 'distribution'):
        other = dataclasses.replace(spec, targets=(Target('emotion', kind, spec.targets[0].names),))
        with pytest.raises(ValueError, match=rf"^data.target: found 'emotion' of the kind {kind}, but the loss of "
                                             r'sacl_lstm takes the kinds class$'):
            train(tmp_path / 'run', items=Corpus(other, tuple(values)))
    assert not (tmp_path / 'run').exists()

"""Rare classes that are drawn more often and weigh more, in runs of the trainer."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

from jmer import losses, parallel, stages, zoo
from jmer.data import synthetic
from jmer.data.corpus import Corpus
from jmer.data.pipeline import class_counts
from jmer.data.splits import Protocol
from jmer.train import course, loop
from jmer.train.experiment import Data, Experiment, Loss, Optimizer
from jmer.train.log import read
from jmer.types import Batch

EXPERIMENT = Experiment(
    zoo.create('early', classes=6, streams=('text', 'audio'), hidden=(4,), pooling='mean', dropout=0.0),
    Data('toy', ('text', 'audio'), protocol=Protocol(validation=('validation',)), batch_size=16),
    Optimizer('sgd', rate=1e-2, weight_decay=0.0),
    epochs=1,
)


@cache
def corpus():
    """One training item in ten has the class 0, all others the class 1."""
    spec, items = synthetic.corpus(dialogues=(8, 2, 2))
    items = [item._replace(labels=item.labels | {'emotion': np.array(int(k % 10 > 0), np.int32)})
             for k, item in enumerate(items)]
    return Corpus(spec, tuple(items))


def train(workdir, **changes):
    data = dataclasses.replace(EXPERIMENT.data, **changes.pop('data', {}))
    experiment = dataclasses.replace(EXPERIMENT, data=data, **changes)
    return loop.train(experiment, corpus(), workdir, mesh=parallel.mesh(jax.devices()[:1]))[0]


def test_a_run_draws_and_weighs_by_class(tmp_path):
    plain = train(tmp_path / 'plain')
    weighed = train(tmp_path / 'weighed', loss=Loss(balance=1.0))
    drawn = train(tmp_path / 'drawn', data={'balance': 1.0})
    start = {name: read(tmp_path / name / 'log.jsonl')[0] for name in ('plain', 'weighed', 'drawn')}
    # Both let the rare class make half of the loss: the model knows little of it, so there is more to lose.
    assert start['weighed']['train/loss'] != start['plain']['train/loss']
    assert abs(start['drawn']['train/loss'] - start['weighed']['train/loss']) < abs(
        start['plain']['train/loss'] - start['weighed']['train/loss'])
    assert start['plain']['step'] == start['drawn']['step'], 'an epoch has as many steps'
    for name in ('validation', 'test'):
        assert plain['metrics'][name]['n'] == drawn['metrics'][name]['n'] == weighed['metrics'][name]['n']
    assert drawn['data']['balance'] == 1.0 and weighed['training']['loss']['balance'] == 1.0


def test_the_weights_are_those_of_the_training_items_in_every_stage():
    target = corpus().spec.target('emotion')
    items = corpus().items[:30]
    counts = class_counts(items, target)
    assert counts.tolist() == [3, 27, 0, 0, 0, 0]
    label = losses.Label(np.array([0, 1, 1], np.int32), np.array([True, True, False]))
    batch = Batch({}, np.ones(3, bool), {'emotion': label})
    terms = {'label': losses.Term(np.ones(3, np.float32), np.array([1, 1, 0], np.float32))}
    stage = stages.Stage('only', lambda model, learner, batch: stages.Result(None, terms, 'memory'))
    learner = stages.Learner(None, None, (), np.ones((), int), jax.random.key(0))

    def result(balance):
        experiment = dataclasses.replace(EXPERIMENT, loss=Loss(balance=balance))
        (balanced,) = course._balanced((stage,), experiment, target, items)
        return balanced.objective(EXPERIMENT.model, learner, batch)

    assert result(0.0).terms is terms
    found = result(1.0)
    assert found.memory == 'memory'
    np.testing.assert_allclose(found.terms['label'].weight, [30 / (2 * 3), 30 / (2 * 27), 0], rtol=1e-6)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'loss': Loss(balance=2.0)}, 'balance: found 2.0'),
    ({'data': {'balance': -1.0}}, 'balance: found -1.0'),
])
def test_what_cannot_be_balanced_leaves_no_mark(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / 'run', **changes)
    assert not (tmp_path / 'run' / 'experiment.json').exists()

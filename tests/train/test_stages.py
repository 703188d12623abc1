"""Trainings of several stages: what moves when, what is remembered, and what is left in the end."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

import jmer
from jmer import stages, zoo
from jmer.data.corpus import Corpus, Target
from jmer.data.pipeline import pipeline
from jmer.data.splits import Protocol
from jmer.data.synthetic import corpus as toy
from jmer.train import loop
from jmer.train.course import course_of
from jmer.train.experiment import Data, Experiment, Optimizer
from jmer.train.log import read
from jmer.train.step import init_states
from tests.test_models import CASES

STREAMS = ('text', 'audio', 'vision')
NAMES = ('ifmmin', 'imder', 'mmim', 'mmin', 'self_mm')


def test_stages_follow_one_another_or_take_turns():
    def of(*shares):
        return tuple(stages.Stage(f'stage {k}', None, share) for k, share in enumerate(shares))

    assert stages.plan(of(0.0), 3) == [0, 0, 0]
    assert stages.plan(of(0.5, 0.5), 5) == [0, 0, 1, 1, 1]
    assert stages.plan(of(0.25, 0.5, 0.25), 8) == [0, 0, 1, 1, 1, 1, 2, 2]
    assert stages.plan(of(0.0, 0.0), 4) == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r'epochs: found 3, expected .* stage 0, stage 1, a multiple of 2'):
        stages.plan(of(0.0, 0.0), 3)
    with pytest.raises(ValueError, match=r'epochs: found 1, expected enough for each of the stages'):
        stages.plan(of(0.5, 0.5), 1)


@cache
def corpus():
    """The toy corpus with a second target: one real value, whose sign is that of two halves of the classes."""
    made = toy(dialogues=(6, 3, 3))
    items = tuple(item._replace(labels={**item.labels, 'sentiment': np.array(
        [item.labels['emotion'] - 2.5], np.float32)}) for item in made.items)
    spec = dataclasses.replace(made.spec, targets=(*made.spec.targets, Target('sentiment', 'regression', ('value',))))
    return Corpus(spec, items)


def experiment(name, target='sentiment', **changes):
    classes = 1 if target == 'sentiment' else 6
    model = zoo.create(name, classes=classes, **CASES[name])
    data = Data('toy', tuple(model.streams), target=target, protocol=Protocol(validation=('validation',)),
                batch_size=8)
    settings = {'epochs': 4, 'monitor': 'mae' if target == 'sentiment' else 'nll'} | changes
    return Experiment(model, data, Optimizer(rate=1e-2), **settings)


def names_of(tree):
    return [jax.tree_util.keystr(path, simple=True, separator='/')
            for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.slow if name == 'imder' else ())
                                  for name in NAMES])
def test_every_stage_moves_what_it_says(name):
    chosen = experiment(name)
    target = corpus().spec.target('sentiment')
    items = [item for item in corpus().items if item.part == 'train']
    batches = pipeline(items, corpus().spec, chosen.data.streams, 'sentiment', 8)
    batch = batches.stream(0, 0)
    course = course_of(chosen, target, items, batches)
    states = init_states(chosen.model, course.optimizer, batch, [0], course.teacher, course.memory)
    state = jax.tree.map(lambda x: x[0], states)
    for k, (stage, step) in enumerate(zip(course.stages, course.steps, strict=True)):
        new, sums = jax.jit(step)(state, batch, jax.random.key(1))
        assert sums['finite'] and all(np.isfinite(value) for value, _ in sums['loss'].values())
        moved = {path for path, a, b in zip(names_of(state.params), jax.tree.leaves(state.params),
                                            jax.tree.leaves(new.params), strict=True) if not np.array_equal(a, b)}
        allowed = {path for path in names_of(state.params) if stage.moves is None or stage.moves(path)}
        assert moved and moved <= allowed
        if name in ('mmin', 'ifmmin'):
            assert len(moved) > 0.8 * len(allowed)
        remembered = [not np.array_equal(a, b) for a, b in zip(
            jax.tree.leaves(state.memory), jax.tree.leaves(new.memory), strict=True)]
        assert any(remembered) == ((name, k) in (('self_mm', 0), ('mmim', 1)))
        state = new


@pytest.mark.parametrize(('name', 'target'), [('mmin', 'emotion'), ('mmim', 'sentiment'), ('self_mm', 'emotion')])
def test_a_run_goes_on_between_stages_and_keeps_the_model_alone(tmp_path, monkeypatch, name, target):
    chosen = experiment(name, target, seeds=2)
    loop.train(chosen, corpus(), tmp_path / 'whole')
    enter = loop._enter

    def stop(fit, state, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return enter(fit, state, epoch)

    monkeypatch.setattr(loop, '_enter', stop)
    with pytest.raises(KeyboardInterrupt):
        loop.train(chosen, corpus(), tmp_path / 'cut')
    monkeypatch.setattr(loop, '_enter', enter)
    cards = loop.train(chosen, corpus(), tmp_path / 'cut')

    plan = stages.plan(zoo.module(name).stages(chosen.model), chosen.epochs)
    steps = [line['step'] for line in read(tmp_path / 'cut' / 'seed1' / 'log.jsonl')]
    final = [step for step, stage in zip(steps, plan, strict=True) if stage == max(plan)]
    assert all(card['selected']['step'] in final for card in cards)
    for seed in ('seed0', 'seed1'):
        kept, again = (jmer.load(str(tmp_path / run / seed))[1] for run in ('whole', 'cut'))
        assert 'teacher' not in kept['params']
        for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_memory_is_not_divided_among_devices(tmp_path):
    with pytest.raises(ValueError, match=r"via: found 'pmap', expected 'jit': self_mm remembers items"):
        loop.train(experiment('self_mm'), corpus(), tmp_path / 'run', via='pmap')
    assert not (tmp_path / 'run').exists()

"""Recursive joint attention and joint cross-attention against the authors' numbers, step by step."""

import jax.numpy as jnp
import numpy as np
import pytest

from jmer import losses
from jmer.models.utterance import jca, rja
from jmer.types import Label

from . import fusion, parity


def recursive(fixture):
    h = fixture.hparams
    return rja.Model(2, steps=h['seq_len'], regions=h['spatial'], width=h['dim'], rounds=h['num_seq'],
                     hidden=h['regressor'], dropout=0.0, attention_dropout=0.0)


def joint(fixture):
    h = fixture.hparams
    return jca.Model(2, steps=h['seq_len'], width=h['encoder'], attention=h['attn'],
                     hidden=len(fixture['param/vregressor.0.bias']), dropout=0.0)


def to_batch(inputs):
    return fusion.batch_of(audio=fusion.sequence(inputs['audio']), vision=fusion.sequence(inputs['visual']))


def named_outputs(fixture, out):
    """Theirs has one axis more in one of the systems, and calls its scores valence and arousal."""
    return {name: out.aux['steps'][..., k].reshape(fixture[f'output/{name}'].shape)
            for k, name in enumerate(('valence', 'arousal'))}


def all_losses(out, inputs):
    """All steps of all items as one list of values; the authors add up both losses."""
    named = {}
    for k, name in enumerate(('valence', 'arousal')):
        truth = jnp.asarray(inputs[name]).reshape(-1, 1)
        term = losses.ccc(out.aux['steps'][..., k].reshape(-1, 1), Label(truth, np.ones(len(truth), bool)),
                          unbiased=True)
        named[name[0]] = fusion.total(term)
    return named | {'total': named['v'] + named['a']}


@pytest.mark.parametrize(('module', 'adapt', 'name'), [
    *((rja, recursive, name) for name in parity.names('rja')),
    *((jca, joint, name) for name in parity.names('jca'))])
def test_equals_the_authors(module, adapt, name):
    fixture = parity.load(name)
    model = adapt(fixture)
    fusion.assert_equals(
        fixture,
        lambda state: module.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs), train=train), {}),
        lambda out: named_outputs(fixture, out),
        all_losses,
    )


@pytest.mark.parametrize('model', [rja.Model(2, steps=5, regions=1), jca.Model(2, steps=5)])
def test_too_many_steps_are_refused(model):
    streams = {'audio': np.zeros((2, 6, 3), np.float32), 'visual': np.zeros((2, 4, 3), np.float32)}
    with pytest.raises(ValueError, match='found 6 steps, expected at most 5'):
        model.init({}, to_batch(streams), train=False)

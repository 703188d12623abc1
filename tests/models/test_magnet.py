"""MAG-Net: the gate's shares and the joint loss, by hand."""

from functools import cache

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from jmer.models.utterance import magnet
from jmer.types import Label
from tests import batches

MODEL = magnet.Model(3, width=4, hidden=3, dropout=0.0, meme_weight=0.5)
BATCH = batches.utterances()
MEMES = Label(np.array([1, 0, 1], np.int32), np.array([True, True, False]))


@cache
def params():
    return jax.jit(lambda: MODEL.init(jax.random.key(0), BATCH, train=False))()['params']


@cache
def compiled():
    return jax.jit(lambda params, batch: MODEL.apply({'params': params}, batch, train=False))


def test_the_gate_weighs_both_by_hand():
    projections = [np.tanh(BATCH.streams[name].x.mean(1) @ np.asarray(params()[f'project_{name}']['kernel']))
                   for name in ('vision', 'text')]
    z = 1 / (1 + np.exp(-np.concatenate(projections, -1) @ np.asarray(params()['gate']['kernel'])))
    aux = compiled()(params(), BATCH).aux
    np.testing.assert_allclose(aux['gates'], np.stack([z, 1 - z], 1), atol=1e-6)
    np.testing.assert_allclose(aux['fused'], z * projections[0] + (1 - z) * projections[1], atol=1e-6)


def test_the_only_stream_passes_whole():
    z, there = np.full((4, 2), 0.3, np.float32), np.array([[1, 1], [1, 0], [0, 1], [0, 0]], bool)
    expected = np.array([[0.3, 0.7], [1, 0], [0, 1], [0, 0]], np.float32)
    np.testing.assert_allclose(magnet.shares(z, there), np.repeat(expected[..., None], 2, -1), atol=1e-7)


def test_both_tasks_by_hand():
    out = compiled()(params(), BATCH)
    terms = magnet.loss(MODEL, out, BATCH._replace(labels=BATCH.labels | {'meme': MEMES}))
    emotion, meme = (-log_softmax(np.asarray(x, np.float64), -1) for x in (out.logits, out.aux['meme']))
    truth = BATCH.labels['emotion'].value
    np.testing.assert_allclose(terms['label'].value, emotion[np.arange(3), truth], rtol=1e-5)
    np.testing.assert_allclose(terms['meme'].value, [0.5 * meme[0, 1], 0.5 * meme[1, 0], 0], rtol=1e-5)
    np.testing.assert_array_equal(terms['meme'].weight, [1, 1, 0])


def test_memes_train_what_both_tasks_share():
    def value(params):
        term = magnet.loss(MODEL, compiled()(params, BATCH), BATCH._replace(labels=BATCH.labels | {'meme': MEMES}))
        return (term['meme'].value * term['meme'].weight).sum()

    slope = jax.grad(value)(params())
    moved = {name for name in slope if any(np.abs(x).max() > 0 for x in jax.tree.leaves(slope[name]))}
    assert moved == {'project_vision', 'project_text', 'gate', 'meme'}


def test_without_such_a_label_only_the_emotion_counts():
    assert set(magnet.loss(MODEL, compiled()(params(), BATCH), BATCH)) == {'label'}


def test_bad_input_is_named():
    out = compiled()(params(), BATCH)
    real = Label(np.zeros((3, 1), np.float32), MEMES.mask)
    with pytest.raises(ValueError, match=r"magnet: label 'meme': found values of type float32"):
        magnet.loss(MODEL, out, BATCH._replace(labels=BATCH.labels | {'meme': real}))
    with pytest.raises(ValueError, match=r"magnet: streams: found \('text',\)"):
        jax.eval_shape(lambda: MODEL.clone(streams=('text',)).init(jax.random.key(0), BATCH, train=False))

"""Audio-text interactional attention: cosines as scores, the margin in the loss alone."""

from functools import cache

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from jmer.models.utterance import arcface_interaction
from jmer.types import Label
from tests import batches

MODEL = arcface_interaction.Model(3, states=2, heads=2, hidden=5, width=4, scale=8.0, margin=0.4)
BATCH = batches.utterances()


@cache
def params():
    return jax.jit(lambda: MODEL.init(jax.random.key(0), BATCH, train=False))()['params']


@cache
def compiled():
    variables = {'params': params()}
    return jax.jit(lambda batch: MODEL.apply(variables, batch, train=False))


def test_scores_are_scaled_cosines_and_the_loss_adds_the_margin():
    out = compiled()(BATCH)
    vector, directions = np.asarray(out.aux['vector'], np.float64), np.asarray(params()['directions'], np.float64)
    np.testing.assert_allclose(np.linalg.norm(vector, axis=-1), 1, rtol=1e-5)
    cosines = vector @ (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).T
    np.testing.assert_allclose(out.logits, 8 * cosines, atol=1e-5)

    rows, truth = np.arange(3), BATCH.labels['emotion'].value
    angle = np.arccos(cosines)
    angle[rows, truth] += 0.4
    assert angle.max() < np.pi
    term = arcface_interaction.loss(MODEL, out, BATCH)['label']
    np.testing.assert_allclose(term.value, -log_softmax(8 * np.cos(angle), -1)[rows, truth], rtol=1e-4)


def test_without_the_other_stream_nothing_is_found():
    """The means of the own states stay, those of what was found in the absent stream are zero."""
    batch = batches.without(BATCH, 'text')
    alone = compiled()(batch)
    zero = params() | {'attend_audio': jax.tree.map(np.zeros_like, params()['attend_audio'])}
    again = jax.jit(lambda p: MODEL.apply({'params': p}, batch, train=False))(zero)
    np.testing.assert_allclose(again.logits, alone.logits, atol=1e-6)
    assert np.abs(alone.logits - compiled()(BATCH).logits).max() > 1e-3


def test_bad_input_is_named():
    real = Label(np.zeros((3, 1), np.float32), np.ones(3, bool))
    with pytest.raises(ValueError, match='arcface_interaction: label: found values of type float32'):
        arcface_interaction.loss(MODEL, compiled()(BATCH), BATCH._replace(labels={'emotion': real}))
    with pytest.raises(ValueError, match=r"arcface_interaction: streams: found \('text',\)"):
        jax.eval_shape(lambda: MODEL.clone(streams=('text',)).init(jax.random.key(0), BATCH, train=False))

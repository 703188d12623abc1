"""Convolutions of the waveform and statistics pooling, by hand."""

from functools import cache

import jax
import numpy as np
import pytest

from jmer.models.utterance import cross_attention_cnn
from jmer.types import Batch, Stream
from tests import batches

MODEL = cross_attention_cnn.Model(3, widths=(2, 3), kernels=(4, 3), strides=(3, 2), text_widths=(3,), lstm=2, heads=2,
                                  hidden=5)


def batch_of(samples, padding=0):
    """Waveforms of so many samples, followed by absent ones of rubbish, and six words."""
    wave = np.random.default_rng(0).normal(size=(3, samples, 1)).astype(np.float32)
    wave = np.concatenate([wave, np.full((3, padding, 1), np.nan, np.float32)], 1)
    there = np.broadcast_to(np.arange(samples + padding) < samples, wave.shape[:2])
    batch = batches.utterances()
    return Batch({'audio': Stream(wave, there), 'text': batch.streams['text']}, batch.present, {})


@cache
def variables_of():
    """Random ones, variances above 0."""
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), batch_of(7), train=False))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [0.1 + np.abs(rng.normal(size=x.shape)).astype(np.float32) for x in leaves])


@cache
def compiled():
    variables = variables_of()
    return jax.jit(lambda batch: MODEL.apply(variables, batch, train=False))


@pytest.mark.parametrize(('samples', 'steps'), [(6, 1), (7, 2), (13, 3)])
def test_a_padded_waveform_of_any_length_is_as_the_waveform(samples, steps):
    out, padded = (compiled()(batch_of(samples, padding)) for padding in (0, 4))
    there = np.asarray(padded.aux['steps']['audio'].mask)
    assert there.sum(1).tolist() == 3 * [steps]
    np.testing.assert_allclose(padded.logits, out.logits, atol=1e-5)


def test_a_step_is_present_where_any_of_its_samples_is():
    batch = batch_of(7)
    wave = Stream(batch.streams['audio'].x, np.broadcast_to(np.arange(7) == 5, (3, 7)))
    aux = compiled()(batch._replace(streams=batch.streams | {'audio': wave})).aux
    assert aux['steps']['audio'].mask.tolist() == 3 * [[True, False]]


def test_a_strided_convolution_by_hand():
    """The first layer alone: every third place of a correlation of the waveform, one zero in front, two behind."""
    batch = batch_of(7)
    module = MODEL.clone(widths=(2,), kernels=(4,), strides=(3,))
    variables = jax.jit(lambda: module.init(jax.random.key(0), batch, train=False))()
    wave = np.pad(batch.streams['audio'].x[..., 0], ((0, 0), (1, 2)))
    kernel = np.asarray(variables['params']['conv_audio_1']['kernel'])
    expected = np.stack([[np.correlate(w, k)[::3] for k in kernel.T] for w in wave]).swapaxes(1, 2)
    expected = np.maximum(expected / np.sqrt(1 + 1e-5), 0)
    _, state = jax.jit(lambda: module.apply(variables, batch, train=False, capture_intermediates=True))()
    found = state['intermediates']['norm_audio_1']['__call__'][0]
    np.testing.assert_allclose(np.maximum(found, 0), expected, atol=1e-5)


def test_statistics_of_the_present_steps():
    aux, pooled = compiled()(batch_of(7, 4)).aux, []
    for name in ('audio', 'text'):
        x, mask = (np.asarray(a) for a in aux['steps'][name])
        x = x[:, mask[0]]
        pooled += [x.mean(1), x.std(1)]
    np.testing.assert_allclose(aux['fused'], np.concatenate(pooled, -1), atol=1e-4)


@pytest.mark.parametrize(('change', 'message'), [
    ({'streams': ('audio',)}, r'streams: found .*, expected two'),
    ({'strides': (2,)}, r'kernels \(4, 3\) and strides \(2,\), expected as many of each'),
])
def test_what_does_not_fit_is_refused(change, message):
    model = MODEL.clone(**change)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), batch_of(7), train=False))

"""COLD Fusion: the fused distribution and the constraints on the variances, against NumPy."""

from functools import cache

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, rel_entr, softmax

from jmer.models.utterance import cold_fusion
from jmer.types import Label
from tests import batches

MODEL = cold_fusion.Model(3, states=2, layers=1, width=3, hidden=4, match_weight=2.0, prior_weight=0.5,
                          decision_weight=3.0, dropout=0.0)
BATCH = batches.utterances()


@cache
def params():
    return jax.jit(lambda: MODEL.init(jax.random.key(0), BATCH, train=False))()['params']


@cache
def compiled():
    return jax.jit(lambda params, batch: MODEL.apply({'params': params}, batch, train=False))


def gaussians(seed=0):
    rng = np.random.default_rng(seed)
    mean, variance = rng.normal(size=(4, 3, 2)), rng.uniform(0.2, 3, size=(4, 3, 2))
    return mean.astype(np.float32), variance.astype(np.float32)


def test_the_fused_density_is_the_product_of_all():
    mean, variance = gaussians()
    there = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    fused_mean, fused_variance, weights = cold_fusion.fuse(mean, variance, there)
    x = np.linspace(-3, 3, 7)
    for item in range(3):
        product = sum(stats.norm.logpdf(x, mean[item, m, 0], variance[item, m, 0]**0.5)
                      for m in there[item].nonzero()[0])
        own = stats.norm.logpdf(x, fused_mean[item, 0], fused_variance[item, 0]**0.5)
        np.testing.assert_allclose(np.diff(own - product), 0, atol=1e-4)       # equal but for a constant
    np.testing.assert_allclose(weights.sum(1)[:3], 1, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(weights)[~there], 0)
    np.testing.assert_array_equal([fused_mean[3], fused_variance[3]], [[0, 0], [1, 1]])


def test_mismatch_is_the_symmetric_divergence_of_what_counts():
    rng = np.random.default_rng(0)
    errors, uncertain = rng.normal(size=(2, 4, 3)).astype(np.float32)
    mask = rng.random((4, 3)) < 0.6
    p, q = (softmax(x[mask].astype(np.float64) / 0.7) for x in (errors, uncertain))
    expected = rel_entr(p, q).sum() + rel_entr(q, p).sum()
    spoilt = np.where(mask, errors, 1e6).astype(np.float32)
    assert cold_fusion.mismatch(spoilt, uncertain, mask, 0.7) == pytest.approx(expected, rel=1e-4)
    assert cold_fusion.mismatch(errors, errors + 2, mask, 0.7) == pytest.approx(0, abs=1e-6)
    assert cold_fusion.mismatch(errors, uncertain, np.zeros_like(mask), 0.7) == 0


def test_divergence_from_the_prior_by_hand():
    mean, variance = gaussians()
    found = cold_fusion.from_prior(mean, variance)
    draws = np.random.default_rng(1).normal(size=200_000)
    x = mean[0, 0, :, None] + np.sqrt(variance[0, 0, :, None]) * draws
    each = stats.norm.logpdf(draws) - 0.5 * np.log(variance[0, 0, :, None]) - stats.norm.logpdf(x)
    assert found[0, 0] == pytest.approx(each.mean(), abs=0.02)
    np.testing.assert_array_equal(cold_fusion.from_prior(np.zeros_like(mean), np.ones_like(mean)), 0)


def test_all_terms_by_hand_where_a_stream_is_absent():
    batch = BATCH._replace(streams=BATCH.streams | {'audio': BATCH.streams['audio']._replace(
        mask=BATCH.streams['audio'].mask & np.array([True, False, True])[:, None])})
    out = compiled()(params(), batch)
    terms = cold_fusion.loss(MODEL, out, batch)
    there = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)       # vision, audio, text
    truth = batch.labels['emotion'].value
    nll = -log_softmax(np.asarray(out.aux['decisions'], np.float64), -1)[np.arange(3), :, truth]
    np.testing.assert_allclose(terms['label_audio'].value, 3 * np.where(there, nll, 0)[:, 1], rtol=1e-5)
    np.testing.assert_array_equal(terms['label_audio'].weight, [1, 0, 1])
    variance = np.asarray(out.aux['variance'], np.float64)
    p, q = softmax(nll[there]), softmax(np.sqrt((variance**2).mean(-1))[there])
    assert terms['match'].value == pytest.approx(2 * ((p - q) * np.log(p / q)).sum(), rel=1e-4)
    assert terms['match'].weight == 3
    apart = np.asarray(cold_fusion.from_prior(out.aux['mean'], out.aux['variance']))
    np.testing.assert_allclose(terms['prior'].value, 0.5 * np.where(there, apart, 0).sum(1) / there.sum(1), rtol=1e-5)


def test_the_match_moves_variances_alone():
    def value(params):
        return cold_fusion.loss(MODEL, compiled()(params, BATCH), BATCH)['match'].value

    slope = jax.grad(value)(params())
    moved = {name for name in slope if any(np.abs(x).max() > 0 for x in jax.tree.leaves(slope[name]))}
    assert moved == {f'{part}_{name}' for part in ('variance', 'encode') for name in MODEL.streams}


def test_training_draws_and_testing_does_not():
    variables = {'params': params()}
    run = jax.jit(lambda key: MODEL.apply(variables, BATCH, train=True, rngs={'dropout': key}).logits)
    assert np.abs(run(jax.random.key(0)) - run(jax.random.key(1))).max() > 1e-3
    aux = compiled()(params(), BATCH).aux
    assert (aux['variance'] > 0).all() and aux['uncertainty'].shape == (3, 3)


def test_real_values_have_errors_as_well():
    label = Label(np.array([[0.5, 1, 0], [2, 0, 0], [0, 0, -1]], np.float32), np.array([True, True, False]))
    batch = BATCH._replace(labels={'affect': label})
    out = compiled()(params(), batch)
    terms = cold_fusion.loss(MODEL, out, batch)
    errors = np.abs(np.asarray(out.aux['decisions'], np.float64) - label.value[:, None]).mean(-1)
    np.testing.assert_allclose(terms['label_text'].value[:2], 3 * errors[:2, 2], rtol=1e-5)
    p, q = softmax(errors[:2]), softmax(np.asarray(out.aux['uncertainty'], np.float64)[:2])
    assert terms['match'].value == pytest.approx(2 * ((p - q) * np.log(p / q)).sum(), rel=1e-4)

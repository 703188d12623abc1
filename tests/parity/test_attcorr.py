"""Attentive channel correlations against the authors' code, whose mask is added to the scores."""

import jax
import numpy as np
import pytest

from jmer import losses
from jmer.models.speech import attcorr

from . import parity
from .speech import clips, differentiate


def adapt(fixture):
    meta = fixture.meta
    return attcorr.Model(meta['classes'], width=0, heads=meta['nheads'], dropout=0.0, mask_as_bonus=True)


def smoothed_cross_entropy(out, batch):
    return losses.cross_entropy(out.logits, batch.labels['emotion'], label_smoothing=0.1).value.mean()


@pytest.mark.parametrize('name', parity.names('attcorr'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    x = fixture['input/x']
    mask = np.arange(x.shape[1]) < fixture['input/lengths'][:, None]
    batch = clips(x, fixture['input/label'], mask)
    state = fixture.section('param')
    out, total, grads = differentiate(
        attcorr.params_from_author, adapt(fixture), state, batch, smoothed_cross_entropy)

    parity.assert_close_output(fixture, 'output/pooled', out.aux['pooled'])
    parity.assert_close_output(fixture, 'output/logits', out.logits)
    parity.assert_close_output(fixture, 'output/meanstd', attcorr.mean_std(x, mask))
    with jax.default_matmul_precision('highest'):
        full = attcorr.correlation(x, np.ones_like(mask))
    parity.assert_close_output(fixture, 'output/correlation_pooling_full', full)
    parity.assert_close_loss(fixture, 'loss/ce_ls01', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()

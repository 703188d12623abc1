"""CA-MSER's fusion against the authors' code, the hidden states of its speech encoder given."""

import numpy as np
import pytest

from jmer.models.utterance import camser
from jmer.types import Batch, Label, Stream

from . import parity
from .speech import differentiate


def adapt(fixture):
    meta = fixture.meta
    return camser.Model(meta['classes'], images=fixture['input/spec'].shape[1], channels=tuple(meta['alex']),
                        lstm=meta['lstm'], steps=(meta['T_mfcc'], meta['T_wav']), width=meta['d'],
                        dropout=0.0, lstm_dropout=0.0)


def to_batch(fixture):
    """An image [colours, features, steps] becomes steps of all colours' features side by side."""
    image = np.moveaxis(fixture['input/spec'], 3, 1)
    arrays = {'spectrogram': image.reshape(*image.shape[:2], -1), 'mfcc': fixture['input/mfcc'],
              'wav2vec': fixture['input/wav2vec_last_hidden']}
    there = np.ones(len(image), bool)
    return Batch({name: Stream(x, np.ones(x.shape[:2], bool)) for name, x in arrays.items()},
                 there, {'emotion': Label(fixture['input/label'], there)})


@pytest.mark.parametrize('name', parity.names('camser'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    out, total, grads = differentiate(
        camser.params_from_author, adapt(fixture), fixture.section('param'), to_batch(fixture))
    found = {'alexnet_avgpool': out.aux['grid'], 'F1': out.aux['read'], 'F2': out.aux['fused'][0],
             'F3': out.aux['fused'][1], 'M': out.logits}
    for key, value in found.items():
        parity.assert_close_output(fixture, f'output/{key}', value)
    fixture.compared('output/alexnet_logits_unused')      # of a classifier that feeds nothing and is not built
    parity.assert_close_loss(fixture, 'loss/ce', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()

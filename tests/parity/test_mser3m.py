"""3M-SER and its variants against the authors' numbers, one utterance at a time as theirs."""

import numpy as np
import pytest

from jmer.models.utterance import mser3m
from jmer.types import Stream

from . import fusion, parity

SCALES = {'_3M_SER': 'none', '_3M_SERLayerNorm': 'layer', '_3M_SERMinMax': 'minmax'}


def adapt(fixture):
    h = fixture.hparams
    return mser3m.Model(h['num_classes'], width=h['vggish_dim'], heads=h['num_attention_head'], hidden=h['hidden'],
                        scale=SCALES[h['variant']], dropout=0.0)


def to_batch(inputs):
    return fusion.batch_of(text=fusion.sequence(inputs['bert_features']),
                           audio=fusion.sequence(inputs['vggish'][None]))


@pytest.mark.parametrize('name', parity.names('mser3m'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)
    fusion.assert_equals(
        fixture,
        lambda state: mser3m.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs), train=train), {}),
        lambda out: {'logits': out.logits, 'attn_text': out.aux['text'], 'attn_fusion': out.aux['fused']},
        lambda out, inputs: {'total': fusion.cross_entropy(out.logits, inputs['labels'])},
    )


def test_audio_is_brought_between_0_and_1_and_a_constant_to_0():
    model = mser3m.Model(2, width=3, heads=1, scale='minmax', dropout=0.0)
    x = np.array([[[1, 2, 3], [5, 3, 2], [9, 9, 9]], [[4, 4, 4], [4, 4, 4], [0, 0, 0]]], np.float32)
    mask = np.array([[True, True, False], [True, True, False]])
    scaled = model.apply({}, Stream(x, mask), method='_scale')
    np.testing.assert_allclose(scaled, [[[0, .25, .5], [1, .5, .25], [0, 0, 0]], np.zeros((3, 3))])

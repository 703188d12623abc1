"""ShiftSER's eight networks, and the shift itself, against the authors' code."""

import re

import numpy as np
import pytest

from jmer.models.speech import shiftser

from . import parity
from .speech import clips, differentiate

VARIANTS = {
    'cnn': {'network': 'cnn', 'shift': False},
    'cnn_shift': {'network': 'cnn'},
    'transformer_rkq': {'shift': False, 'positions': 'relative_key_query'},
    'transformer_rk': {'shift': False, 'positions': 'relative_key'},
    'transformer_abs': {'shift': False, 'positions': 'absolute'},
    'shiftformer': {},
    'rnn': {'network': 'rnn', 'shift': False},
    'rnn_shift': {'network': 'rnn'},
}


def adapt(fixture, variant):
    meta = fixture.meta
    return shiftser.Model(
        meta['classes'], parts=meta['n_div'], stride=meta['stride'], both_ways=meta['bidirectional'],
        length=meta['length'], expansion=meta['mlp_ratio'], kernel=meta['kernel_size'], **VARIANTS[variant])


@pytest.mark.parametrize('name', parity.names('shiftser'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    batch = clips(fixture['input/x'], fixture['input/label'])
    gradients = {}
    for variant in VARIANTS:
        model, state = adapt(fixture, variant), fixture.section(f'param/{variant}')
        out, total, grads = differentiate(shiftser.params_from_author, model, state, batch)
        parity.assert_close_output(fixture, f'output/{variant}/logits', out.logits)
        parity.assert_close_loss(fixture, f'loss/{variant}/ce', total)
        gradients |= {f'{variant}/{key}': value for key, value in grads.items()}
    parity.assert_close_gradients(fixture, gradients)
    for key in fixture.section('output/shift'):
        both_ways, stride, parts = map(int, re.fullmatch(r'zero_bi(\d)_stride(\d+)_div(\d+)', key).groups())
        found = shiftser.shift(*batch.streams['audio'], parts=parts, stride=stride, both_ways=bool(both_ways))
        parity.assert_close_output(fixture, f'output/shift/{key}', found)
    fixture.assert_all_compared()


def test_a_clip_longer_than_the_position_table_is_refused():
    model = shiftser.Model(3, shift=False, heads=2, length=7)
    batch = clips(np.zeros((1, 8, 4), np.float32), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match='shiftser: audio: found 8 steps, expected at most length=7'):
        model.apply({'params': {}}, batch, train=False)

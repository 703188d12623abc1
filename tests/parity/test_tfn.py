"""TFN against the authors' numbers."""

import jax.numpy as jnp
import pytest

from jmer.models.utterance import tfn
from jmer.types import Stream

from . import fusion, parity


def adapt(fixture):
    h, state = fixture.hparams, fixture.section('param')
    shift = float(state['output_shift'][0])
    return tfn.Model(len(state['post_fusion_layer_3.weight']), hidden=tuple(h['hidden_dims']),
                     text_width=h['text_out'], fusion_width=h['post_fusion_dim'],
                     bounds=(shift, shift + float(state['output_range'][0])), dropout=0.0, fusion_dropout=0.0)


def to_batch(inputs):
    """Audio and vision are given as means over time."""
    pooled = {name: fusion.sequence(inputs[name][:, None]) for name in ('audio', 'vision')}
    return fusion.batch_of(**pooled, text=fusion.sequence(inputs['text']))


@pytest.mark.parametrize('name', parity.names('tfn'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)
    fusion.assert_equals(
        fixture,
        lambda state: tfn.params_from_author(state, model),
        lambda variables, inputs, train: model.apply(variables, to_batch(inputs), train=train,
                                                     mutable=['batch_stats']),
        lambda out: {'preds': out.logits},
        lambda out, inputs: {'total': jnp.abs(out.logits - inputs['labels']).sum()},
        {'net_audio/norm': 'audio_subnet.norm', 'net_vision/norm': 'video_subnet.norm'},
        atol=2e-6,                       # scores near 0 that come from 3 - 3
    )


def test_the_limits_of_a_score_are_kept():
    fixture = parity.load('tfn')
    model = adapt(fixture)
    batch = to_batch(fixture.section('input'))
    loud = batch._replace(streams={n: Stream(1e4 * s.x, s.mask) for n, s in batch.streams.items()})
    logits = model.apply(tfn.params_from_author(fixture.section('param'), model), loud, train=False).logits
    low, high = model.bounds
    assert low <= float(logits.min()) <= float(logits.max()) <= high

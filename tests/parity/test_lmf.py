"""LMF against the authors' numbers."""

import jax.numpy as jnp
import pytest

from jmer.models.utterance import lmf

from . import fusion, parity


def adapt(fixture):
    h = fixture.hparams
    return lmf.Model(h['output_dim'], hidden=tuple(h['hidden_dims']), text_width=h['text_out'], rank=h['rank'],
                     dropout=0.0)


def to_batch(inputs):
    """Audio and vision are given as means over time."""
    pooled = {name: fusion.sequence(inputs[name][:, None]) for name in ('audio', 'vision')}
    return fusion.batch_of(**pooled, text=fusion.sequence(inputs['text']))


def total_loss(out, inputs):
    """The authors sum over the batch."""
    return {'total': fusion.task_loss(out.logits, inputs['labels']) * jnp.size(inputs['labels'])}


@pytest.mark.parametrize('name', parity.names('lmf'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)
    fusion.assert_equals(
        fixture,
        lambda state: lmf.params_from_author(state, model),
        lambda variables, inputs, train: model.apply(variables, to_batch(inputs), train=train,
                                                     mutable=['batch_stats']),
        lambda out: {'preds': out.logits},
        total_loss,
        {'net_audio/norm': 'audio_subnet.norm', 'net_vision/norm': 'video_subnet.norm'},
    )

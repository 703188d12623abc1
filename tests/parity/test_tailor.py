"""TAILOR against the authors' numbers, its padding read as they read it."""

import jax
import numpy as np
import pytest

from jmer.models.utterance import tailor

from . import fusion, parity

NAMES = {'text': 'text', 'vision': 'visual', 'audio': 'audio'}


def adapt(fixture):
    h, state = fixture.hparams, fixture.section('param')
    rates = dict.fromkeys(('dropout', 'private_dropout', 'common_dropout', 'score_dropout'), 0.0)
    return tailor.Model(h['num_classes'], steps=h['L'], width=h['hidden_size'], heads=h['num_attention_heads'],
                        hidden=len(state['bert.encoder.layer.0.intermediate.dense.bias']),
                        layers=(h['bert_layers'], h['visual_layers'], h['audio_layers']),
                        join_layers=h['cross_layers'], decoder_layers=h['decoder_layers'], read_padding=True, **rates)


def to_batch(inputs):
    streams = {ours: fusion.sequence(inputs[theirs], inputs[f'{theirs}_mask'] > 0) for ours, theirs in NAMES.items()}
    return fusion.batch_of(inputs['labels'].astype(np.float32), **streams)


def named_outputs(out):
    scores = jax.nn.sigmoid(out.logits)
    return {'scores': scores, 'binary': (scores > 0.35).astype(np.float32)}


@pytest.mark.parametrize('name', parity.names('tailor'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)
    assert fixture['input/label_mask'].all(), 'a label that may not be looked at has no counterpart here'

    def all_losses(out, inputs):
        return {'total': sum(fusion.total(term) for term in tailor.loss(model, out, to_batch(inputs)).values())}

    fusion.assert_equals(
        fixture,
        lambda state: tailor.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs), train=train), {}),
        named_outputs,
        all_losses,
    )

"""The adaptation gate, alone and inside a small BERT, against the authors' numbers."""

import jax.numpy as jnp
import pytest

from jmer.author import Reader
from jmer.layers.gating import AdaptationGate
from jmer.models.utterance import mag
from jmer.types import Output, Stream

from . import fusion, parity


@pytest.mark.parametrize('name', parity.names('mag_gate'))
def test_the_gate_equals_the_authors(name):
    fixture = parity.load(name)
    gate = AdaptationGate(fixture.hparams['beta_shift'])

    def convert(state):
        reader = Reader(state, 'mag_gate')
        params = mag.gate_from_author(reader, '', ('audio', 'vision'), fixture.hparams['text_dim'])
        reader.close()
        return {'params': params}

    def forward(variables, inputs, train):
        streams = {'audio': fusion.sequence(inputs['acoustic']), 'vision': fusion.sequence(inputs['visual'])}
        return Output(gate.apply(variables, inputs['text'], streams, train=train), {}), {}

    fusion.assert_equals(
        fixture, convert, forward, lambda out: {'fused': out.logits},
        lambda out, inputs: {'total': jnp.sum(out.logits * fixture['aux/w'])})


def adapt(fixture):
    h, state = fixture.hparams, fixture.section('param')
    return mag.Model(h['num_labels'], width=h['hidden_size'], heads=h['num_attention_heads'],
                     layers=h['num_hidden_layers'], hidden=h['intermediate_size'], vocabulary=h['vocab_size'],
                     steps=h['max_position_embeddings'], beta=h['beta_shift'], dropout=0.0, gate_dropout=0.0,
                     types=len(state['bert.embeddings.token_type_embeddings.weight']))


def to_batch(inputs):
    mask = jnp.asarray(inputs['input_mask']) > 0
    text = jnp.stack([inputs['input_ids'], inputs['segment_ids']], -1).astype(jnp.float32)
    return fusion.batch_of(text=Stream(text, mask), audio=fusion.sequence(inputs['acoustic']),
                           vision=fusion.sequence(inputs['visual']))


def named_outputs(fixture, out):
    """Words that pad are compared with nothing: they reach no score."""
    named = {'logits': out.logits}
    mask = fixture['input/input_mask'][..., None] > 0
    for theirs, ours in (('embedding', 'embedded'), ('fused', 'fused')):
        if f'output/{theirs}' in fixture:
            named[theirs] = jnp.where(mask, out.aux[ours], fixture[f'output/{theirs}'])
    return named


@pytest.mark.parametrize('name', parity.names('mag_bert'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)
    fusion.assert_equals(
        fixture,
        lambda state: mag.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs), train=train), {}),
        lambda out: named_outputs(fixture, out),
        lambda out, inputs: {'total': jnp.square(out.logits - inputs['labels'].reshape(out.logits.shape)).mean()},
    )


def test_a_text_longer_than_its_positions_is_refused():
    fixture = parity.load('mag_bert')
    model = adapt(fixture).clone(steps=fixture['input/input_ids'].shape[1] - 1)
    with pytest.raises(ValueError, match=r'mag: text: found \d+ steps, expected at most'):
        model.init({}, to_batch(fixture.section('input')), train=False)

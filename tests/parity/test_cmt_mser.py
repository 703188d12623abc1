"""CMT-MSER's two systems, of utterances and of dialogues, against the authors' numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jmer.models.dialogue import cmt_gru
from jmer.models.utterance import cmt_mser
from jmer.types import Batch, Label, Stream

from . import fusion, parity


def adapt(fixture):
    h = fixture.hparams
    rates = dict.fromkeys(('attention_dropout', 'relu_dropout', 'residual_dropout', 'embed_dropout', 'out_dropout'),
                          0.0)
    return cmt_mser.Model(h['output_dim'], width=h['d'], heads=h['num_heads'], layers=h['layers'],
                          hidden=h['hidden_aux'], causal=h['attn_mask'], **rates)


def to_batch(inputs):
    return fusion.batch_of(inputs['labels'], audio=fusion.sequence(inputs['audio']),
                           text=fusion.sequence(inputs['text']))


@pytest.mark.parametrize('name', parity.names('cmt_mser'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)

    def all_losses(out, inputs):
        terms = cmt_mser.loss(model, out, to_batch(inputs))
        found = {f'{k}_aux' if k != 'label' else 'main': fusion.total(term) for k, term in terms.items()}
        return found | {'total': sum(found.values())}

    fusion.assert_equals(
        fixture,
        lambda state: cmt_mser.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs), train=train), {}),
        lambda out: {'main': out.logits} | {f'{k}_aux': v for k, v in out.aux['auxiliary'].items()},
        all_losses,
    )


def test_a_stream_that_is_gone_has_no_loss():
    fixture = parity.load('cmt_mser')
    model = adapt(fixture)
    batch = to_batch(fixture.section('input'))
    text = batch.streams['text']
    batch = batch._replace(streams=batch.streams | {'text': text._replace(mask=text.mask.at[0].set(False))})
    out = model.apply(cmt_mser.params_from_author(fixture.section('param'), model), batch, train=False)
    terms = cmt_mser.loss(model, out, batch)
    np.testing.assert_array_equal(terms['text'].weight, [0, *[1] * (len(text.x) - 1)])
    np.testing.assert_array_equal(terms['audio'].weight, 1)


def dialogues(inputs, forward=True):
    """Nothing is masked in the authors' forward pass, padded turns are in their loss."""
    mask = jnp.asarray(inputs['mask']) > 0
    everywhere = jnp.ones(mask.shape, bool)
    labels = Label(inputs['labels'].astype(np.int32), mask & (inputs['labels'] != 4))    # theirs for "no label"
    return Batch({'text': Stream(inputs['x'], everywhere)}, everywhere if forward else mask, {'emotion': labels},
                 jnp.zeros(mask.shape, jnp.int32))


@pytest.mark.parametrize('name', parity.names('cmt_gru'))
def test_dialogues_equal_the_authors(name):
    fixture = parity.load(name)
    h = fixture.hparams
    model = cmt_gru.Model(h['classes'], width=h['hidden'], layers=h['layers'], over_queries=True, dropout=0.0)
    fusion.assert_equals(
        fixture,
        lambda state: cmt_gru.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, dialogues(inputs), train=train), {}),
        lambda out: {'features': out.aux['features'], 'logits': out.logits},
        lambda out, inputs: {'total': fusion.total(cmt_gru.loss(model, out, dialogues(inputs, False))['label'])},
    )

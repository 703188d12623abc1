"""bc-LSTM against the authors' code, every dialogue alone and all of them in one padded batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.losses import cross_entropy
from jmer.models.dialogue import bclstm
from jmer.types import Batch, Label, Stream
from tests.parity import parity


def batch_of(fixture, rows, turns):
    inputs = fixture.section('input')
    mask = np.arange(turns)[None] < inputs['lengths'][rows, None]
    text = inputs['text'].swapaxes(0, 1)[rows, :turns]
    label = Label(inputs['label'][rows, :turns].astype(np.int32), mask)
    return Batch({'text': Stream(text, mask)}, mask, {'emotion': label},
                 inputs['speakers'][rows, :turns].astype(np.int32))


def model_of(fixture, attention):
    h = fixture.hparams
    return bclstm.Model(classes=h['n_classes'], width=h['D_e'], hidden=h['D_h'], attention=attention,
                        layers=sum(key.startswith('param/lstm.weight_ih') for key in fixture._arrays) // 2)


@pytest.mark.parametrize('name', parity.names('bclstm'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    state = fixture.section('param')
    attention = fixture.hparams['attention']
    weights = fixture.hparams.get('class_weights')
    lengths = fixture['input/lengths']
    everyone = batch_of(fixture, list(range(len(lengths))), int(lengths.max()))

    def outputs(state, batch, attention):
        model = model_of(fixture, attention)
        variables = bclstm.params_from_author(state, model)
        return model.apply(variables, batch, train=False)

    def loss(state, batch):
        out = outputs(state, batch, attention)
        term = cross_entropy(out.logits, batch.labels['emotion'],
                             class_weights=tuple(weights) if weights else None)
        return jnp.sum(term.value * term.weight) / jnp.sum(term.weight)

    with jax.default_matmul_precision('highest'):
        in_batch = {on: outputs(state, everyone, on) for on in {False, attention}}
        for i, turns in enumerate(lengths):
            alone = batch_of(fixture, [i], int(turns))
            results = {on: outputs(state, alone, on) for on in {False, attention}}
            for run, row in ((results, 0), (in_batch, i)):
                compare(fixture, run, attention, row, i, turns)
            parity.assert_close_loss(fixture, f'solo/loss/{i}', loss(state, alone))
        longest = fixture.solo_meta['longest']
        alone = batch_of(fixture, [longest], int(lengths[longest]))
        gradients = jax.grad(loss)(state, alone)
    parity.assert_close_gradients(fixture, gradients, 'solo_grad')
    fixture.compared('output/*', 'grad/*')   # of the padded batch, in which padding leaks
    fixture.assert_all_compared()


def compare(fixture, run, attention, row, i, turns):
    with_attention, without = run[attention], run[False]
    log_prob = jax.nn.log_softmax(with_attention.logits)[row, :turns]
    parity.assert_close_output(fixture, f'solo/log_prob/{i}', log_prob)
    parity.assert_close_output(fixture, f'solo/emotions/{i}', without.aux['context'][row, :turns])
    if attention:
        alone = jax.nn.log_softmax(without.logits)[row, :turns]
        parity.assert_close_output(fixture, f'solo/log_prob_noatt/{i}', alone)
        weights = with_attention.aux['attention'][row, :turns, :turns]
        parity.assert_close_output(fixture, f'solo/alpha/{i}', weights)

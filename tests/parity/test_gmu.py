"""GMU against the transcription of the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.losses import binary_cross_entropy
from jmer.models.utterance import gmu
from jmer.types import Batch, Label, Stream
from tests.parity import parity


def batch_of(visual, text, labels):
    there = np.ones(len(visual), bool)
    streams = {'vision': Stream(visual[:, None], there[:, None]), 'text': Stream(text[:, None], there[:, None])}
    return Batch(streams, there, {'genres': Label(labels, there)})


def recorded(out):
    """The output under the names of the fixture; its gate is that of the visual stream."""
    return {'probs': jax.nn.sigmoid(out.logits), 'gate': out.aux['gates'][:, 0], 'fused': out.aux['fused']}


@pytest.mark.parametrize('name', parity.names('gmu'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    h = fixture.hparams
    model = gmu.Model(classes=h['classes'], hidden=h['hidden'], pieces=h['pieces'], dropout=0.0)
    inputs, state = fixture.section('input'), fixture.section('param')

    def apply(state, visual, text, train):
        variables = gmu.params_from_author(state, model)
        batch = batch_of(visual, text, inputs['labels'])
        out, changed = model.apply(variables, batch, train=train, mutable=['batch_stats'])
        term = binary_cross_entropy(out.logits, batch.labels['genres'])
        return jnp.sum(term.value * term.weight) / jnp.sum(term.weight), (out, changed['batch_stats'])

    floats = {k: v for k, v in state.items() if v.dtype == np.float32}
    with jax.default_matmul_precision('highest'):
        _, (out, _) = apply(floats, inputs['visual'], inputs['text'], False)
        (loss, (out_train, statistics)), gradients = jax.value_and_grad(apply, (0, 1, 2), has_aux=True)(
            floats, inputs['visual'], inputs['text'], True)

    for key, value in recorded(out).items():
        parity.assert_close_output(fixture, f'output/{key}', value)
    for key, value in recorded(out_train).items():
        parity.assert_close_output(fixture, f'output_train/{key}', value)
    for ours, theirs in (('norm_vision', 'bn_v'), ('norm_text', 'bn_t'), ('norm_fused_1', 'bn1'),
                         ('norm_fused_2', 'bn2'), ('norm_fused_3', 'bnl')):
        for kind in ('mean', 'var'):
            key = f'buffer_after/{theirs}.running_{kind}'
            parity.assert_close_output(fixture, key, statistics[ours][kind])
    fixture.compared('buffer_after/*.num_batches_tracked')   # a counter that we do not keep
    parity.assert_close_loss(fixture, 'loss/total', loss)
    parity.assert_close_gradients(fixture, gradients[0])
    parity.assert_close_gradient(fixture, 'grad_input/visual', gradients[1])
    parity.assert_close_gradient(fixture, 'grad_input/text', gradients[2])
    fixture.assert_all_compared()

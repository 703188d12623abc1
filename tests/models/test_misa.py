"""MISA's variants that work on other inputs or against each other."""

import jax
import numpy as np
import pytest

from jmer.models.utterance import misa
from tests import batches

SMALL = {'width': 4, 'hidden': 6, 'dropout': 0.0, 'transformer_dropout': 0.0}


def gradient_of(model, batch, variables, term):
    """With respect to the parameters, of one term of the loss."""
    def total(params):
        out = model.apply({'params': params}, batch, train=True)
        found = misa.loss(model, out, batch)[term]
        return (found.value * found.weight).sum() / found.weight.sum()

    return jax.jit(jax.grad(total))(variables['params'])


@pytest.mark.parametrize('fields', [{'cell': 'gru', 'recurrent': ('audio',)}, {'adversarial': True, 'recurrent': ()}])
def test_a_padded_step_changes_no_variant(fields):
    model, batch = misa.Model(3, **SMALL, **fields), batches.utterances()
    variables = jax.jit(lambda key: model.init(key, batch, train=False))(jax.random.key(0))
    run = jax.jit(lambda batch: model.apply(variables, batch, train=False).logits)
    np.testing.assert_allclose(run(batches.pad(batch))[:3], run(batch), atol=1e-5)


def test_shared_layers_work_against_the_discriminator():
    """A larger reversal leaves the discriminator's gradient alone and multiplies that of what is in front."""
    batch = batches.utterances()
    weak = misa.Model(3, **SMALL, recurrent=(), adversarial=True, reverse_weight=1.0)
    variables = jax.jit(lambda key: weak.init(key, batch, train=False))(jax.random.key(0))
    once, thrice = (gradient_of(weak.clone(reverse_weight=w), batch, variables, 'similarity') for w in (1.0, 3.0))
    np.testing.assert_allclose(thrice['discriminator_1']['kernel'], once['discriminator_1']['kernel'], rtol=1e-5)
    np.testing.assert_allclose(thrice['shared']['kernel'], 3 * once['shared']['kernel'], rtol=1e-4, atol=1e-7)
    assert np.abs(once['shared']['kernel']).max() > 1e-5
    forward = gradient_of(weak.clone(reverse_weight=-1.0), batch, variables, 'similarity')     # no reversal at all
    np.testing.assert_allclose(forward['shared']['kernel'], -once['shared']['kernel'], rtol=1e-4, atol=1e-7)

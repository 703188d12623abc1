"""DEER's evidential head against the authors' code, whose mean over time includes the padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.models.speech import deer
from jmer.types import Label

from . import parity
from .speech import clips, differentiate


def adapt(fixture):
    meta = fixture.meta
    return deer.Model(meta['output_dim'], states=meta['num_pretrain_layers'], width=meta['d_model'],
                      heads=meta['nhead'], hidden=meta['dim_feedforward'], layers=meta['num_encoder_layers'],
                      dropout=0.0, pool_padding=True)


def rated(fixture):
    """The batch with the mean rating as its label and one more label for each rater."""
    x = fixture['input/hidden_states']
    ratings, there, reference = (fixture[f'input/{key}'] for key in ('label', 'label_mask', 'label_ref'))
    batch = clips(x.reshape(*x.shape[:2], -1), reference, ~fixture['input/padding_mask'])
    raters = {f'rater_{r}': Label(ratings[:, r], there[:, r] > 0) for r in range(ratings.shape[1])}
    return batch._replace(labels=batch.labels | raters)


@pytest.mark.parametrize('name', parity.names('deer'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model, batch = adapt(fixture), rated(fixture)

    def total_loss(out, batch):
        return deer.loss(model, out, batch)['label'].value.sum()

    out, total, grads = differentiate(deer.params_from_author, model, fixture.section('param'), batch, total_loss)
    evidence = out.aux['evidence']
    parity.assert_close_output(fixture, 'output/params_mu_v_alpha_beta', jnp.concatenate(evidence, -1))
    given = [evidence, *(fixture[f'input/{key}'] for key in ('label_ref', 'label')), fixture['input/label_mask'] > 0]
    for key, options in (('', {}), ('_variant2', {'average': False, 'regulariser': 1.0, 'reference_weight': 0.5}),
                         ('_ref_only', {'reference_only': True})):
        found = jax.jit(lambda options=options: deer.evidential_loss(*given, **options))()
        parity.assert_close_output(fixture, f'output/loss_per_item{key}', found)
    parity.assert_close_loss(fixture, 'loss/total', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


def test_one_label_alone_is_the_mean_rating():
    evidence = deer.Evidence(*(np.full((2, 1), value, np.float32) for value in (0.5, 1.0, 2.0, 1.5)))
    label = np.array([[0.5], [2.0]], np.float32)
    found = deer.evidential_loss(evidence, label, regulariser=0.0)
    np.testing.assert_allclose(found, deer.nll(evidence, label))
    assert found[0, 0] < found[1, 0]

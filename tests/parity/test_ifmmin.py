"""IF-MMIN and its teacher against the authors' code."""

import jax
import pytest

from jmer.layers.imagination import complement
from jmer.models.utterance import ifmmin

from . import parity
from .imagination import batch_of, fields, mean, taught
from .speech import differentiate

SHARED = {                    # what the authors look for in the name of a run, in this order
    'V0200': {'shared_layers': 4, 'shared_activation': 'sigmoid'},
    'V050': {'shared_layers': 1},
    'V0600': {},
}


def adapt(fixture):
    meta = fixture.meta
    shared = next((found for token, found in SHARED.items() if token in meta['run_idx']), {})
    return ifmmin.Model(**fields(fixture), **shared, invariant_weight=meta['invariant_weight'])


@pytest.mark.parametrize('name', parity.names('ifmmin'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model, state = adapt(fixture), fixture.section('param')
    complete, batch = batch_of(fixture), batch_of(fixture, fixture['input/missing_index'])
    teacher, known = ifmmin.Teacher(model), ifmmin.teacher_from_author(state, model)
    target = taught(teacher, known, complement(complete, batch)).aux['fused']
    full = taught(teacher, known, complete)

    def terms(out, batch):
        return ifmmin.loss(model, out, batch) | ifmmin.imagination(model, out, target, full.aux['invariant'], batch)

    def total_loss(out, batch):
        return sum(mean(term) for term in terms(out, batch).values())

    out, total, grads = differentiate(ifmmin.params_from_author, model, state, batch, total_loss)
    found = {'invariant_miss': out.aux['invariant'], 'teacher_invariant': full.aux['invariant'],
             'recon_fusion': out.aux['imagined'], 'latent': out.aux['latent'], 'logits': out.logits,
             'pred': jax.nn.softmax(out.logits), 'teacher_embds': target, 'teacher_logits': full.logits}
    found |= {f'feat_{letter}_miss': x for letter, x in zip('ALV', out.aux['embeddings'], strict=True)}
    for key in fixture.section('output'):
        parity.assert_close_output(fixture, f'output/{key}', found[key])
    for key, term in terms(out, batch).items():
        parity.assert_close_loss(fixture, f'loss/{dict(label="CE", imagined="mse").get(key, key)}', mean(term))
    for key, term in ifmmin.teacher_loss(model, full, complete).items():
        parity.assert_close_loss(fixture, f'loss/teacher_{dict(label="CE", moments="CMD")[key]}', mean(term))
    parity.assert_close_loss(fixture, 'loss/total', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()

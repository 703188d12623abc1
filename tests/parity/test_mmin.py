"""MMIN and its teacher against the authors' code."""

import jax
import numpy as np
import pytest

from jmer.layers.imagination import complement
from jmer.models.utterance import mmin

from . import parity
from .imagination import batch_of, fields, mean, taught
from .speech import differentiate


def adapt(fixture):
    meta = fixture.meta
    return mmin.Model(**fields(fixture), share_cascade=meta['share_weight'], cycle_weight=meta['cycle_weight'])


@pytest.mark.parametrize('name', parity.names('mmin'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model, state = adapt(fixture), fixture.section('param')
    complete, batch = batch_of(fixture), batch_of(fixture, fixture['input/missing_index'])
    teacher, known = mmin.Teacher(model), mmin.teacher_from_author(state, model)
    target = taught(teacher, known, complement(complete, batch)).aux['fused']
    full = taught(teacher, known, complete)

    def terms(out, batch):
        return mmin.loss(model, out, batch) | {'mse': mmin.imagination(model, out, target, batch)}

    def total_loss(out, batch):
        return sum(mean(term) for term in terms(out, batch).values())

    out, total, grads = differentiate(mmin.params_from_author, model, state, batch, total_loss)
    found = {'recon_cycle': out.aux['cycled'], 'recon_fusion': out.aux['imagined'], 'latent': out.aux['latent'],
             'logits': out.logits, 'pred': jax.nn.softmax(out.logits), 'teacher_embds': target,
             'teacher_logits': full.logits}
    found |= {f'feat_{letter}_miss': x for letter, x in zip('ALV', out.aux['embeddings'], strict=True)}
    for key in fixture.section('output'):
        parity.assert_close_output(fixture, f'output/{key}', found[key])
    for key, term in terms(out, batch).items():
        parity.assert_close_loss(fixture, f'loss/{"CE" if key == "label" else key}', mean(term))
    parity.assert_close_loss(fixture, 'loss/total', total)
    parity.assert_close_loss(fixture, 'loss/teacher_CE', mean(mmin.losses.task(full.logits, batch.labels)))
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


def test_the_teacher_reads_what_is_missing_and_nothing_else():
    fixture = parity.load('mmin')
    complete, batch = batch_of(fixture), batch_of(fixture, fixture['input/missing_index'])
    for name, stream in complement(complete, batch).streams.items():
        np.testing.assert_array_equal(stream.mask, ~batch.streams[name].mask)

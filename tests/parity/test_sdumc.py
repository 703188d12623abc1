"""SDUMC's two passes and all losses against the authors' code."""

import numpy as np
import pytest

from jmer.models.utterance import sdumc
from jmer.types import Batch, Label, Stream

from . import parity
from .imagination import mean
from .speech import differentiate

STREAMS = {'audio': 'audio', 'text': 'text', 'video': 'vision', 'feat4': 'substitute'}
LOSSES = {'mse_full': 'full', 'mse_missing': 'missing', 'text_feat': 'text', 'text_query': 'query',
          'features': 'feature', 'rnc': 'contrast'}
UNWEIGHTED = dict.fromkeys((f'{name}_weight' for name in LOSSES.values()), 1.0)


def adapt(fixture):
    meta = fixture.meta
    weights = {'feat': 'feature', 'rnc': 'contrast'}
    return sdumc.Model(
        len(fixture['param/fc_out_v.bias']), width=meta['general_dim'],
        hidden=tuple(map(int, meta['layers'].split(','))), contrast=len(fixture['param/orgin_linear_change.2.bias']),
        step_dropout=0.0, dropout=0.0,
        **{f'{weights.get(name, name)}_weight': weight for name, weight in meta['weights'].items()})


def to_batch(fixture):
    streams = {ours: Stream(x := fixture[f'input/{theirs}'], np.ones(x.shape[:2], bool))
               for theirs, ours in STREAMS.items()}
    label = fixture['input/label']
    there = np.ones(len(label), bool)
    return Batch(streams, there, {'sentiment': Label(label.reshape(-1, 1), there)})


@pytest.mark.parametrize('name', parity.names('sdumc'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model, batch = adapt(fixture), to_batch(fixture)

    def total_loss(out, batch):
        return sum(mean(term) for term in sdumc.loss(model, out, batch).values())

    out, total, grads = differentiate(sdumc.params_from_author, model, fixture.section('param'), batch, total_loss)
    shift = fixture['param/orgin_linear_change.2.bias'][None]       # which has no effect, and we do not have
    for which in ('full', 'missing'):
        found = out.aux[which]
        named = {'pred': found.logits, 'fused': found.fused, 'rnc': found.contrast + shift,
                 'text': found.query, 'query': found.read}
        for key, value in named.items():
            if f'output/{key}_{which}' in fixture:
                parity.assert_close_output(fixture, f'output/{key}_{which}', value)
    terms = sdumc.loss(model.clone(**UNWEIGHTED), out, batch)
    for theirs, ours in LOSSES.items():
        parity.assert_close_loss(fixture, f'loss/{theirs}', mean(terms[ours]))
    parity.assert_close_loss(fixture, 'loss/total', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


def test_the_substitute_speaks_where_text_is_missing():
    fixture = parity.load('sdumc')
    model, batch = adapt(fixture), to_batch(fixture)
    first = np.arange(len(batch.present)) == 0
    text = batch.streams['text']
    streams = batch.streams | {'text': text._replace(mask=text.mask & ~first[:, None])}
    run = model.bind(sdumc.params_from_author(fixture.section('param'), model))
    out = run(batch._replace(streams=streams), train=False)
    np.testing.assert_allclose(out.logits[0], fixture['output/pred_missing'][0], rtol=1e-4)
    np.testing.assert_allclose(out.logits[1:], fixture['output/pred_full'][1:], rtol=1e-4)

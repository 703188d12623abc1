"""M3NET against the authors' code, every dialogue alone in the first slot of a batch."""

import functools

import jax
import pytest

from jmer.models.dialogue import m3net

from . import dialogues, graphs, parity

TEXTS = tuple(f'text{k}' for k in range(1, 5))
NORMS = {'BN': 'batch', 'LN': 'layer', 'LN2': 'dialogue'}


def model_of(fixture):
    h, state = fixture.hparams, fixture.section('param')
    width, hidden = h['D_g'], h['graph_h']
    return m3net.Model(
        h['n_classes'], texts=TEXTS, norm=NORMS.get(h.get('norm', 'BN'), 'none'),
        project_text='solo_grad/linear_l.weight' in fixture, width=width, hidden=hidden,
        hyper_layers=h['num_L'], gated_layers=h['num_K'], slot_weights=True,
        slots=(len(state['graph_model.hyperedge_weight']), len(state['graph_model.EW_weight'])),
        keep_input=state['smax_fc.weight'].shape[1] == 3 * (width + 2 * hidden), speakers=h['n_speakers'])


def named(out, row, turns):
    return {
        'log_prob': jax.nn.log_softmax(out.logits)[row, :turns],
        'text_gru': out.aux['text'][row, :turns],
        'graph_features': out.aux['graph'][row, :turns],
    }


@pytest.mark.parametrize('name', parity.names('m3net'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    streams = {text: text for text in TEXTS} | dialogues.STREAMS
    batches = functools.partial(dialogues.batch_of, streams=streams)
    graphs.compare(fixture, m3net, model_of(fixture), named, batches=batches)
    fixture.assert_all_compared()

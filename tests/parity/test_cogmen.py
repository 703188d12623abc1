"""COGMEN against the authors' code, every dialogue alone."""

import jax
import pytest

from jmer.models.dialogue import cogmen

from . import graphs, parity

LETTERS = {'a': 'audio', 't': 'text', 'v': 'vision'}


def model_of(fixture):
    h, state = fixture.hparams, fixture.section('param')
    streams = tuple(name for letter, name in LETTERS.items() if letter in h.get('modalities', 'atv'))
    recurrent = next((kind for kind, gates in (('lstm', 4), ('gru', 3)) if 'rnn.rnn.weight_hh_l0' in state
                      and len(state['rnn.rnn.weight_hh_l0']) == gates * state['rnn.rnn.weight_hh_l0'].shape[1]), None)
    width = state['rnn.rnn.weight_hh_l0'].shape[1] if recurrent else 100
    return cogmen.Model(
        h['n_classes'], streams=streams, hidden=h['hidden_size'], speakers=h['n_speakers'] if 'n_speakers' in h
        else round((len(state['gcn.conv1.weight']) / 2)**0.5),
        past=h['wf'], future=h['wp'],       # theirs are windows of the sender
        context=recurrent or 'transformer', layers=h['seqcontext_nlayer'], heads=0 if recurrent else h['nhead'],
        transformer_hidden=h.get('dim_feedforward', 2048), width=width, graph_heads=h['gnn_nheads'],
        keep_context=h.get('concat_gin_gout', False), highway='clf.highway.gate.0.weight' in state)


def named(out, row, turns):
    return {
        'log_prob': jax.nn.log_softmax(out.logits)[row, :turns],
        'seq_features': out.aux['context'][row, :turns],
        'graph_out': out.aux['graph'][row, :turns],
    }


@pytest.mark.parametrize('name', parity.names('cogmen'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    graphs.compare(fixture, cogmen, model_of(fixture), named)
    fixture.assert_all_compared()

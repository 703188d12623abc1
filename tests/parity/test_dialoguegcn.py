"""DialogueGCN against the authors' code, every dialogue alone."""

import jax
import pytest

from jmer.models.dialogue import dialoguegcn

from . import graphs, parity

KEYS = {'lstm': 'lstm.weight_ih_l0', 'gru': 'gru.weight_ih_l0', 'none': 'base_linear.weight',
        'dialoguernn': 'dialog_rnn_f.dialogue_cell.g_cell.weight_hh'}


def model_of(fixture):
    h, state = fixture.hparams, fixture.section('param')
    base = next(kind for kind, key in KEYS.items() if key in state)
    cell = {}
    if base == 'dialoguernn':
        widths = {name: state[f'dialog_rnn_f.dialogue_cell.{name}_cell.weight_hh'].shape[1] for name in 'gp'}
        cell = {'global_width': widths['g'], 'party_width': widths['p'], 'context_width': h.get('D_a', 100),
                'context': h.get('context_attention', 'simple'),
                'listeners': h['n_speakers'] if h.get('listener_state') else 0}
    return dialoguegcn.Model(
        h['n_classes'], width=h['D_e'], hidden=h['graph_hidden_size'], speakers=h['n_speakers'],
        past=h['window_future'], future=h['window_past'],      # theirs are windows of the sender
        base=base, bases=h['num_bases'], max_turns=h['max_seq_len'], attention=h['nodal_attention'], **cell)


def named(out, row, turns):
    inside = row, slice(turns), slice(turns)
    edges, weights, relations = graphs.edges_of(
        out.aux['edges'][inside], out.aux['edge_weights'][inside], out.aux['relation'][inside])
    return {
        'log_prob': jax.nn.log_softmax(out.logits)[row, :turns],
        'emotions': out.aux['context'][row, :turns],
        'graph_conv2': out.aux['graph'][row, :turns],
        'edge_index_sorted': edges,
        'edge_norm_sorted': weights,
        'edge_type_sorted': relations,
    }


@pytest.mark.parametrize('name', parity.names('dialoguegcn'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    graphs.compare(fixture, dialoguegcn, model_of(fixture), named)
    fixture.assert_all_compared()

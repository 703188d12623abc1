"""DAG-ERC against the authors' code, every dialogue alone and in its batch."""

import numpy as np
import pytest

from jmer.models.dialogue import dagerc

from . import dialogues, graphs, parity

KINDS = {'rgcn': 'relational', 'linear': 'linear', 'dotprod': 'dot'}


def model_of(fixture):
    h = fixture.hparams
    return dagerc.Model(
        h['n_classes'], hidden=h['hidden_dim'], layers=h['gnn_layers'], own_turns=h['windowp'],
        gather=KINDS[h.get('attn_type') or 'rgcn'],
        relations='param/gather.0.rel_emb.weight' in fixture and not h.get('no_rel_attn', False),
        attention=h['nodal_att_type'] or '', head_layers=h['mlp_layers'])


def named(out, row, turns):
    return {'logits': out.logits[row, :turns], 'H_cat': out.aux['layers'][row, :turns]}


@pytest.mark.parametrize('name', parity.names('dagerc'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    graphs.compare(fixture, dagerc, model_of(fixture), named)
    fixture.assert_all_compared()


@pytest.mark.parametrize('name', parity.names('dagerc'))
def test_the_graph_is_the_authors(name):
    fixture = parity.load(name)
    batch, own = dialogues.batch_of(fixture), fixture.hparams['windowp']
    edges = np.asarray(dagerc.graph.predecessors(batch.present, batch.speakers, own))
    np.testing.assert_array_equal(edges, fixture['input/adj'][:, :edges.shape[1], :edges.shape[1]] > 0)

"""DualGATs against the authors' code, every dialogue alone and all of them in one padded batch."""

import jax
import numpy as np
import pytest

from jmer.models.dialogue import dualgats
from jmer.types import Stream
from tests.parity import dialogues, parity


def model_of(fixture):
    h = fixture.hparams
    return dualgats.Model(
        classes=h['n_classes'], discourse='discourse', width=h['hidden_dim'], heads=h['nheads'],
        layers=h['gnn_layers'], hidden_layers=h['mlp_layers'], slope=float(h['leaky_slope']), dropout=0.0,
        difference_weight=float(h['beta']))


def batch_of(fixture, rows, turns=None):
    batch = dialogues.batch_of(fixture, rows, turns)
    relations = fixture['input/structure_adj'][rows, :turns].astype(np.float32)
    return batch._replace(streams=batch.streams | {'discourse': Stream(relations, batch.present)})


@pytest.mark.parametrize('name', parity.names('dualgats'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = model_of(fixture)
    variables = dualgats.params_from_author(fixture.section('param'), model)

    def terms(batch, variables):
        out = model.apply(variables, batch, train=False)
        return out, {name: dialogues.worth(term) for name, term in dualgats.loss(model, out, batch).items()}

    def run(batch, variables=variables):
        out, values = terms(batch, variables)
        return out, {'loss_ce': values['label'], 'loss': values['label']}

    def named(out, row, turns):
        return {'logits': out.logits[row, :turns], 'H_cat': out.aux['joined'][row, :turns]}

    def convert(state):
        return dualgats.params_from_author(state, model)

    with jax.default_matmul_precision('highest'):
        dialogues.compare(fixture, run, named, lambda rows: batch_of(fixture, rows))
        dialogues.compare_gradients(fixture, lambda variables, batch: run(batch, variables)[1]['loss'], convert,
                                    batch=batch_of(fixture, [fixture.solo_meta['longest']]))
        # The loss that keeps the networks apart needs two dialogues.
        pair = batch_of(fixture, list(map(int, fixture['solo_pair/index'])), int(fixture['solo_pair/length']))
        out, values = jax.jit(terms, compiler_options=dialogues.QUICK)(pair, variables)
        dialogues.compare_gradients(
            fixture, lambda variables, batch: sum(terms(batch, variables)[1].values()), convert,
            'solo_pair_grad', pair)
    parity.assert_close_output(fixture, 'solo_pair/logits', out.logits)
    found = {'loss_ce': values['label'], 'diff_loss_scaled': values['difference'], 'loss': sum(values.values())}
    for name, value in found.items():
        parity.assert_close_loss(fixture, f'solo_pair/{name}', value)
    fixture.compared('output/*', 'grad/*')      # of the padded batch, in which padding leaks
    fixture.assert_all_compared()


@pytest.mark.parametrize('name', parity.names('dualgats'))
def test_the_semantic_graph_is_the_authors(name):
    fixture = parity.load(name)
    found = dualgats.semantic(dialogues.batch_of(fixture))
    np.testing.assert_array_equal(found, fixture['input/semantic_adj'])

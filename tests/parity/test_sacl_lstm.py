"""SACL-LSTM against the authors' code, every dialogue alone and all of them in one padded batch."""

import jax
import jax.numpy as jnp
import pytest

from jmer.models.dialogue import sacl_lstm
from tests.parity import dialogues, parity


def model_of(fixture, zero_turns):
    h = fixture.hparams
    return sacl_lstm.Model(
        classes=h['n_classes'], width=h['hidden_size'], layers=h['base_layer'], speakers=h['n_speakers'],
        least_turns=h['pl_min'], zero_turns=zero_turns, dropout=0.0, gamma=float(h['gamma']),
        class_weights=dialogues.class_weights(fixture) or (), contrast_weight=float(h['scl_w']),
        temperature=float(h['scl_t']), contrast_scores=not h['scl_hidden'])


@pytest.mark.parametrize('name', parity.names('sacl_lstm'))
@pytest.mark.parametrize('section', ['solo', 'solo_packed'])
def test_equals_the_authors(name, section):
    """With the zero turns of the authors' code, and without (`solo_packed`, made by a change to it)."""
    fixture = parity.load(name)
    if not fixture.section(section):
        pytest.skip(f'{name} has no {section}')
    model = model_of(fixture, zero_turns=section == 'solo')
    variables = sacl_lstm.params_from_author(fixture.section('param'), model)

    def run(batch, variables=variables):
        out = model.apply(variables, batch, train=False)
        terms = sacl_lstm.loss(model, out, batch)
        turns = jnp.sum(batch.present)
        focal, contrast = (dialogues.worth(terms[name]) for name in ('label', 'contrast'))
        return out, {'loss_ce_sum': focal * turns, 'loss_ntxent': contrast / model.contrast_weight,
                     'loss': (focal + contrast) * turns}

    def named(out, row, turns):
        found = {'log_prob': jax.nn.log_softmax(out.logits), 'hidden': out.aux['hidden']}
        found |= {'global_lstm': out.aux['context']} if section == 'solo' else {}
        return {name: value[row, :turns] for name, value in found.items()}

    with jax.default_matmul_precision('highest'):
        dialogues.compare(fixture, run, named, section=section)
        dialogues.compare_gradients(fixture, lambda variables, batch: run(batch, variables)[1]['loss'],
                                    lambda state: sacl_lstm.params_from_author(state, model), f'{section}_grad')
    if section == 'solo':
        fixture.compared('output/*', 'grad/*')      # of the padded batch, in which padding leaks
        fixture.assert_all_compared()

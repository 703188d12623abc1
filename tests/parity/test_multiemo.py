"""MultiEMO against the authors' code, every dialogue alone and all of them in one padded batch."""

import jax
import pytest

from jmer.models.dialogue import multiemo
from tests.parity import dialogues, parity


def model_of(fixture):
    h, iemocap = fixture.hparams, fixture.hparams['dataset'] == 'IEMOCAP'
    return multiemo.Model(
        classes=h['n_classes'], width=h['model_dim'], hidden=h['hidden_dim'], layers=h['num_layers'],
        heads=h['num_heads'], hidden_out=fixture['param/mlp.linear_1.weight'].shape[0],
        recurrent=('text', 'audio', 'vision') if iemocap else ('audio', 'vision'), bidirectional=iemocap,
        context=h['context_attention'], context_width=h.get('D_a', 100),
        listeners=h['n_speakers'] if h['listener_state'] else 0,
        label_weight=float(h['CE_loss_param']), contrast_weight=float(h['SWFC_loss_param']),
        correlation_weight=float(h['HGR_loss_param']), temperature=float(h['temp_param']),
        focus=float(h['focus_param']), sample_weight=float(h['sample_weight_param']),
        class_counts=tuple(map(float, h['class_counts'])), hgr_over_channels=True)


@pytest.mark.parametrize('name', parity.names('multiemo'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = model_of(fixture)
    variables = multiemo.params_from_author(fixture.section('param'), model)
    weights = {'ce': ('label', model.label_weight), 'swfc': ('contrast', model.contrast_weight),
               'hgr': ('correlation', model.correlation_weight)}

    def run(batch, variables=variables):
        out = model.apply(variables, batch, train=False)
        terms = {name: dialogues.worth(term) for name, term in multiemo.loss(model, out, batch).items()}
        return out, {f'loss_{name}': terms[ours] / weight for name, (ours, weight) in weights.items()} | {
            'loss': sum(terms.values())}

    def named(out, row, turns):
        found = {f'fused_{theirs}': out.aux['fused'][ours] for ours, theirs in dialogues.STREAMS.items()}
        found |= {'fc_outputs': out.aux['joined'], 'logits': out.logits}
        return {name: value[row, :turns] for name, value in found.items()}

    with jax.default_matmul_precision('highest'):
        dialogues.compare(fixture, run, named)
        dialogues.compare_gradients(fixture, lambda variables, batch: run(batch, variables)[1]['loss'],
                                    lambda state: multiemo.params_from_author(state, model))
    fixture.compared('output/*', 'grad/*')      # of the padded batch, in which padding leaks
    fixture.assert_all_compared()

"""CFN-ESA against the authors' code, every dialogue alone and all of them in one padded batch."""

import jax
import numpy as np
import pytest

from jmer.models.dialogue import cfn_esa
from jmer.types import Stream
from tests.parity import dialogues, parity

LAYERS = ('text1', 'text2', 'text3', 'text4')


def model_of(fixture):
    h = fixture.hparams
    return cfn_esa.Model(
        classes=h['n_classes'], width=h['cross_hidden_dim'], heads=h['cross_num_head'],
        recurrent_layers=h['rnn_n_layers'], cell=h.get('rnn_type', 'gru').lower(), residual=not h['use_vanilla'],
        layers=h['cross_n_layers'], shift_hidden=h['shift_output_dim'], dropout=0.0, recurrent_dropout=0.0,
        class_weights=dialogues.class_weights(fixture) or (), shift_weight=float(h['lambd']),
        shift_class_weights=tuple(map(float, h['shift_weights'])))


def batch_of(fixture, rows):
    """The text as the hyper-parameters compose it from four layers of a language model."""
    batch = dialogues.batch_of(fixture, rows, streams=dialogues.STREAMS | {name: name for name in LAYERS})
    kind, number = fixture.hparams['textfeature_mode'][:-1], int(fixture.hparams['textfeature_mode'][-1])
    streams = dict(batch.streams)
    texts = [streams.pop(name).x for name in LAYERS]
    text = {'textf': lambda: texts[number - 1], 'sum': lambda: sum(texts[:number]),
            'concat': lambda: np.concatenate(texts[:number], -1)}[kind]()
    return batch._replace(streams=streams | {'text': Stream(text, batch.present)})


@pytest.mark.parametrize('name', parity.names('cfn_esa'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = model_of(fixture)
    variables = cfn_esa.params_from_author(fixture.section('param'), model)

    def run(batch, variables=variables):
        out = model.apply(variables, batch, train=False)
        terms = {name: dialogues.worth(term) for name, term in cfn_esa.loss(model, out, batch).items()}
        return out, {'loss_cls': terms['label'], 'loss_shift': terms['shift'] / model.shift_weight,
                     'loss': terms['label'] + terms['shift']}

    def named(out, row, turns):
        return {'logits': out.logits[row, :turns], 'logit_shift': out.aux['shift'][row, :turns, :turns],
                'rume_t': out.aux['recurrent']['text'][row, :turns], 'featcross': out.aux['fused'][row, :turns]}

    with jax.default_matmul_precision('highest'):
        dialogues.compare(fixture, run, named, lambda rows: batch_of(fixture, rows))
        dialogues.compare_gradients(fixture, lambda variables, batch: run(batch, variables)[1]['loss'],
                                    lambda state: cfn_esa.params_from_author(state, model),
                                    batch=batch_of(fixture, [fixture.solo_meta['longest']]))
    fixture.compared('output/*', 'grad/*')      # of the padded batch, in which padding leaks
    fixture.assert_all_compared()

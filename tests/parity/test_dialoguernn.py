"""DialogueRNN against the authors' code, every dialogue alone and all of them in one padded batch."""

import jax
import numpy as np
import pytest

from jmer.losses import cross_entropy
from jmer.models.dialogue import dialoguernn
from tests.parity import dialogues, parity


def model_of(fixture, attention=True):
    h = fixture.hparams
    return dialoguernn.Model(
        classes=h['n_classes'], global_width=h['D_g'], party_width=h['D_p'], width=h['D_e'], hidden=2 * h['D_h'],
        context=h['context_attention'], context_width=h.get('D_a', 100), attention=attention,
        listeners=h['n_speakers'] if h['listener_state'] else 0)


@pytest.mark.parametrize('name', parity.names('dialoguernn'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    state = fixture.section('param')
    models = {attention: model_of(fixture, attention) for attention in (True, False)}
    variables = {on: dialoguernn.params_from_author(state, model) for on, model in models.items()}

    def loss(variables, batch):
        out = models[True].apply(variables, batch, train=False)
        return dialogues.worth(cross_entropy(out.logits, batch.labels['emotion'],
                                             class_weights=dialogues.class_weights(fixture)))

    def run(batch):
        out = {on: model.apply(variables[on], batch, train=False) for on, model in models.items()}
        return out, {'loss': loss(variables[True], batch)}

    def named(out, row, turns):
        aux = out[True].aux
        return {
            'log_prob': jax.nn.log_softmax(out[True].logits)[row, :turns],
            'log_prob_att2_false': jax.nn.log_softmax(out[False].logits)[row, :turns],
            'alpha': aux['attention'][row, :turns, :turns],
            'emotions': aux['context'][row, :turns],
            'att_emotions': aux['attended'][row, :turns],
        }

    def convert(state):
        return dialoguernn.params_from_author(state, models[True])

    everyone = dialogues.batch_of(fixture)
    with jax.default_matmul_precision('highest'):
        dialogues.compare(fixture, run, named, exact=True)
        dialogues.compare_gradients(fixture, loss, convert)
        dialogues.compare_gradients(fixture, loss, convert, 'grad', everyone)     # their padding is exact
    fixture.compared('output/log_prob*', 'output/alpha*')   # on present turns the same as `solo/...`
    fixture.assert_all_compared()


def test_a_missing_tensor_is_named():
    fixture = parity.load('dialoguernn')
    state = fixture.section('param')
    del state['dialog_rnn_r.dialogue_cell.e_cell.bias_hh']
    with pytest.raises(ValueError, match=r'missing +dialog_rnn_r\.dialogue_cell\.e_cell\.bias_hh'):
        dialoguernn.params_from_author(state, model_of(fixture))


def test_an_unknown_attention_is_named():
    fixture = parity.load('dialoguernn')
    model = model_of(fixture).clone(context='cosine')
    with pytest.raises(ValueError, match="attention: found 'cosine', expected one of simple, general"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), dialogues.batch_of(fixture, np.array([0])), train=False))

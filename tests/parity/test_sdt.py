"""SDT against the authors' code, every dialogue alone and all of them in one padded batch."""

import jax
import pytest

from jmer.models.dialogue import sdt
from tests.parity import dialogues, parity

LETTERS = {'t': 'text', 'a': 'audio', 'v': 'vision'}


def model_of(fixture):
    h = fixture.hparams
    return sdt.Model(classes=h['n_classes'], width=h['hidden_dim'], heads=h['n_head'], speakers=h['n_speakers'],
                     temperature=float(h['temp']), learned_gates=h['dataset'] != 'MELD', dropout=0.0,
                     class_weights=dialogues.class_weights(fixture) or ())


@pytest.mark.parametrize('name', parity.names('sdt'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    assert fixture.hparams['gammas'] == [1, 1, 1]
    model = model_of(fixture)
    variables = sdt.params_from_author(fixture.section('param'), model)

    def parts(out, batch):
        terms = {name: dialogues.worth(term) for name, term in sdt.loss(model, out, batch).items()}
        groups = {'task': 'label', 'ce_students': 'student', 'kl': 'distillation'}
        found = {f'loss_{group}': sum(v for name, v in terms.items() if name.startswith(start))
                 for group, start in groups.items()}
        return found | {'loss': sum(terms.values())}

    def run(batch, variables=variables):
        out = model.apply(variables, batch, train=False)
        return out, parts(out, batch)

    def named(out, row, turns):
        students = {letter: out.aux['students'][stream] for letter, stream in LETTERS.items()} | {'all': out.logits}
        found = {f'{letter}_log_prob': jax.nn.log_softmax(scores) for letter, scores in students.items()}
        found |= {f'kl_{letter}_log_prob': jax.nn.log_softmax(scores / model.temperature)
                  for letter, scores in students.items() if letter != 'all'}
        found |= {'kl_all_prob': jax.nn.softmax(out.logits / model.temperature),
                  'fused': out.aux['fused'], 't_fused': out.aux['streams']['text']}
        return {name: value[row, :turns] for name, value in found.items()}

    def loss(variables, batch):
        return run(batch, variables)[1]['loss']

    everyone = dialogues.batch_of(fixture)
    with jax.default_matmul_precision('highest'):
        dialogues.compare(fixture, run, named, loss_atol={'loss_kl': 2e-7}, exact=True)
        gradients = dialogues.compare_gradients(fixture, loss, lambda state: sdt.params_from_author(state, model))
        dialogues.compare_gradients(fixture, loss, lambda state: sdt.params_from_author(state, model), 'grad', everyone)
    assert not gradients['speaker_embeddings.weight'][-1].any()
    fixture.compared('output/*_prob')           # on present turns the same as `solo/...`
    fixture.assert_all_compared()

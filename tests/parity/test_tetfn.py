"""TETFN against the authors' numbers, its four losses on labels of their own."""

import pytest

from jmer.models.utterance import tetfn
from jmer.types import Label

from . import fusion, parity

LETTERS = {'text': 't', 'audio': 'a', 'vision': 'v'}


def adapt(fixture):
    h, state = fixture.hparams, fixture.section('param')
    rates = dict.fromkeys(('attention_dropout', 'other_attention_dropout', 'relu_dropout', 'residual_dropout',
                           'embed_dropout', 'text_dropout', 'dropout'), 0.0)
    hidden = tuple(len(state[f'post_{part}_layer_1.bias']) for part in ('fusion', 'text', 'audio', 'video'))
    return tetfn.Model(len(state['post_fusion_layer_3.bias']), states=(h['a_h'], h['v_h']), width=h['d'],
                       heads=h['nheads'], kernels=(h['kl'], h['ka']), hidden=hidden, **rates)


def to_batch(inputs):
    """The authors use no mask. Labels: all together, text, audio, vision."""
    inputs = inputs | {'text': inputs['text_features']}
    batch = fusion.batch_of(**{name: fusion.sequence(inputs[name]) for name in LETTERS})
    labels = {name: Label(inputs['labels'][:, k, None], batch.present) for k, name in enumerate(('all', *LETTERS))}
    return batch._replace(labels=labels)


def named_outputs(out):
    features = {f'Feature_{LETTERS.get(name, "f")}': x for name, x in out.aux['features'].items()}
    return features | {'M': out.logits} | {LETTERS[name].upper(): x for name, x in out.aux['alone'].items()}


@pytest.mark.parametrize('name', parity.names('tetfn'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)

    def all_losses(out, inputs):
        terms = tetfn.loss(model, out, to_batch(inputs))
        found = {LETTERS.get(key, 'm').upper(): fusion.total(term) for key, term in terms.items()}
        return found | {'total': sum(found.values())}

    fusion.assert_equals(
        fixture,
        lambda state: tetfn.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs), train=train), {}),
        named_outputs,
        all_losses,
    )

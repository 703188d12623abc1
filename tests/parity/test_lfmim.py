"""LFMIM against the authors' numbers, its four losses on labels of their own."""

import numpy as np
import pytest

from jmer.models.utterance import lfmim
from jmer.types import Label

from . import fusion, parity

LETTERS = {'text': 't', 'audio': 'a', 'vision': 'v'}


def adapt(fixture):
    h = fixture.hparams
    steps = tuple(h[f'fea_len_{letter}'] - 1 for letter in 'tav')
    return lfmim.Model(h['num_classes'], steps=steps, width=h['width'], heads=h['heads'], layers=h['layers'],
                       tokens=len(fixture['param/embedding_m']), dropout=0.0, attention_dropout=0.0,
                       embed_dropout=0.0)


def to_batch(inputs, model):
    """Theirs crops text; ours refuses a sequence that is too long. Labels: text, audio, vision, all."""
    inputs = inputs | {'text': inputs['text'][:, :model.steps[0]], 'vision': inputs['visual']}
    batch = fusion.batch_of(**{name: fusion.sequence(inputs[name]) for name in LETTERS})
    columns = np.asarray(inputs['labels']).astype(np.int32)
    labels = {name: Label(columns[:, k], batch.present) for k, name in enumerate((*LETTERS, 'all'))}
    return batch._replace(labels=labels)


@pytest.mark.parametrize('name', parity.names('lfmim'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)

    def all_losses(out, inputs):
        terms = lfmim.loss(model, out, to_batch(inputs, model))
        found = {LETTERS.get(key, 'm'): fusion.total(term) for key, term in terms.items()}
        return found | {'total': sum(found.values())}

    fusion.assert_equals(
        fixture,
        lambda state: lfmim.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs, model), train=train), {}),
        lambda out: {'m': out.logits} | {LETTERS[key]: v for key, v in out.aux['alone'].items()},
        all_losses,
    )


def test_a_longer_sequence_is_refused():
    fixture = parity.load('lfmim')
    model = adapt(fixture)
    short = model.clone(steps=(model.steps[0] - 1, *model.steps[1:]))
    with pytest.raises(ValueError, match=r'lfmim: found \d+ steps, expected at most'):
        short.init({}, to_batch(fixture.section('input'), model), train=False)

"""TAILOR against the authors' numbers, its padding read as they read it."""

import jax
import numpy as np
import pytest

from jmer.models.utterance import tailor

from . import fusion, parity

NAMES = {'text': 'text', 'vision': 'visual', 'audio': 'audio'}


def adapt(fixture):
    h, state = fixture.hparams, fixture.section('param')
    rates = dict.fromkeys(('dropout', 'private_dropout', 'common_dropout', 'score_dropout'), 0.0)
    return tailor.Model(h['num_classes'], steps=h['L'], width=h['hidden_size'], heads=h['num_attention_heads'],
                        hidden=len(state['bert.encoder.layer.0.intermediate.dense.bias']),
                        layers=(h['bert_layers'], h['visual_layers'], h['audio_layers']),
                        join_layers=h['cross_layers'], decoder_layers=h['decoder_layers'], read_padding=True, **rates)


def to_batch(inputs):
    streams = {ours: fusion.sequence(inputs[theirs], inputs[f'{theirs}_mask'] > 0) for ours, theirs in NAMES.items()}
    return fusion.batch_of(inputs['labels'].astype(np.float32), **streams)


def named_outputs(out):
    scores = jax.nn.sigmoid(out.logits)
    return {'scores': scores, 'binary': (scores > 0.35).astype(np.float32)}


@pytest.mark.parametrize('name', parity.names('tailor'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)
    assert fixture['input/label_mask'].all(), 'a label that may not be looked at has no counterpart here'

    def all_losses(out, inputs):
        return {'total': sum(fusion.total(term) for term in tailor.loss(model, out, to_batch(inputs)).values())}

    fusion.assert_equals(
        fixture,
        lambda state: tailor.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs), train=train), {}),
        named_outputs,
        all_losses,
    )


def test_padding_is_all_that_the_field_is_about():
    """On unpadded streams it changes nothing; on padded ones it does."""
    fields = {'steps': 3, 'width': 4, 'heads': 2, 'hidden': 3, 'layers': (1, 1, 1), 'join_layers': 1}
    masked, reading = (tailor.Model(2, read_padding=read, **fields) for read in (False, True))
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(2, 3, 2)).astype(np.float32) for name in masked.streams}
    labels = np.array([[0, 1], [1, 1]], np.float32)
    whole = fusion.batch_of(labels, **{name: fusion.sequence(value) for name, value in x.items()})
    short = np.array([[True, True, True], [True, False, False]])
    padded = fusion.batch_of(labels, **{name: fusion.sequence(value, short) for name, value in x.items()})
    variables = jax.jit(lambda key: masked.init(key, whole, train=False))(jax.random.key(0))

    def terms_of(model, batch):
        out = model.apply(variables, batch, train=False)
        return {name: fusion.total(term) for name, term in tailor.loss(model, out, batch).items()}

    run = jax.jit(terms_of, static_argnums=0, compiler_options=fusion.QUICK)
    for name, value in run(reading, whole).items():
        np.testing.assert_allclose(run(masked, whole)[name], value, rtol=1e-5, err_msg=name)
    apart = {name: abs(float(run(masked, padded)[name] - value)) for name, value in run(reading, padded).items()}
    assert apart.pop('common') < 1e-6, 'of the first step, which is there'
    assert min(apart.values()) > 1e-6, apart

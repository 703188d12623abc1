"""Self-MM against the authors' numbers: one step on labels of its own, and how these labels are made."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from jmer import own_labels
from jmer.models.utterance import self_mm
from jmer.types import Label, Output

from . import fusion, parity

LETTERS = {'text': 't', 'audio': 'a', 'vision': 'v'}
NAMES = {'M': 'all', 'T': 'text', 'A': 'audio', 'V': 'vision'}


def adapt(fixture):
    h, state = fixture.hparams, fixture.section('param')
    hidden = tuple(len(state[f'post_{part}_layer_1.bias']) for part in ('fusion', 'text', 'audio', 'video'))
    return self_mm.Model(len(state['post_fusion_layer_3.bias']), states=(h['a_h'], h['v_h']),
                         widths=(h['audio_out'], h['video_out']), hidden=hidden, dropout=0.0)


def to_batch(inputs, aligned):
    """Aligned streams are as long as the text. Labels: all together, text, audio, vision."""
    words = inputs['text_mask'].sum(1).astype(np.int32)
    streams = {'text': fusion.sequence(inputs['text_features'])}
    for name in ('audio', 'vision'):
        x, lengths = inputs[name], words if aligned else inputs[f'{name}_lengths']
        streams[name] = fusion.sequence(x, jnp.arange(x.shape[1])[None] < lengths[:, None])
    batch = fusion.batch_of(**streams)
    labels = {name: Label(inputs['labels'][:, k, None], batch.present) for k, name in enumerate(NAMES.values())}
    return batch._replace(labels=labels)


def named_outputs(out):
    features = {f'Feature_{LETTERS.get(name, "f")}': x for name, x in out.aux['features'].items()}
    return features | {'M': out.logits} | {LETTERS[name].upper(): x for name, x in out.aux['alone'].items()}


@pytest.mark.parametrize('name', parity.names('self_mm'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model, aligned = adapt(fixture), fixture.hparams['aligned']

    def all_losses(out, inputs):
        terms = self_mm.loss(model, out, to_batch(inputs, aligned))
        found = {LETTERS.get(key, 'm').upper(): fusion.total(term) for key, term in terms.items()}
        return found | {'total': sum(found.values())}

    fusion.assert_equals(
        fixture,
        lambda state: self_mm.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs, aligned), train=train), {}),
        named_outputs,
        all_losses,
    )


def batches_of(aux):
    """Epoch, utterances and features of every recorded batch, in order."""
    for key in sorted(k for k in aux if k.endswith('_index')):
        epoch, number = map(int, re.match(r'ulgm_e(\d+)b(\d+)_index', key).groups())
        prefix = f'ulgm_e{epoch}b{number}'
        features = {ours: aux[f'{prefix}_feat_{theirs}'] for theirs, ours in NAMES.items()}
        yield prefix, epoch, aux[key].astype(np.int32), features


@pytest.mark.parametrize('name', parity.names('self_mm'))
def test_labels_are_made_as_the_authors_make_them(name):
    """Three epochs of two batches: labels and centres after each, and the loss on the labels of the end."""
    fixture = parity.load(name)
    aux, h = fixture.section('aux'), fixture.hparams
    widths = tuple(aux[f'ulgm_e1b0_feat_{letter}'].shape[1] for letter in NAMES)
    model = self_mm.Model(1, hidden=widths)
    memory = own_labels.start(model, aux['ulgm_labels_m'])
    rule = {'zero_is_positive': not h['excludeZero']}
    for prefix, epoch, items, features in batches_of(aux):
        there = dict.fromkeys(NAMES.values(), jnp.ones(len(items), bool))
        memory = own_labels.memory_after(memory, features, there, items, epoch, bound=h['H'], **rule)
        for letter, ours in NAMES.items():
            positive, negative, known = own_labels.centres(memory, ours, **rule)
            assert known
            for kind, found in (('label', memory.labels[ours]), ('pos', positive), ('neg', negative)):
                parity.assert_close_output(fixture, f'aux/{prefix}_{kind}_{letter}', found)

    scores = aux['ulgm_wl_pred']
    items = np.arange(len(scores), dtype=np.int32)
    batch = fusion.batch_of(aux['ulgm_labels_m'][:len(scores), None],
                            **{stream: fusion.sequence(scores[:, None]) for stream in LETTERS})
    batch = own_labels.with_labels(batch, memory, items)
    there = dict.fromkeys(NAMES.values(), batch.present)
    out = Output(scores, {'alone': dict.fromkeys(LETTERS, scores), 'there': there})
    for key, term in self_mm.loss(model, out, batch).items():
        parity.assert_close_loss(fixture, f'aux/ulgm_wl_{LETTERS.get(key, "m").upper()}', fusion.total(term))


def test_only_what_is_there_is_stored_and_labelled():
    """Neither a missing stream nor a row that pads the batch leaves a trace; labels of one side only stay."""
    model = self_mm.Model(1, hidden=(2, 2, 2, 2))
    memory = own_labels.start(model, np.array([1.0, -1.0, 2.0], np.float32))
    memory = memory._replace(features={name: x + 1.0 for name, x in memory.features.items()})
    items, features = np.array([2, 0, 0], np.int32), dict.fromkeys(memory.features, 5 * jnp.ones((3, 2)))
    there = dict.fromkeys(memory.features, np.array([True, True, False])) | {
        'audio': np.array([False, True, False])}
    after = own_labels.memory_after(memory, features, there, items, 2)
    np.testing.assert_array_equal(after.features['text'][:, 0], [5, 1, 5])
    np.testing.assert_array_equal(after.features['audio'][:, 0], [5, 1, 1])
    assert all(np.isfinite(x).all() for x in after.labels.values())

    same_side = own_labels.start(model, np.array([1.0, 1.0, 2.0], np.float32))
    after = own_labels.memory_after(same_side, features, there, items, 2)
    np.testing.assert_array_equal(after.labels['text'], same_side.labels['text'])
    np.testing.assert_array_equal(after.features['text'][:, 0], [5, 0, 5])

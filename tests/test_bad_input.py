"""What every model refuses, in words that name it: traced only, nothing is compiled."""

import re
from functools import cache, partial

import jax
import numpy as np
import pytest

from jmer import losses, zoo
from jmer.layers.checked import Checked, streams_of
from jmer.types import Batch, Label, Stream
from tests import batches
from tests.test_models import MODELS, STREAMS, batch_of, model_of

DIALOGUES = set(zoo.list_models('dialogue'))


def trace(name, batch, **fields):
    """The shapes of a model's outputs."""
    model = model_of(name).clone(**fields)
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch, train=False)[0])


def changed(batch: Batch, change) -> Batch:
    """The batch with all streams changed."""
    return batch._replace(streams={name: change(stream) for name, stream in batch.streams.items()})


def refused(name, batch, message):
    with pytest.raises(ValueError, match=rf'^{name}: {message}'):
        trace(name, batch)


@pytest.mark.parametrize('name', MODELS)
def test_a_model_checks_its_batches(name):
    assert issubclass(zoo.module(name).Model, Checked), f'{name}: write class Model(Checked), of layers.checked'


@pytest.mark.parametrize('name', MODELS)
def test_a_stream_that_is_not_in_the_batch(name):
    batch = batch_of(name)
    for stream in streams_of(model_of(name)):
        others = {n: s for n, s in batch.streams.items() if n != stream}
        there = ', '.join(sorted(others)) or 'none'
        refused(name, batch._replace(streams=others), f"stream '{stream}': found only {there}, expected it")


@pytest.mark.parametrize('name', MODELS)
def test_streams_of_another_layout(name):
    batch, stream = batch_of(name), streams_of(model_of(name))[0]
    x, mask = batch.streams[stream]
    flat = changed(batch, lambda s: Stream(s.x[:, 0], s.mask[:, 0]))
    deep = changed(batch, lambda s: Stream(s.x[:, :, None], s.mask[:, :, None]))
    refused(name, flat, re.escape(f"stream '{stream}': found shape {x[:, 0].shape}, expected"))
    if name in DIALOGUES:
        assert trace(name, deep).logits.shape[:2] == batch.present.shape, 'steps inside turns are read as well'
        refused(name, changed(batch, lambda s: Stream(s.x[:, 1:], s.mask[:, 1:])), f"stream '{stream}': found shape")
    else:
        refused(name, deep, re.escape(f"stream '{stream}': found shape {deep.streams[stream].x.shape}, expected"))
    short = batch._replace(streams=batch.streams | {stream: Stream(x, mask[:, 1:])})
    refused(name, short, re.escape(f"stream '{stream}': found a mask bool {mask[:, 1:].shape}, expected"))
    counted = batch._replace(streams=batch.streams | {stream: Stream(x, mask.astype(np.int32))})
    refused(name, counted, f"stream '{stream}': found a mask int32")


@pytest.mark.parametrize('name', MODELS)
def test_items_of_another_family(name):
    batch = batch_of(name)
    refused(name, batch._replace(present=batch.present[..., None]), 'present: found shape')
    if name in DIALOGUES:
        refused(name, jax.tree.map(lambda x: x[:, :0], batch), r'present: .* expected dialogues of at least one turn')
        refused(name, batch._replace(speakers=batch.speakers[:, 1:]), 'speakers: found int32')
        refused(name, batch._replace(speakers=batch.speakers.astype(np.float32)), 'speakers: found float32')


@pytest.mark.parametrize('name', MODELS)
def test_a_sequence_of_one_step_and_of_none(name):
    batch = batch_of(name)
    if name in DIALOGUES:
        assert trace(name, jax.tree.map(lambda x: x[:, :1], batch)).logits.shape == (3, 1, batches.CLASSES)
        return
    assert trace(name, changed(batch, lambda s: Stream(s.x[:, :1], s.mask[:, :1]))).logits.shape[0] == 3
    refused(name, changed(batch, lambda s: Stream(s.x[:, :0], s.mask[:, :0])), r"stream '.*': .* at least one step")


TABLES = {'camser': {}, 'cfn_sr': {}, 'dst': {'random_positions': 20}, 'jca': {}, 'lfmim': {}, 'mag': {}, 'rja': {},
          'shiftser': {}, 'tailor': {}}
"""Models with weights for so many steps and no more, and the fields that make others such a model."""


@pytest.mark.parametrize('name', sorted(TABLES))
def test_sequences_longer_than_a_table(name):
    long = changed(batch_of(name), lambda s: Stream(np.repeat(s.x, 9, 1), np.repeat(s.mask, 9, 1)))
    with pytest.raises(ValueError, match=rf'^{name}: .*found \d+ steps, expected at most'):
        trace(name, long, **TABLES[name])


READABLE = {'gmu': {'streams': STREAMS[:2]}, 'jca': {'classes': 2}, 'rja': {'classes': 2},
            'imder': {'streams': STREAMS}, 'lmr_cbt': {'streams': STREAMS}, 'mag': {'vocabulary': 7},
            'mult': {'streams': STREAMS}}
"""Fields with which the authors' code could have made the model of a case."""
CONVERTIBLE = [name for name in MODELS if hasattr(zoo.module(name), 'params_from_author')]


@pytest.mark.parametrize('name', CONVERTIBLE)
def test_a_checkpoint_of_another_system(name):
    """All that is missing and all that is left over, in one message."""
    convert = zoo.module(name).params_from_author
    model = model_of(name).clone(**READABLE.get(name, {}))
    message = rf'(?s)this is not a checkpoint of {name}, .*missing .*surplus +another\.bias: found \(3,\)'
    with pytest.raises(ValueError, match=message):
        convert({'another.bias': np.zeros(3, np.float32)}, model)


@pytest.mark.parametrize('name', [name for name in CONVERTIBLE if hasattr(model_of(name), 'streams')])
def test_streams_that_the_authors_do_not_know(name):
    """Refused by name, unless their code takes any; never by an error from within."""
    for streams in (('text',), (*STREAMS, 'eeg')):
        model = model_of(name).clone(**READABLE.get(name, {}) | {'streams': streams})
        with pytest.raises(ValueError, match=rf'^{name}: .*streams.* but the authors know|not a checkpoint of {name}'):
            zoo.module(name).params_from_author({}, model)


def label_of(kind, batch, width=batches.CLASSES) -> Label:
    shape = batch.present.shape
    values = {'class': np.zeros(shape, np.int32), 'multilabel': np.zeros((*shape, width), np.float32),
              'regression': np.zeros((*shape, width), np.float32),
              'distribution': np.full((*shape, width), 1 / width, np.float32)}
    return Label(values[kind], batch.present)


@cache
def outputs(name):
    """The shapes of a model's outputs in training."""
    keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    return jax.eval_shape(lambda: model_of(name).init_with_output(keys, batch_of(name), train=True)[0])


def terms(name, label):
    """The shapes of a model's own loss."""
    batch = batch_of(name)._replace(labels={'target': label})
    return jax.eval_shape(lambda out: zoo.module(name).loss(model_of(name), out, batch), outputs(name))


@pytest.mark.parametrize('name', [name for name in MODELS if hasattr(zoo.module(name), 'loss')])
def test_labels_that_the_loss_does_not_take(name):
    """What `zoo.labels` says of a loss is so; a width that does not fit is refused."""
    kinds, label = zoo.labels(name), partial(label_of, batch=batch_of(name))
    for kind in kinds:
        assert all(term.value.shape == term.weight.shape for term in terms(name, label(kind)).values())
    other = label('regression') if kinds == ('class',) else label(kinds[-1], width=batches.CLASSES + 1)
    with pytest.raises(ValueError, match=r'label: found .*float32'):
        terms(name, other)


def test_the_trainer_has_a_loss_for_every_kind():
    """And refuses the labels of the others."""
    batch, logits = batch_of('gmu'), np.zeros((3, batches.CLASSES), np.float32)
    for kind in zoo.KINDS:
        loss, wrong = losses.supervised(kind), 'regression' if kind == 'class' else 'class'
        assert loss(logits, label_of(kind, batch)).value.shape == (3,)
        with pytest.raises(ValueError, match='label: found'):
            loss(logits, label_of(wrong, batch))
        with pytest.raises(ValueError, match='label: found float32'):
            loss(logits, label_of('regression', batch, batches.CLASSES + 1))

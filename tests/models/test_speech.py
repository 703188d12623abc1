"""Variants of speech systems that the contract's small cases do not cover: padding must not matter to them either."""

import jax
import numpy as np
import pytest

from jmer import zoo
from jmer.models.speech import dwformer, shiftser
from tests import batches

VARIANTS = [
    ('shiftser', {'network': 'cnn', 'parts': 4}),
    ('shiftser', {'network': 'rnn', 'both_ways': False}),
    ('shiftser', {'network': 'transformer', 'stride': 2}),
    ('shiftser', {'shift': False, 'positions': 'absolute', 'heads': 2, 'length': 15}),
    ('attcorr', {'width': 0, 'pooling': 'correlation'}),
    ('attcorr', {'width': 5, 'pooling': 'mean_std'}),
    ('headfusion', {'kind': 'acnn', 'channels': (2, 3, 3, 3, 3)}),
    ('dst', {'layers': 1, 'heads': 2, 'hidden': 6, 'length': 30, 'random_positions': 15, 'activation': 'gelu'}),
    ('timnet', {'width': 4, 'blocks': 2, 'kernel': 3}),
]


@pytest.mark.parametrize(('name', 'fields'), VARIANTS, ids=lambda value: value if isinstance(value, str) else '')
def test_padding_is_invisible(name, fields):
    model, batch = zoo.create(name, classes=3, **fields), batches.speech()
    variables = jax.jit(lambda key: model.init(key, batch, train=False))(jax.random.key(0))
    run = jax.jit(lambda batch: model.apply(variables, batch, train=False).logits)
    logits = run(batch)
    np.testing.assert_allclose(run(batches.pad(batch))[:3], logits, atol=2e-5, rtol=1e-5)
    assert np.isfinite(run(batches.without(batch, 'audio'))).all()
    assert np.abs(logits - logits[:1]).max() > 1e-4


@pytest.mark.parametrize(('name', 'fields', 'message'), [
    ('shiftser', {'network': 'gru'}, "shiftser: network: found 'gru', expected one of transformer, cnn, rnn"),
    ('shiftser', {'parts': 1}, 'shiftser: parts: found 1, expected 2 or more'),
    ('shiftser', {'network': 'cnn', 'kernel': 4}, 'shiftser: kernel: found 4, expected an odd number'),
    ('attcorr', {'pooling': 'mean'}, "attcorr: pooling: found 'mean', expected one of attentive"),
    ('headfusion', {'kind': 'cnn'}, "headfusion: kind: found 'cnn', expected one of macnn, acnn"),
    ('dst', {'length': 25}, 'dst: length: found 25, expected more than 25 steps'),
    ('dst', {'heads': 3}, 'dst: heads: found 3, expected 2 or more that divide the width 16'),
    ('deer', {'states': 3}, 'deer: audio: found 16 features, expected a multiple of states=3'),
])
def test_fields_that_cannot_be_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: zoo.create(name, classes=3, **fields).init(
            jax.random.key(0), batches.speech(), train=False))


def test_windows_end_where_the_score_crosses_its_threshold():
    """Of neighbouring crossings only the first counts, so that no window but the last is a single step."""
    score = np.array([[1, 1, 0, 1, 1, 0, 0, 0, 1, 9]], np.float32)
    mask = np.arange(10) < np.array([[9]])
    found = dwformer.split(score, np.array([0.5], np.float32), mask)
    expected = [[0, 1], [2, 3, 4], [5, 6, 7], [8], [], []]
    assert [np.flatnonzero(window).tolist() for window in found.member[0]] == expected
    assert found.together[0, 2, 4] and not found.together[0, 4, 5] and not found.together[0, 9].any()


def test_the_shift_moves_channels_both_ways():
    x = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4)
    mask = np.ones((1, 3), bool)
    found = shiftser.shift(x, mask, parts=4)
    np.testing.assert_array_equal(found[0], [[0, 6, 3, 4], [1, 10, 7, 8], [5, 0, 11, 12]])
    one_way = shiftser.shift(x, mask, parts=2, both_ways=False)
    np.testing.assert_array_equal(one_way[0], [[0, 0, 3, 4], [1, 2, 7, 8], [5, 6, 11, 12]])


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_every_step_meets_the_vector_of_its_distance_to_every_step(steps):
    rng = np.random.default_rng(steps)
    x = rng.normal(size=(2, 3, steps, 4)).astype(np.float32)
    table = rng.normal(size=(2 * steps - 1, 4)).astype(np.float32)
    step = np.arange(steps)
    vectors = table[step[None] - step[:, None] + steps - 1]
    np.testing.assert_allclose(shiftser.by_distance(x, table), np.einsum('bhtk,tsk->bhts', x, vectors), atol=1e-5)

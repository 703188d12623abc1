"""Rows that hold several sequences give what the sequences give alone, and so do their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers import packed
from jmer.layers.packed import pack
from jmer.layers.party import by_speaker
from jmer.layers.recurrent import BiLSTM

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 7, 3)).astype(np.float32)
MASK = np.arange(7)[None] < np.array([[3], [7], [0], [5], [2]])
HOLES = MASK & (np.arange(7)[None] != 1)
SPEAKERS = RNG.integers(0, 3, (5, 7)).astype(np.int32)
LAYER = BiLSTM(2, 2)


@pytest.fixture(scope='module')
def params():
    return jax.jit(lambda key: LAYER.init(key, X, MASK, train=False))(jax.random.key(0))


@pytest.fixture(params=[False, True], ids=['own rows', 'shared rows'])
def shared(request, monkeypatch):
    monkeypatch.setattr(packed, 'on_one_cpu', lambda: request.param)
    monkeypatch.setattr(packed, 'LEAST_WORK', 0)
    return request.param


def states(params, x, mask=HOLES, parts=None):
    return LAYER.apply(params, x, mask, parts, train=False)


def squares(params, x, mask=HOLES, parts=None):
    y = states(params, x, mask, parts)
    return jnp.sum(jnp.sin(y)), y


def test_steps_come_back_to_their_place(shared):
    order = pack(MASK, SPEAKERS, 1)
    assert order.there.shape == ((14, 3) if shared else (7, 5))
    assert int(order.there.sum()) == MASK.sum()
    garbage = np.where(MASK[..., None], X, np.nan)
    np.testing.assert_array_equal(order.sequences(order.rows(garbage)), np.where(MASK[..., None], X, 0))
    assert int(order.steps) == 7, 'the longest shares its row with an empty one, and the others are shorter together'
    assert int(order.first.sum()) == int(order.last.sum()) == sum(
        len(set(SPEAKERS[b, MASK[b]].tolist())) for b in range(5))


def test_sequences_that_share_a_row_are_read_as_if_alone(params, monkeypatch):
    garbage = np.where(HOLES[..., None], X, np.nan)
    expected = jax.jit(lambda x: states(params, x))(X)
    monkeypatch.setattr(packed, 'shares', lambda rows, width: True)
    np.testing.assert_allclose(jax.jit(lambda x: states(params, x))(garbage), expected, atol=1e-6)


def test_parts_and_their_gradients_are_those_of_each_speaker_alone(shared, params):
    def one_by_one(params, x):
        y = by_speaker(lambda x, mask: states(params, x, mask), x, SPEAKERS, HOLES, 3)
        return jnp.sum(jnp.sin(y)), y

    found = jax.jit(jax.grad(squares, (0, 1), has_aux=True))(params, X, HOLES, SPEAKERS)
    expected = jax.jit(jax.grad(one_by_one, (0, 1), has_aux=True))(params, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert not np.asarray(found[0][1])[~HOLES].any()


def test_the_gradient_is_that_of_differences(shared, params):
    run = jax.jit(lambda x: squares(params, x)[0])
    way = np.where(HOLES[..., None], RNG.normal(size=X.shape), 0).astype(np.float32)
    slope = float(jnp.sum(jax.jit(jax.grad(run))(X) * way))
    step = 1e-2
    assert slope == pytest.approx(float(run(X + step * way) - run(X - step * way)) / (2 * step), rel=1e-2)


def test_seeds_have_batches_of_their_own(shared, params):
    masks = np.stack([HOLES, HOLES[::-1]])
    found = jax.jit(jax.vmap(lambda x, mask: jax.grad(lambda x: squares(params, x, mask)[0])(x)))(
        np.stack([X, X[::-1]]), masks)
    np.testing.assert_allclose(found[1], found[0][::-1], atol=1e-6)
    assert np.asarray(found[0]).any()

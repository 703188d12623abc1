"""From a masked sequence to one vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers.pooling import KINDS, pool, pooled_streams, turn_mask, turn_vectors
from jmer.types import Stream
from tests import batches

RAGGED = [np.random.default_rng(n).normal(size=(n, 3)) - 5 for n in (4, 1, 6)]


def thirds(count):
    return [[k for k in range(count) if 3 * k // count == third] for third in range(3)]


BY_HAND = {
    'mean': lambda x: x.mean(0),
    'mean_std': lambda x: np.concatenate([x.mean(0), x.std(0)]),
    'thirds': lambda x: np.concatenate(
        [x[part].mean(0) if len(part) else x.mean(0) for part in thirds(len(x))]
    ),
    'max': lambda x: x.max(0),
    'last': lambda x: x[-1],
}


def spread_out(garbage=np.nan):
    """The ragged sequences with absent steps among and around them, and an item without any: [4 9 3]."""
    rng = np.random.default_rng(9)
    x, mask = np.full((4, 9, 3), garbage, np.float32), np.zeros((4, 9), bool)
    for row, steps in enumerate(RAGGED):
        places = np.sort(rng.permutation(9)[: len(steps)])
        x[row, places], mask[row, places] = steps, True
    return x, mask


@pytest.mark.parametrize('kind', KINDS)
def test_pooling_is_that_of_the_steps_that_are_there(kind):
    x, mask = spread_out()
    pooled = np.asarray(pool(x, mask, kind))
    for row, steps in enumerate(RAGGED):
        np.testing.assert_allclose(pooled[row], BY_HAND[kind](steps), rtol=1e-5, atol=2e-5)
    assert not pooled[3].any(), 'an item without steps gives zeros'
    turns = np.asarray(pool(x[:, None], mask[:, None], kind))
    np.testing.assert_allclose(turns[:, 0], pooled, rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_are_finite_even_of_a_constant_and_absent_steps_have_none(kind):
    x, mask = spread_out()
    x[0, mask[0]] = 2.0
    gradient = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(pool(x, mask, kind) ** 2)))(x))
    assert np.isfinite(gradient).all() and not gradient[~mask].any() and gradient[:3].any((1, 2)).all()


def test_another_kind_is_refused_by_name():
    with pytest.raises(ValueError, match="pooling 'median': it is one of mean, mean_std, thirds, max, last"):
        pool(*spread_out(), 'median')


def test_streams_side_by_side_and_which_are_there():
    batch = batches.without(batches.utterances(), 'audio')
    vectors, there = pooled_streams(batch, ('vision', 'audio'), 'mean')
    assert there.tolist() == [[True, False]] * 3
    np.testing.assert_allclose(vectors[0], batch.streams['vision'].x.mean(1), rtol=1e-6)
    assert not np.asarray(vectors[1]).any()


def test_one_vector_a_turn():
    x, mask = spread_out()
    np.testing.assert_array_equal(turn_vectors(Stream(x, mask)), np.where(mask[..., None], x, 0))
    np.testing.assert_allclose(
        turn_vectors(Stream(x[None], mask[None]))[0, :3], [steps.mean(0) for steps in RAGGED], rtol=1e-5
    )


def test_one_step_makes_a_turn_present():
    steps = np.array([[[True, False], [False, False], [False, True]]])
    np.testing.assert_array_equal(turn_mask(Stream(np.ones((1, 3, 2, 4), np.float32), steps)), [[True, False, True]])
    turns = np.array([[True, False, True]])
    np.testing.assert_array_equal(turn_mask(Stream(np.ones((1, 3, 4), np.float32), turns)), turns)

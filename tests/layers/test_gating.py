"""The adaptation gate's bounds, and lengths whose gradient exists at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers.gating import AdaptationGate, length, unit
from jmer.types import Stream

RNG = np.random.default_rng(0)
WORDS = RNG.normal(size=(2, 3, 4)).astype(np.float32)
HEARD = RNG.normal(size=(2, 3, 5)).astype(np.float32)


def test_lengths_and_directions():
    x = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(length(x), [[5], [0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: length(x).sum())(jnp.zeros((1, 2))), np.zeros((1, 2)))


@pytest.fixture(scope='module')
def variables():
    streams = {'audio': Stream(HEARD, np.ones((2, 3), bool))}
    params = jax.jit(lambda key: AdaptationGate().init(key, WORDS, streams, train=False))(jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.3, params)


def shifted(variables, mask, heard=HEARD, beta=1.0):
    streams = {'audio': Stream(heard, mask)}
    return np.asarray(AdaptationGate(beta).apply(variables, WORDS, streams, train=False))


def test_an_absent_step_shifts_no_word(variables):
    mask = np.array([[True, False, True], [False, False, False]])
    found, all_there = shifted(variables, mask), shifted(variables, np.ones((2, 3), bool))
    norm = jax.tree.map(np.asarray, variables['params']['norm'])
    centred = WORDS - WORDS.mean(-1, keepdims=True)
    alone = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * norm['scale'] + norm['bias']
    np.testing.assert_allclose(found[~mask], alone[~mask], atol=1e-5)
    np.testing.assert_allclose(found[mask], all_there[mask], atol=1e-6)
    assert np.abs(found[mask] - alone[mask]).max() > 1e-2
    np.testing.assert_array_equal(found, shifted(variables, mask, np.where(mask[..., None], HEARD, 1e3)))


def test_a_shift_is_at_most_beta_words_long(variables):
    """However loud the audio is, its direction alone decides once the limit is reached."""
    mask = np.ones((2, 3), bool)
    loud, louder = (shifted(variables, mask, factor * HEARD) for factor in (1e3, 1e5))
    np.testing.assert_allclose(loud, louder, atol=2e-2)
    assert np.abs(shifted(variables, mask, 1e3 * HEARD, beta=0.1) - loud).max() > 0.1

"""Sequences of a given number of steps, windows within a sequence, and reversed gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers.adversarial import reverse_gradient
from jmer.layers.conv import inside
from jmer.layers.steps import extend, fit
from jmer.types import Stream

X = np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2)
MASK = np.array([[True, True, True], [True, False, False]])


def test_shorter_is_extended_longer_is_cut():
    longer, shorter = fit(Stream(X, MASK), 4), fit(Stream(X, MASK), 2)
    np.testing.assert_array_equal(longer.mask, [[True, True, True, False], [True, False, False, False]])
    np.testing.assert_array_equal(longer.x[:, :3], np.where(MASK[..., None], X, 0))
    np.testing.assert_array_equal(longer.x[:, 3], 0)
    np.testing.assert_array_equal(shorter.x[0], X[0, :2])


def test_a_longer_sequence_is_refused_by_the_name_of_the_model():
    with pytest.raises(ValueError, match='some_model: found 3 steps, expected at most 2'):
        extend(Stream(X, MASK), 2, 'some_model')


def test_windows_within_a_sequence():
    windows = inside(Stream(X, MASK), 2)
    np.testing.assert_array_equal(windows.x[0], [[1, 2, 3, 4], [3, 4, 5, 6]])
    np.testing.assert_array_equal(windows.mask, [[True, True], [False, False]])
    assert not inside(Stream(X, MASK), 5).mask.any()
    assert inside(Stream(X, MASK), 5).x.shape == (2, 1, 10)


def test_a_gradient_is_reversed():
    x = jnp.array([1.0, -2.0])
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(reverse_gradient(x, 0.5) ** 2))(x)
    assert value == 5
    np.testing.assert_allclose(gradient, -0.5 * 2 * x)

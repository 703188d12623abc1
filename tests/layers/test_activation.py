"""The values and the derivative of GELU, against the error function of Python's own library."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jmer.layers.activation import gelu

X = np.linspace(-12, 12, 49, dtype=np.float32)


def distribution(x):
    return np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x])


def test_gelu_is_x_times_the_normal_distribution_function():
    np.testing.assert_allclose(gelu(jnp.asarray(X)), X * distribution(X), rtol=1e-6, atol=1e-6)


def test_its_derivative_is_that_of_the_closed_form():
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(gelu)))(X)
    density = np.exp(-X.astype(float)**2 / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(slope, distribution(X) + X * density, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(value, jax.jit(gelu)(X))

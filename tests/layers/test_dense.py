"""The dense layer of the zoo against Flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers import dense


def _kernels(x, width):
    rng = np.random.default_rng(0)
    return {'params': {'kernel': rng.normal(size=(x.shape[-1], width)).astype(np.float32),
                       'bias': rng.normal(size=width).astype(np.float32)}}


def _gradients(layer, params, x):
    return jax.grad(lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x))), (0, 1))(params, x)


@pytest.mark.parametrize('shape, width', [((3, 5), 4), ((2, 7, 5), 9), ((20, 30, 8), 3), ((20, 30, 3), 8), ((6,), 2)])
def test_equals_that_of_flax_and_so_do_its_gradients(shape, width):
    """On both sides of the rule for the gradient of a kernel, and of a vector."""
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    params, ours, theirs = _kernels(x, width), dense.Dense(width), nn.Dense(width)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
                 _gradients(ours, params, x), _gradients(theirs, params, x))


def test_starts_from_the_same_parameters_as_that_of_flax():
    x = np.ones((2, 3, 5), np.float32)
    ours, theirs = (layer.init(jax.random.key(0), x) for layer in (dense.Dense(4), nn.Dense(4)))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_many_rows_and_a_narrow_result_make_the_gradient_the_other_way_round():
    def swaps(rows, inputs, width):
        program = jax.make_jaxpr(dense.kernel_gradient)(np.ones((rows, inputs)), np.ones((rows, width)))
        return 'optimization_barrier' in str(program)

    assert swaps(dense.MANY_ROWS, 8, 4)
    assert not swaps(dense.MANY_ROWS - 1, 8, 4)
    assert not swaps(dense.MANY_ROWS, 4, 8)


def test_seeds_have_gradients_of_their_own():
    rng = np.random.default_rng(2)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 600, 6), (2, 6, 3)))
    gradient = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(dense.product(x, kernel))), (0, 1))
    together = jax.vmap(gradient)(x, kernel)
    for k in range(2):
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-5, atol=1e-5),
                     together, gradient(x[k], kernel[k]))


def test_keeps_the_precision_of_what_it_is_given():
    x, kernel = jnp.ones((600, 6), jnp.bfloat16), jnp.ones((6, 3), jnp.float32)
    dx, dkernel = jax.grad(lambda x, kernel: jnp.sum(dense.product(x, kernel)), (0, 1))(x, kernel)
    assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.float32)

"""Convolutions as products over windows: the same numbers, and padding that does not matter."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers import conv
from jmer.layers.conv import largest, windows
from jmer.layers.rcan import ResidualGroup


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(('dilation', 'stride', 'before', 'after'),
                         [(1, 1, 0, 0), (2, 1, 4, 0), (3, 2, 1, 2), (1, 3, 0, 1)])
def test_a_product_over_windows_is_a_convolution(dilation, stride, before, after):
    x, kernel = draw(2, 11, 3), draw(3, 3, 4, seed=1)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride,), [(before, after)], rhs_dilation=(dilation,), dimension_numbers=('NWC', 'WIO', 'NWC'))
    seen = windows(x, np.ones((2, 11), bool), 3, dilation=dilation, stride=stride, before=before, after=after)
    np.testing.assert_allclose(seen @ kernel.reshape(9, 4), expected, atol=1e-5)


def test_absent_steps_are_zeros():
    x, mask = draw(2, 6, 3), np.arange(6) < np.array([[4], [6]])
    seen = windows(x, mask, 2, after=1)
    clean = windows(np.where(mask[..., None], x, 0), np.ones_like(mask), 2, after=1)
    np.testing.assert_array_equal(seen, clean)
    assert (seen[0, 4:] == 0).all() and (seen[1, 4:] != 0).any()


def test_a_sequence_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match='convolution: found 3 steps, expected 4 or more'):
        windows(draw(1, 3, 2), np.ones((1, 3), bool), 3, dilation=2, before=1)


def test_a_residual_group_does_not_see_padding():
    group, x = ResidualGroup(2, reduction=4), draw(2, 7, 8)
    mask = np.arange(7) < np.array([[5], [0]])
    variables = group.init(jax.random.key(0), x, mask)
    run = jax.jit(group.apply)
    out = run(variables, x, mask)
    np.testing.assert_allclose(out[:1, :5], run(variables, x[:1, :5], mask[:1, :5]), atol=1e-6)
    np.testing.assert_array_equal(out, run(variables, np.where(mask[..., None], x, 1e3).astype(np.float32), mask))
    assert (out[0, 5:] == 0).all() and (out[1] == 0).all()
    with pytest.raises(ValueError, match='found 8 channels, expected reduction=16 or more'):
        ResidualGroup(2).init(jax.random.key(0), x, mask)


@pytest.mark.parametrize(('size', 'stride'), [(2, 2), (3, 2)])
def test_the_largest_values_are_those_of_pooling(size, stride):
    x = draw(2, 8, 7, 3)
    expected, pull = jax.vjp(lambda x: nn.max_pool(x, (size, size), (stride, stride)), x)
    found, ours = jax.vjp(lambda x: largest(x, size, stride), x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(ours(expected)[0], pull(expected)[0], atol=1e-6)


@pytest.mark.parametrize(('shape', 'stride', 'padding', 'bias'), [
    ((4, 19, 18, 2), 1, (1, 2), True), ((3, 40, 37, 3), 2, (0, 1), False), ((2, 6, 5, 2), 1, (1, 1), True)])
def test_a_convolution_and_its_gradients_are_those_of_flax(shape, stride, padding, bias):
    x = jax.random.normal(jax.random.key(0), shape)
    ours = conv.Convolution(5, (3, 2), stride, padding, bias)
    flax = nn.Conv(5, (3, 2), stride, [(n, n) for n in padding], use_bias=bias)
    variables = flax.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == jax.tree.map(jnp.shape, variables)

    def loss(module):
        return lambda variables, x: jnp.sum(jnp.sin(module.apply(variables, x)))

    np.testing.assert_allclose(ours.apply(variables, x), flax.apply(variables, x), atol=1e-5)
    found, expected = (jax.jit(jax.grad(loss(module), (0, 1)))(variables, x) for module in (ours, flax))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), found, expected)


def test_a_band_matrix_is_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 9, 7, 1))
    ours = conv.Banded(3, (4, 2), padding=(1, 2), use_bias=False)
    flax = nn.Conv(3, (4, 2), 1, [(1, 1), (2, 2)], use_bias=False)
    variables = flax.init(jax.random.key(1), x)
    np.testing.assert_allclose(ours.apply(variables, x), flax.apply(variables, x), atol=1e-5)
    with pytest.raises(ValueError, match='expected 1 and False'):
        conv.Banded(3, (4, 2)).init(jax.random.key(0), x)

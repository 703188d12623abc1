"""Batch normalisation: PyTorch's formulas, whatever is padded and however many devices there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import parallel
from jmer.collectives import AXIS, total
from jmer.layers.norm import BatchNorm

NORM = BatchNorm()
WIDTH = 3


def rows(count=16, seed=0, present=0.6):
    """Features far from zero mean and unit variance, unevenly present; garbage where absent."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(count, WIDTH)) * [1, 5, 0.5] + [0, -4, 3]).astype(np.float32)
    mask = rng.random(count) < present
    return np.where(mask[:, None], x, 1e4).astype(np.float32), mask


def variables(seed=1):
    rng = np.random.default_rng(seed)
    draw = {name: rng.uniform(0.5, 2, WIDTH).astype(np.float32) for name in ('scale', 'bias', 'mean', 'var')}
    return {
        'params': {n: draw[n] for n in ('scale', 'bias')},
        'batch_stats': {n: draw[n] for n in ('mean', 'var')},
    }


@jax.jit
def train(variables, x, mask):
    y, new = NORM.apply(variables, x, mask, train=True, mutable=['batch_stats'])
    return y, new['batch_stats']


def by_hand(variables, x, mask, momentum=0.1, epsilon=1e-5):
    """torch.nn.BatchNorm1d on the present rows alone, in float64."""
    p, s = variables['params'], variables['batch_stats']
    seen = x[mask].astype(np.float64)
    normal = (x.astype(np.float64) - seen.mean(0)) / np.sqrt(seen.var(0) + epsilon)
    statistics = {
        'mean': (1 - momentum) * s['mean'] + momentum * seen.mean(0),
        'var': (1 - momentum) * s['var'] + momentum * seen.var(0, ddof=1),
    }
    return (normal * p['scale'] + p['bias'])[mask], statistics


def test_training_follows_torch_on_the_rows_that_are_there():
    x, mask = rows()
    assert 2 < mask.sum() < len(mask)
    y, statistics = train(variables(), x, mask)
    expected, expected_statistics = by_hand(variables(), x, mask)
    np.testing.assert_allclose(np.asarray(y)[mask], expected, rtol=2e-5, atol=2e-5)
    for name, value in expected_statistics.items():
        np.testing.assert_allclose(statistics[name], value, rtol=1e-5)


def test_evaluation_uses_the_running_statistics():
    x, mask = rows()
    given = variables()
    p, s = given['params'], given['batch_stats']
    expected = (x - s['mean']) / np.sqrt(s['var'] + 1e-5) * p['scale'] + p['bias']
    for seen in (mask, ~mask):
        np.testing.assert_allclose(NORM.apply(given, x, seen, train=False), expected, rtol=1e-4, atol=1e-4)


def test_fresh_statistics_are_those_of_a_standard_normal():
    fresh = NORM.init(jax.random.key(0), *rows(), train=True)
    assert jax.tree.map(lambda v: v.tolist(), fresh) == {
        'params': {'scale': [1] * 3, 'bias': [0] * 3},
        'batch_stats': {'mean': [0] * 3, 'var': [1] * 3},
    }


def test_masked_rows_are_invisible_to_values_statistics_and_gradients():
    x, mask = rows()

    @jax.jit
    def loss(params, x):
        given = variables() | {'params': params}
        y, new = NORM.apply(given, x, mask, train=True, mutable=['batch_stats'])
        return jnp.sum(jnp.where(mask[:, None], jnp.sin(y), 0.0)), new

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    other = np.where(mask[:, None], x, -77.0).astype(np.float32)
    for a, b in zip(
        jax.tree.leaves(both(variables()['params'], x)),
        jax.tree.leaves(both(variables()['params'], other)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert not np.asarray(jax.grad(lambda v: loss(variables()['params'], v)[0])(x))[~mask].any()


@pytest.mark.parametrize('shape', [(4, 4), (2, 2, 4)])
def test_every_axis_but_the_last_is_batch(shape):
    x, mask = rows()
    y, statistics = train(variables(), x, mask)
    folded, of_folded = train(variables(), x.reshape(*shape, WIDTH), mask.reshape(shape))
    np.testing.assert_allclose(
        np.asarray(folded).reshape(x.shape)[mask], np.asarray(y)[mask], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(of_folded['var'], statistics['var'], rtol=1e-5)


def test_a_batch_without_rows_leaves_the_statistics_alone():
    x, mask = rows()
    y, statistics = train(variables(), x, np.zeros_like(mask))
    assert np.isfinite(y).all()
    for name, value in variables()['batch_stats'].items():
        np.testing.assert_array_equal(statistics[name], value)


def test_a_batch_of_one_row_keeps_the_variance():
    """One row says where the mean is and nothing of the spread; PyTorch refuses such a batch."""
    x, mask = rows()
    one = np.zeros_like(mask)
    one[3] = True
    y, statistics = train(variables(), x, one)
    np.testing.assert_array_equal(statistics['var'], variables()['batch_stats']['var'])
    np.testing.assert_allclose(np.asarray(y)[3], variables()['params']['bias'], atol=1e-5)


def value_and_gradient(params, x, mask):
    """Loss of the local rows, statistics and gradients with respect to parameters and input."""

    def loss(params, x):
        y, new = NORM.apply(variables() | {'params': params}, x, mask, train=True, mutable=['batch_stats'])
        return jnp.sum(jnp.where(mask[:, None], jnp.sin(y), 0.0)), new['batch_stats']

    (value, statistics), (of_params, of_x) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return total(value), statistics, total(of_params), of_x


@pytest.mark.parametrize('via', ['jit', 'pmap'])
def test_eight_devices_are_as_one(via):
    """Values and gradients; the rows of the first device are all absent, those of others in part."""
    x, mask = rows()
    mask = mask.copy()
    mask[:2] = False
    params = variables()['params']
    expected = jax.tree.map(np.asarray, jax.jit(value_and_gradient)(params, x, mask))
    mesh = parallel.mesh()
    if via == 'jit':
        found = jax.jit(value_and_gradient)(
            parallel.replicate(params, mesh), *parallel.shard((x, mask), mesh)
        )
        of_x = found[-1]
    else:
        mapped = jax.pmap(
            value_and_gradient, axis_name=AXIS, in_axes=(None, 0, 0), out_axes=(None, None, None, 0)
        )
        found = mapped(params, x.reshape(8, 2, WIDTH), mask.reshape(8, 2))
        of_x = np.asarray(found[-1]).reshape(x.shape)
    for a, b in zip(jax.tree.leaves(found[:-1]), jax.tree.leaves(expected[:-1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, expected[-1], rtol=1e-4, atol=1e-6 * np.abs(expected[-1]).max())


def test_the_biased_variance_is_remembered_if_asked_for():
    x = np.array([[1.0], [3.0]], np.float32)
    there = np.ones(2, bool)
    for norm, remembered in ((BatchNorm(1.0), 2.0), (BatchNorm(1.0, remember_biased=True), 1.0)):
        variables = norm.init(jax.random.key(0), x, there, train=True)
        _, changed = norm.apply(variables, x, there, train=True, mutable=['batch_stats'])
        np.testing.assert_allclose(changed['batch_stats']['var'], remembered, rtol=1e-6)

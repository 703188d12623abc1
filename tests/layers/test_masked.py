"""Dense layers that leave padding out: they say what all rows would say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers import masked
from jmer.layers.recurrent import BiLSTM

RNG = np.random.default_rng(0)
X, KERNEL = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((5, 7, 4), (4, 3)))
MASKS = {
    'few': RNG.random((5, 7)) < 0.3,
    'most': np.arange(35).reshape(5, 7) != 11,
    'all': np.ones((5, 7), bool),
    'none': np.zeros((5, 7), bool),
    'one': np.arange(35).reshape(5, 7) == 34,
}


@pytest.fixture
def skipping(monkeypatch):
    """Products of any size skip rows, on any device."""
    monkeypatch.setattr(masked, 'skips', lambda rows, inputs, width: True)


@pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
def test_present_rows_are_in_front_in_their_order(mask):
    rows = masked.rows_of(jnp.asarray(mask))
    count = mask.sum()
    assert rows.there.sum() == count and rows.there[:count].all()
    np.testing.assert_array_equal(rows.number[:count], np.flatnonzero(mask))
    np.testing.assert_array_equal(rows.number[rows.place], np.arange(mask.size))


@pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
def test_values_and_gradients_are_those_of_all_rows(mask, skipping):
    mask = jnp.asarray(mask)
    weight = jnp.asarray(RNG.normal(size=(5, 7, 3)), jnp.float32)

    def plain(x, kernel):
        return jnp.where(mask[..., None], x, 0) @ kernel

    def summed(function):
        return lambda x, kernel: jnp.sum(weight * jnp.sin(function(x, kernel)))

    np.testing.assert_allclose(masked.multiply(X, KERNEL, mask), plain(X, KERNEL), atol=1e-6)
    for found, true in zip(jax.grad(summed(lambda x, kernel: masked.multiply(x, kernel, mask)), (0, 1))(X, KERNEL),
                           jax.grad(summed(plain), (0, 1))(X, KERNEL), strict=True):
        np.testing.assert_allclose(found, true, atol=1e-5)


def test_nothing_under_the_mask_gets_out(skipping):
    mask = jnp.asarray(MASKS['few'])
    broken = jnp.where(mask[..., None], X, jnp.nan)
    y, pull = jax.vjp(lambda kernel: masked.multiply(broken, kernel, mask), KERNEL)
    np.testing.assert_array_equal(y, masked.multiply(X, KERNEL, mask))
    assert jnp.isfinite(pull(jnp.ones_like(y))[0]).all()


def test_a_layer_for_every_seed_at_once(skipping):
    kernels, mask = jnp.stack([KERNEL, 2 * KERNEL]), jnp.asarray(MASKS['few'])
    found = jax.vmap(masked.multiply, (None, 0, None))(X, kernels, mask)
    np.testing.assert_allclose(found[1], 2 * masked.multiply(X, KERNEL, mask), atol=1e-6)


def test_a_dense_layer_gives_its_bias_elsewhere():
    layer, mask = masked.MaskedDense(3), jnp.asarray(MASKS['few'])
    params = {'kernel': KERNEL, 'bias': jnp.arange(3.0)}
    y = layer.apply({'params': params}, X, mask)
    np.testing.assert_array_equal(y[~mask], jnp.broadcast_to(jnp.arange(3.0), y[~mask].shape))
    np.testing.assert_allclose(y[mask], X[mask] @ KERNEL + jnp.arange(3.0)[None], atol=1e-6)


def test_a_recurrent_layer_is_the_same(monkeypatch):
    mask = jnp.arange(7)[None] < jnp.array([7, 2, 1, 3, 2])[:, None]
    layer = BiLSTM(3, 2)
    params = layer.init(jax.random.key(0), X, mask, train=False)

    def gradient():
        return jax.grad(lambda params: jnp.sum(jnp.square(layer.apply(params, X, mask, train=False))))(params)

    plain = gradient()
    monkeypatch.setattr(masked, 'skips', lambda rows, inputs, width: True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient(), plain)


def test_only_large_products_skip_rows(monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: 1)
    assert masked.skips(1000, 512, 512)
    assert not masked.skips(100, 512, 512)
    assert not masked.skips(1000, 512, 100)
    monkeypatch.setattr(jax, 'device_count', lambda: 8)
    assert not masked.skips(1000, 512, 512)


def test_seeds_skip_what_each_of_them_lacks():
    """Mapped over seeds, masks and kernels: what each gives alone, and blocks are branches still, not choices."""
    rng = np.random.default_rng(3)
    x, kernel = rng.normal(size=(2, 48, 6)).astype(np.float32), rng.normal(size=(2, 6, 5)).astype(np.float32)
    masks = rng.random((2, 4, 12)) < np.array([0.2, 0.5])[:, None, None]

    def gradients(x, kernel, mask):
        return jax.value_and_grad(
            lambda *given: jnp.sum(jnp.sin(masked.product_of_present(*given, masked.rows_of(mask)))), (0, 1))(x, kernel)

    together = jax.jit(jax.vmap(gradients))
    for k in range(2):
        alone = gradients(x[k], kernel[k], masks[k])
        mine = jax.tree.map(lambda a: a[k], together(x, kernel, masks))  # noqa: B023
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert 'cond[' in str(jax.make_jaxpr(jax.vmap(gradients))(x, kernel, masks))

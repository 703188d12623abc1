"""Outer products, in full and at low rank."""

import jax
import numpy as np

from jmer.layers.bilinear import LowRank, outer, with_one

RNG = np.random.default_rng(0)
VECTORS = [RNG.normal(size=(3, width)).astype(np.float32) for width in (2, 4, 3)]


def test_the_last_index_of_an_outer_product_runs_fastest():
    x, y, z = VECTORS
    expected = np.einsum('bi,bj,bk->bijk', x, y, z).reshape(3, -1)
    np.testing.assert_allclose(outer(VECTORS), expected, rtol=1e-5)


def test_the_one_comes_first():
    np.testing.assert_array_equal(with_one(VECTORS[0]), np.concatenate([np.ones((3, 1)), VECTORS[0]], 1))


def test_low_rank_is_a_linear_map_of_the_outer_product():
    layer = LowRank(width=5, rank=2)
    params = jax.jit(layer.init)(jax.random.key(0), *VECTORS)['params']
    params = {name: np.asarray(x) + 0.1 for name, x in params.items()}      # so that the bias counts
    kernel = np.einsum('r,rio,rjo,rko->ijko', params['weights'][0], *(params[f'factor_{k}'] for k in range(3)))
    tensor = outer([with_one(x) for x in VECTORS])
    expected = tensor @ kernel.reshape(-1, 5) + params['bias']
    np.testing.assert_allclose(layer.apply({'params': params}, *VECTORS), expected, atol=1e-5)

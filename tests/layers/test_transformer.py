"""Attention and the post-norm layer against what is written out by hand."""

import jax
import numpy as np
import pytest
from scipy.special import erf, softmax

from jmer.layers.transformer import Attention, PostNormLayer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 6)).astype(np.float32)
SOURCE = RNG.normal(size=(2, 5, 3)).astype(np.float32)
MASK = np.arange(4)[None] < np.array([[4], [2]])
SOURCE_MASK = np.arange(5)[None] < np.array([[3], [5]])
ACTIVATION = {'relu': lambda x: np.maximum(x, 0), 'gelu': lambda x: x * (1 + erf(x / np.sqrt(2))) / 2}


def norm(params, x, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * params['scale'] + params['bias']


def by_hand(params, x, source, heads, activation, epsilon):
    """One sequence [t d] that reads another, nothing absent."""
    def dense(name, x):
        return x @ params[name]['kernel'] + params[name]['bias']

    q, (k, v) = dense('query', x), np.split(dense('key_value', source), 2, -1)
    parts = []
    for own, key, value in zip(*(np.split(z, heads, -1) for z in (q, k, v)), strict=True):
        parts.append(softmax(own @ key.T / np.sqrt(own.shape[-1]), -1) @ value)
    x = norm(params['attention_norm'], x + dense('attention_out', np.concatenate(parts, -1)), epsilon)
    return norm(params['feedforward_norm'], x + dense('contract', ACTIVATION[activation](dense('expand', x))), epsilon)


def test_attention_sees_what_it_may_and_nothing_else():
    layer, seen = Attention(2), np.broadcast_to(SOURCE_MASK[:, None], (2, 4, 5)).copy()
    seen[0, 1] = False                                  # one query that may see nothing
    variables = jax.jit(lambda key: layer.init(key, X, SOURCE, seen, train=False))(jax.random.key(0))
    params = jax.tree.map(lambda x: np.asarray(x, np.float64) + 0.1, variables['params'])
    found = np.asarray(layer.apply({'params': params}, X, SOURCE, seen, train=False))
    out = params['attention_out']
    for b, t in np.ndindex(2, 4):
        parts = [out['bias']]
        if seen[b, t].any():
            q = X[b, t] @ params['query']['kernel'] + params['query']['bias']
            k, v = np.split(SOURCE[b][seen[b, t]] @ params['key_value']['kernel'] + params['key_value']['bias'], 2, -1)
            heads = [softmax(k[:, h] @ q[h] / np.sqrt(3)) @ v[:, h] for h in (slice(3), slice(3, 6))]
            parts.append(np.concatenate(heads) @ out['kernel'])
        np.testing.assert_allclose(found[b, t], sum(parts), atol=2e-5)


def test_attention_refuses_a_width_that_heads_do_not_divide():
    with pytest.raises(ValueError, match='width 6, expected a multiple of 4 heads'):
        Attention(4).init({}, X, SOURCE, np.ones((2, 4, 5), bool), train=False)


@pytest.mark.parametrize(('activation', 'epsilon', 'source'), [('relu', 1e-5, False), ('gelu', 1e-12, True)])
def test_equals_the_formula_on_every_sequence_alone(activation, epsilon, source):
    layer = PostNormLayer(2, 7, activation, epsilon)
    read = (SOURCE, SOURCE_MASK) if source else ()
    variables = jax.jit(lambda key: layer.init(key, X, MASK, *read, train=False))(jax.random.key(0))
    params = jax.tree.map(lambda x: np.asarray(x, np.float64) + 0.1, variables['params'])
    found = np.asarray(layer.apply({'params': params}, np.where(MASK[..., None], X, 1e3), MASK, *read, train=False))
    for k in range(2):
        x = X[k][MASK[k]]
        other = SOURCE[k][SOURCE_MASK[k]] if source else x
        expected = by_hand(params, x, other, 2, activation, epsilon)
        np.testing.assert_allclose(found[k][MASK[k]], expected, atol=2e-5)
    np.testing.assert_array_equal(found[~MASK], 0)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match='width 6, expected a multiple of 4 heads'):
        PostNormLayer(4, 7).init({}, X, MASK, train=False)

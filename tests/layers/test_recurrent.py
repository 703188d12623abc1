"""The LSTM against one written out by hand, and what padding does to it: nothing."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers.recurrent import LSTM, BiLSTM

WIDTH = 3


def draw(b=2, t=5, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(b, t, d)).astype(np.float32)


def weights(module, x, **options):
    mask = np.ones(x.shape[:2], bool)
    return jax.jit(lambda key: module.init(key, x, mask, **options))(jax.random.key(0))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(params, x, reverse=False):
    """One sequence [t d] through an LSTM as the textbook has it, in float64; [t width]."""
    kernel, recurrent, bias = (
        np.asarray(params[n], np.float64) for n in ('input_kernel', 'hidden_kernel', 'bias')
    )
    h = c = np.zeros(len(recurrent))
    out = {}
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        gates = x[t] @ kernel + h @ recurrent + bias
        i, f, g, o = gates.reshape(4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out[t] = h
    return np.array([out[t] for t in range(len(x))])


@cache
def layers():
    return BiLSTM(WIDTH, layers=2)


@cache
def variables():
    return weights(layers(), draw(), train=False)


@cache
def compiled():
    """Outputs, and gradients of their squares with respect to parameters and input."""

    def squares(variables, x, mask):
        y = layers().apply(variables, x, mask, train=False)
        return jnp.sum(y**2), y

    return jax.jit(jax.grad(squares, argnums=(0, 1), has_aux=True))


def run(x, mask=None):
    return np.asarray(compiled()(variables(), x, np.ones(x.shape[:2], bool) if mask is None else mask)[1])


def test_it_is_an_lstm_each_way():
    x = draw()
    y = run(x)
    for row in range(len(x)):
        inner = x[row]
        for k in range(2):
            inner = np.concatenate(
                [
                    by_hand(variables()['params'][f'forward_{k}'], inner),
                    by_hand(variables()['params'][f'backward_{k}'], inner, reverse=True),
                ],
                -1,
            )
        np.testing.assert_allclose(y[row], inner, rtol=1e-5, atol=1e-6)


PLACES = {'behind': [0, 1, 2, 3, 4], 'in front': [3, 4, 5, 6, 7], 'between': [0, 2, 3, 6, 7]}


@pytest.mark.parametrize('place', PLACES)
def test_absent_steps_change_nothing_wherever_they_stand(place):
    x = draw()
    padded, mask = np.full((2, 8, 4), np.nan, np.float32), np.zeros((2, 8), bool)
    padded[:, PLACES[place]], mask[:, PLACES[place]] = x, True
    y = run(padded, mask)
    np.testing.assert_allclose(y[:, PLACES[place]], run(x), rtol=1e-5, atol=1e-6)
    assert not y[~mask].any(), 'outputs of absent steps are zero'


def test_gradients_are_finite_and_absent_steps_have_none():
    """NaN under the mask, and a sequence without any step."""
    x = draw(2, 8)
    mask = np.array([[True] * 5 + [False, False, True], [False] * 8])
    x[~mask] = np.nan
    of_variables, of_x = compiled()(variables(), x, mask)[0]
    for leaf in jax.tree.leaves(of_variables):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
    assert not np.asarray(of_x)[~mask].any() and np.abs(np.asarray(of_x)[mask]).min() > 0


def test_initial_values_are_torchs_uniform():
    params = weights(LSTM(64), draw(d=50))['params']
    for x in params.values():
        assert 0.9 < np.abs(x).max() * 8 <= 1 and abs(np.std(x) * 8 - 3**-0.5) < 0.05


def test_dropout_stands_between_the_layers_only():
    x, mask = draw(), np.ones((2, 5), bool)

    def spread(layers):
        model = BiLSTM(WIDTH, layers, dropout=0.5)
        variables = weights(model, x, train=False)
        run = jax.jit(lambda key: model.apply(variables, x, mask, train=True, rngs={'dropout': key}))
        return np.abs(run(jax.random.key(0)) - run(jax.random.key(1))).max()

    assert spread(1) == 0 and spread(2) > 1e-3


def test_half_precision_stays_half():
    x = draw().astype(jnp.bfloat16)
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables())
    y = jax.jit(lambda v, x: layers().apply(v, x, np.ones((2, 5), bool), train=False))(half, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), run(draw()), atol=0.02)

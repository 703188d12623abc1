"""The LSTM against one written out by hand, and what padding does to it: nothing."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers.recurrent import LSTM, BiGRU, BiLSTM, recur

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


def gru_by_hand(params, x, reverse=False):
    """One sequence [t d] through a GRU as PyTorch documents it, in float64; [t width]."""
    kernel, recurrent, bias, candidate = (
        np.asarray(params[n], np.float64) for n in ('input_kernel', 'hidden_kernel', 'bias', 'candidate_bias')
    )
    h, out = np.zeros(len(recurrent)), {}
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        (xr, xz, xn), (hr, hz, hn) = (x[t] @ kernel + bias).reshape(3, -1), (h @ recurrent).reshape(3, -1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + r * (hn + candidate)) + z * h
        out[t] = h
    return np.array([out[t] for t in range(len(x))])


def test_the_gru_is_one_each_way_whatever_the_padding():
    x = draw()
    module = BiGRU(WIDTH)
    params = weights(module, x, train=False)
    padded, mask = np.full((2, 8, 4), np.nan, np.float32), np.zeros((2, 8), bool)
    padded[:, PLACES['between']], mask[:, PLACES['between']] = x, True
    y = np.asarray(jax.jit(lambda v, x, mask: module.apply(v, x, mask, train=False))(params, padded, mask))
    for row in range(len(x)):
        both = [gru_by_hand(params['params'][f'{way}_0'], x[row], way == 'backward')
                for way in ('forward', 'backward')]
        np.testing.assert_allclose(y[row, PLACES['between']], np.concatenate(both, -1), rtol=1e-5, atol=1e-6)
    assert not y[~mask].any()


@pytest.mark.parametrize('module', [BiLSTM(WIDTH, 2, causal=True), BiGRU(WIDTH, 2, causal=True)])
def test_a_causal_layer_reads_the_past_only(module):
    x, mask = draw(), np.ones((2, 5), bool)
    params = weights(module, x, train=False)
    run = jax.jit(lambda x: module.apply(params, x, mask, train=False))
    y, cut = run(x), x.copy()
    cut[:, 3:] = 9
    assert y.shape == (2, 5, WIDTH)
    np.testing.assert_array_equal(run(cut)[:, :3], y[:, :3])
    assert np.abs(run(cut)[:, 3:] - y[:, 3:]).max() > 1e-3


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


def echo(linear, carry, x, given, memory):
    """Uses all there is: two weights, a carry, the sum of what was put out before, and one output recalled."""
    past = jnp.where(given[None, :, None], memory['y'], 0).sum(1)
    carry = jnp.tanh(x + linear('own', carry) + linear('past', past) + jnp.where(given.any(), memory['z'], 0))
    return carry, {'y': carry, 'z': carry[..., :1]}


def echo_by_hand(weights, start, x, given):
    """The same as a plain loop, for its derivatives."""
    carry, ys = start, []
    for t in range(len(x)):
        past = sum((ys[s] for s in range(t) if given[t, s]), jnp.zeros_like(start))
        own, read = weights['own'], weights['past']
        first = ys[0][..., :1] if t else 0
        carry = jnp.tanh(x[t] + carry @ own['kernel'] + own['bias'][None] + past @ read['kernel'] + first)
        ys.append(carry)
    return {'y': jnp.stack(ys), 'z': jnp.stack(ys)[..., :1]}


@pytest.mark.parametrize('reverse', [False, True])
def test_recur_has_the_derivatives_of_a_loop(reverse):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    weights = {'own': {'kernel': normal(3, 3), 'bias': normal(3)}, 'past': {'kernel': normal(3, 3)}}
    start, x, given = normal(2, 3), normal(4, 2, 3), np.tril(np.ones((4, 4), bool), -1)
    given[3, 1] = False
    way, order = {'y': normal(4, 2, 3), 'z': normal(4, 2, 1)}, slice(None, None, -1) if reverse else slice(None)

    def along(ys):
        return sum(jnp.vdot(way[name], y) for name, y in ys.items())

    def ours(weights, start, x):
        seen = given[order, order]
        memory = {'y': jnp.zeros((2, 4, 3)), 'z': jnp.zeros((2, 4, 1))}
        first = jnp.full((4, 2), 3 if reverse else 0)
        return along(recur(echo, weights, start, x, seen, memory, {'z': first}, reverse=reverse))

    def plain(weights, start, x):
        ys = echo_by_hand(weights, start, x[order], given)
        return along({name: y[order] for name, y in ys.items()})

    found, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(weights, start, x) for f in (ours, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

"""Operations counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import cost
from jmer.layers.recurrent import LSTM

A, B = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)


def loop(x):
    return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ x), None), x, None, length=7)[0]


@pytest.mark.parametrize(('function', 'arguments', 'expected'), [
    (lambda a, b: a @ b, (A, B), 2 * 3 * 4 * 5),
    (lambda a, b: a @ b + 1.0, (A, B), 2 * 3 * 4 * 5 + 15),
    (jax.jit(lambda a, b: a @ b), (A, B), 2 * 3 * 4 * 5),
    (jax.checkpoint(lambda a, b: a @ b), (A, B), 2 * 3 * 4 * 5),
    (loop, (np.ones((2, 2), np.float32),), 7 * (2 * 2 * 2 * 2 + 4)),
    (lambda a: a.T.reshape(-1), (A,), 0),
    (lambda a: a.sum(), (A,), 12),
    (lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')),
     (np.ones((2, 10, 3), np.float32), np.ones((4, 3, 6), np.float32)), 2 * (2 * 7 * 6) * 4 * 3),
    (lambda x: jax.lax.cond(x.sum() > 0, lambda y: y @ y, lambda y: y, x), (np.ones((2, 2), np.float32),),
     16 + 4 + 1),
])
def test_by_hand(function, arguments, expected):
    assert cost.flops(function, *arguments) == pytest.approx(expected, abs=2)


def test_a_gradient_costs_about_three_times_the_forward_pass():
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def loss(w, x):
        return jnp.tanh(x @ w).sum()

    ratio = cost.flops(jax.grad(loss, (0, 1)), x, x) / cost.flops(loss, x, x)
    assert 2.8 < ratio < 3.2


def test_a_strided_convolution_has_a_gradient_without_zeros():
    x, kernel = np.ones((2, 17, 3), np.float32), np.ones((5, 3, 6), np.float32)

    def convolve(x):
        return jax.lax.conv_general_dilated(x, kernel, (4,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC'))

    once = cost.flops(convolve, x)
    assert once < cost.flops(jax.grad(lambda x: convolve(x).sum()), x) < 1.5 * once


def test_a_loop_counts_as_often_as_it_can_run():
    def loop(end, x):
        return jax.lax.fori_loop(0, end, lambda k, x: x @ x, x)

    x = np.ones((4, 4), np.float32)
    once = cost.flops(loop, 3, x)
    bounded = cost.flops(lambda steps, x: loop(jax.lax.min(steps, 7), x), 3, x)
    assert 128 <= once < 140
    assert bounded == pytest.approx(7 * once, abs=2)

    def carries_a_smaller(steps, x):
        return jax.lax.fori_loop(0, steps, lambda k, both: (both[0] + 1, both[1] @ both[1]), (jax.lax.min(steps, 7), x))

    assert cost.flops(carries_a_smaller, 3, x) < 2 * once


def test_an_lstm_costs_its_products_step_by_step():
    x, mask = np.ones((2, 9, 3), np.float32), np.ones((2, 9), bool)
    layer = LSTM(5)
    variables = layer.init(jax.random.key(0), x, mask)
    products = 2 * 2 * 9 * (3 + 5) * 4 * 5
    assert products < cost.flops(layer.apply, variables, x, mask) < 2 * products


def test_what_nobody_reads_costs_nothing_and_a_condition_what_its_branch_does():
    assert cost.flops(lambda a, b: (a @ b, a.sum())[1], A, B) == 12

    def either(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((3, 5)))

    dear, cheap = cost.flops(either, A, B), cost.flops(either, A, B, branch=min)
    assert dear >= 120 and cheap < 30


def test_custom_derivatives_are_seen_into():
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, d: (d @ kept[1].T, kept[0].T @ d))
    assert cost.flops(product, A, B) == 120
    assert cost.flops(jax.grad(lambda a, b: jnp.square(product(a, b)).sum(), (0, 1)), A, B) >= 360


def test_functions_with_a_batching_of_their_own_are_seen_into():
    product = jax.custom_batching.sequential_vmap(lambda a, b: a @ b)
    assert cost.flops(product, A, B) == 120

"""Attention, the encoder, positions and dropout: against plain formulas, and against padding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jmer.layers import attention, dropout, position

B, T, S, D, HEADS = 3, 5, 7, 8, 2
QUICK = {'xla_backend_optimization_level': 0}       # compiled to run once or twice
SEED = jnp.array([3, 4], jnp.uint32)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def prefix(lengths, steps):
    return jnp.arange(steps)[None] < jnp.asarray(lengths)[:, None]


def plain_attention(q, k, v, mask, keep=None, scale=1.0):
    """The textbook, head by head."""
    out = []
    for h in range(HEADS):
        part = slice(h * D // HEADS, (h + 1) * D // HEADS)
        score = jnp.einsum('btd,bsd->bts', q[..., part], k[..., part]) / math.sqrt(D // HEADS)
        weight = jax.nn.softmax(jnp.where(mask, score, -1e30), -1)
        if keep is not None:
            weight = jnp.where(keep[:, h].swapaxes(1, 2), weight * scale, 0)
        out.append(jnp.einsum('bts,bsd->btd', weight, v[..., part]))
    return jnp.concatenate(out, -1)


@pytest.mark.parametrize('rate', [0.0, 0.4])
def test_attend_and_its_gradients_equal_the_textbook(rate):
    q, k, v, w = draw(B, T, D), draw(B, S, D), draw(B, S, D, seed=1), draw(B, T, D, seed=2)
    mask = attention.visible(prefix([5, 3, 4], T), prefix([7, 6, 2], S), causal=True)
    keep = dropout.keep_mask(SEED, rate, (B, HEADS, S, T)) if rate else None

    def ours(q, k, v):
        return jnp.sum(w * attention.attend(q, k, v, mask, heads=HEADS, rate=rate, seed=SEED))

    def theirs(q, k, v):
        return jnp.sum(w * plain_attention(q, k, v, mask, keep, 1 / dropout.keep_probability(rate)))

    with jax.default_matmul_precision('highest'):
        found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2)))(q, k, v)
        expected = jax.jit(jax.value_and_grad(theirs, argnums=(0, 1, 2)))(q, k, v)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6, rtol=1e-5)


def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients():
    mask = jnp.ones((B, T, S), bool).at[1].set(False).at[2, 3].set(False)

    def total(q, k, v):
        out = attention.attend(q, k, v, mask, heads=HEADS)
        return jnp.sum(jnp.square(out)), out

    grads, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(
        draw(B, T, D), draw(B, S, D), draw(B, S, D, seed=1))
    assert not np.any(out[1]) and not np.any(out[2, 3]) and np.all(np.any(out[0], -1))
    assert all(np.isfinite(g).all() and not np.any(g[1]) for g in grads)


@pytest.mark.parametrize(('queries', 'keys'), [(5, 7), (7, 5), (4, 4)])
def test_the_causal_offset_is_the_difference_of_true_lengths(queries, keys):
    seen = attention.visible(prefix([queries], 9), prefix([keys], 11), causal=True)
    expected = [[s < keys and s <= t + abs(keys - queries) for s in range(11)] for t in range(9)]
    np.testing.assert_array_equal(seen[0], expected)


def test_without_the_causal_rule_every_present_key_is_seen():
    mask = jnp.array([[True, False, True, False]])
    seen = attention.visible(jnp.ones((1, 2), bool), mask, causal=False)
    np.testing.assert_array_equal(seen[0], [mask[0], mask[0]])


def test_lengths_reach_to_the_last_present_step():
    mask = jnp.array([[True, False, True, False], [False] * 4, [True] * 4])
    np.testing.assert_array_equal(attention.lengths(mask), [3, 0, 4])


def test_normalise_has_the_gradient_of_its_formula():
    x, w = 3 * draw(4, 6) + 2, draw(4, 6, seed=1)

    def formula(x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return jnp.sum(w * (x - mean) / jnp.sqrt(var + 1e-5))

    found = jax.value_and_grad(lambda x: jnp.sum(w * attention.normalise(x)))(x)
    for a, b in zip(found, jax.value_and_grad(formula)(x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_scanned_layers_equal_a_loop():
    def layer(x, w, shared, seed, constant):
        return jnp.sin(x @ w['a'] + shared) * (1 + 0.1 * seed[0]) + constant

    x, w, shared = draw(3, 4), {'a': 0.3 * draw(5, 4, 4)}, draw(3, 4, seed=1)
    seed, constant = jnp.arange(10, dtype=jnp.uint32).reshape(5, 2), jnp.float32(0.5)

    def loop(x, w, shared):
        for i in range(5):
            x = layer(x, {'a': w['a'][i]}, shared, seed[i], constant)
        return jnp.sum(x**2)

    def scanned(x, w, shared):
        return jnp.sum(attention.scan_layers(layer, x, w, shared, seed, constant) ** 2)

    found, expected = (jax.value_and_grad(f, argnums=(0, 1, 2))(x, w, shared) for f in (scanned, loop))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


RATES = {'attention_dropout': 0.3, 'relu_dropout': 0.3, 'residual_dropout': 0.3, 'embed_dropout': 0.3}


def encode(encoder, params, *inputs, key=None, **options):
    rngs = None if key is None else {'dropout': jax.random.key(key)}
    return jax.jit(lambda p, *a: encoder.apply(p, *a, train=key is not None, rngs=rngs, **options),
                   compiler_options=QUICK)(params, *inputs)


@pytest.fixture(scope='module')
def cross():
    """A small cross-modal encoder, its parameters and its unpadded input."""
    encoder = attention.Encoder(HEADS, 2)
    inputs = (draw(B, T, D), prefix([T] * B, T), draw(B, S, D), prefix([S] * B, S))
    return encoder, jax.jit(lambda *a: encoder.init(jax.random.key(0), *a, train=False))(*inputs), inputs


def test_padding_is_invisible_to_the_encoder(cross):
    """NaN in the padding, and more of it behind the one stream than behind the other."""
    encoder, params, (x, mask, source, source_mask) = cross

    def padded(x, steps):
        return jnp.pad(x, ((0, 0), (0, steps), (0, 0)), constant_values=jnp.nan)

    def total(params, *inputs):
        out = encoder.apply(params, *inputs, train=False)
        return jnp.sum(out[:, :T] ** 2), out

    whole = x, mask, source, source_mask
    wide = padded(x, 2), prefix([T] * B, T + 2), padded(source, 6), prefix([S] * B, S + 6)
    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 3), has_aux=True), compiler_options=QUICK)
    (grads, *input_grads), out = gradient(params, *whole)
    (wide_grads, *wide_input_grads), wide_out = gradient(params, *wide)
    np.testing.assert_allclose(wide_out[:, :T], out, atol=2e-6)
    assert not np.any(wide_out[:, T:])
    for a, b in zip(jax.tree.leaves(wide_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)
    for a, b in zip(wide_input_grads, input_grads, strict=True):
        np.testing.assert_allclose(a[:, :b.shape[1]], b, atol=2e-5, rtol=1e-4)
        assert not np.any(a[:, b.shape[1]:])


def test_the_causal_rule_hides_the_future(cross):
    encoder, params, (x, mask, source, source_mask) = cross
    moved = source.at[:, -1].add(1.0)           # seen by the last query alone: s <= t + 2
    out, other = (encode(encoder, params, x, mask, y, source_mask) for y in (source, moved))
    np.testing.assert_array_equal(out[:, :-1], other[:, :-1])
    assert np.all(np.any(out[:, -1] != other[:, -1], -1))
    free = encode(encoder.clone(causal=False), params, x, mask, moved, source_mask)
    assert np.all(np.any(free[:, 0] != other[:, 0], -1))


def test_the_last_step_alone_equals_the_last_of_all():
    encoder, mask = attention.Encoder(HEADS, 3), prefix([5, 2, 0], T)
    x = draw(B, T, D)
    params = jax.jit(lambda: encoder.init(jax.random.key(0), x, mask, train=False))()
    steps = encode(encoder, params, x, mask)
    last = encode(encoder, params, x, mask, last=True)
    np.testing.assert_allclose(last[0, 0], steps[0, 4], atol=2e-6)
    np.testing.assert_allclose(last[1, 0], steps[1, 1], atol=2e-6)
    assert not np.any(last[2])


def test_encoder_dropout_follows_the_key_and_needs_none_at_rate_zero(cross):
    encoder, params, inputs = cross
    still = jax.jit(lambda p: encoder.apply(p, *inputs, train=True),      # no rngs
                    compiler_options=QUICK)(params)
    np.testing.assert_allclose(still, encode(encoder, params, *inputs), atol=1e-6)
    noisy = encoder.clone(**RATES)
    np.testing.assert_allclose(encode(noisy, params, *inputs), still, atol=1e-6)
    a, b, c = (encode(noisy, params, *inputs, key=key) for key in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1


def test_the_gradient_goes_through_the_masks_of_the_forward_pass(cross):
    """The backward pass draws the same masks again: a finite difference agrees."""
    encoder, params, (x, mask, *source) = cross
    noisy, direction = encoder.clone(**RATES), draw(B, T, D, seed=5)

    def total(step):
        out = noisy.apply(params, x + step * direction, mask, *source, train=True,
                          rngs={'dropout': jax.random.key(0)})
        return jnp.sum(jnp.tanh(out))

    total_and_slope = jax.jit(jax.value_and_grad(total), compiler_options=QUICK)
    _, slope = total_and_slope(0.0)
    difference = (total_and_slope(5e-3)[0] - total_and_slope(-5e-3)[0]) / 1e-2
    np.testing.assert_allclose(slope, difference, rtol=0.02, atol=0.02)


def test_bfloat16_stays_near(cross):
    encoder, params, (x, mask, source, source_mask) = cross

    def half(tree):
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)

    def total(params, x, source):
        out = encoder.apply(params, x, mask, source, source_mask, train=False)
        return jnp.sum(out.astype(jnp.float32) ** 2), out

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True), compiler_options=QUICK)
    grads, out = gradient(half(params), half(x), half(source))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), encode(encoder, params, x, mask, source, source_mask),
                               atol=0.1)
    assert all(g.dtype == jnp.bfloat16 and bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('width', [6, 7])
def test_sinusoids_are_halves_and_an_odd_width_ends_in_zeros(width):
    table = position.sinusoid(40, width)
    assert table.shape == (40, width) and not table[0].any()
    for t in (1, 2, 39):
        angles = [t / 10000 ** (i / 2) for i in range(3)]
        np.testing.assert_allclose(table[t, :3], np.sin(angles), atol=1e-5)
        np.testing.assert_allclose(table[t, 3:6], np.cos(angles), atol=1e-5)
    assert not table[:, 6:].any()


@pytest.mark.parametrize('width', [1, 2, 3])
def test_narrow_sinusoids_are_finite(width):
    assert np.isfinite(position.sinusoid(5, width)).all()


def test_a_frame_with_a_zero_in_channel_0_gets_no_position():
    x = draw(2, 4, 6).at[0, 2, 0].set(0.0)
    added = position.positions(x)
    table = position.sinusoid(5, 6)
    np.testing.assert_array_equal(added[1], table[1:])
    np.testing.assert_array_equal(added[0], table[1:] * np.array([1, 1, 0, 1])[:, None])


def test_threefry_is_the_cipher_that_jax_uses():
    key, count = jnp.array([7, 2**31 + 5], jnp.uint32), jnp.arange(64, dtype=jnp.uint32) * 77777777
    found = dropout.threefry((key[0], key[1]), (count[:32], count[32:]))
    np.testing.assert_array_equal(jnp.concatenate(found), threefry_2x32(key, count))


@pytest.mark.parametrize('rate', [0.1, 0.25, 0.9])
def test_masks_keep_with_their_probability_whatever_the_shape(rate):
    p = dropout.keep_probability(rate)
    assert abs(p - (1 - rate)) <= 1 / 512
    mask = np.asarray(dropout.keep_mask(SEED, rate, (40, 37, 51)))
    spread = math.sqrt(p * (1 - p) / mask.size)
    assert abs(mask.mean() - p) < 5 * spread
    for axis in range(3):       # no row, column or plane of its own
        rest = tuple(a for a in range(3) if a != axis)
        n = mask.size / mask.shape[axis]
        assert np.abs(mask.mean(rest) - p).max() < 5 * math.sqrt(p * (1 - p) / n)
    for shifted in (mask[1:] & mask[:-1], mask[:, :, 1:] & mask[:, :, :-1]):       # neighbours independent
        assert abs(shifted.mean() - p * p) < 8 * spread


def test_dropout_keeps_the_expectation_as_rounded():
    x = jnp.ones((64, 1000))
    for rate in (0.1, 0.3):
        out = np.asarray(dropout.dropout(x, rate, SEED))
        np.testing.assert_allclose(np.unique(out), [0, 1 / dropout.keep_probability(rate)], rtol=1e-6)
        assert abs(out.mean() - 1) < 5 * math.sqrt(rate / (1 - rate) / out.size)


def test_the_smallest_and_largest_rates():
    assert dropout.keep_probability(0.0) == 1 and dropout.keep_probability(0.999) == 1 / 256
    for rate in (-0.1, 1.0, float('nan')):
        with pytest.raises(ValueError, match='dropout rate'):
            dropout.keep_probability(rate)


def test_nothing_is_drawn_in_evaluation_or_at_rate_zero():
    x = draw(4, 6)
    for rate, train in ((0.5, False), (0.0, True)):
        np.testing.assert_array_equal(dropout.Dropout(rate).apply({}, x, train=train), x)       # no rngs


def test_masks_differ_between_seeds_and_under_vmap():
    seeds = dropout.seeds(jax.random.key(0), 3)
    masks = jax.vmap(lambda seed: dropout.keep_mask(seed, 0.5, (8, 33)))(seeds)
    for i in range(3):
        np.testing.assert_array_equal(masks[i], dropout.keep_mask(seeds[i], 0.5, (8, 33)))
        assert abs((masks[i] == masks[i - 1]).mean() - 0.5) < 0.2


def test_masks_do_not_depend_on_sharding():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec('data'))
    x = draw(16, 5, 7)
    drop = jax.jit(lambda x: dropout.dropout(x, 0.3, SEED))
    sharded = jax.jit(lambda x: dropout.dropout(x, 0.3, SEED), in_shardings=rows, out_shardings=rows)
    np.testing.assert_array_equal(sharded(jax.device_put(x, rows)), drop(x))

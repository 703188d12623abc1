"""M3ER: the check by canonical correlation, proxies and the multiplicative loss, against NumPy."""

from functools import cache

import jax
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from jmer.models.utterance import m3er
from jmer.types import Batch, Label, Stream
from tests import batches

MODEL = m3er.Model(3, states=3, memory=4, moments=3, hidden=5, dropout=0.0, ridge=1e-4, projections=3)


def agreeing(size=400, seed=0, noise=0.1):
    """Utterances of two steps whose streams are linear images of the same three numbers."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(size, 3))
    images = np.random.default_rng(9)
    streams = {}
    for name, width in batches.WIDTHS.items():
        x = hidden @ images.normal(size=(3, width)) + 2 + noise * rng.normal(size=(size, width))
        shift = rng.normal(size=x.shape)            # takes back in the second step what it adds in the first
        streams[name] = Stream(np.stack([x + shift, x - shift], 1).astype(np.float32), np.ones((size, 2), bool))
    there = np.ones(size, bool)
    return Batch(streams, there, {'emotion': Label(rng.integers(0, 3, size).astype(np.int32), there)})


@cache
def variables():
    """With the moments of one large batch."""
    start = jax.jit(lambda: MODEL.init(jax.random.key(0), agreeing(), train=False))()
    _, changed = jax.jit(lambda v, b: MODEL.apply(v, b, train=True, mutable=['batch_stats']))(start, agreeing())
    return start | changed


@cache
def compiled():
    return jax.jit(lambda variables, batch: MODEL.apply(variables, batch, train=False))


def vectors(batch):
    return [np.asarray(batch.streams[name].x, np.float64).mean(1) for name in MODEL.streams]


def test_running_moments_are_those_of_all_batches_alike():
    batch = agreeing(60)
    state = jax.jit(lambda: MODEL.init(jax.random.key(0), batch, train=False))()
    update = jax.jit(lambda v, b: v | MODEL.apply(v, b, train=True, mutable=['batch_stats'])[1])
    for part in (slice(20), slice(20, 40), slice(40, 60)):
        state = update(state, batches.rows(batch, part))
    x = np.concatenate(vectors(batch), -1)
    found = state['batch_stats']['moments']
    np.testing.assert_allclose(found['mean'], x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found['covariance'], np.cov(x.T, bias=True), atol=1e-3)
    # Items that lack a stream, or that pad the batch, leave them as they are.
    for other in (batches.without(batches.rows(batch, slice(20)), 'audio'),
                  batches.rows(batch, slice(20))._replace(present=np.zeros(20, bool))):
        after = update(state, other)['batch_stats']['moments']
        for name in found:
            np.testing.assert_array_equal(after[name], found[name])


def test_canonical_directions_decorrelate():
    """By the definition: unit variances, and correlations on the diagonal alone, falling."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4))
    y = np.concatenate([x[:, :1] + x[:, 1:2], rng.normal(size=(500, 2))], -1) + 0.3 * rng.normal(size=(500, 3))
    r = np.corrcoef(x.T, y.T)
    a, b = m3er.canonical(*(np.float32(c) for c in (r[:4, :4], r[:4, 4:], r[4:, 4:])), count=2, ridge=0.0)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a.T @ r[:4, :4] @ a, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(b.T @ r[4:, 4:] @ b, np.eye(2), atol=1e-5)
    cross = a.T @ r[:4, 4:] @ b
    np.testing.assert_allclose(cross, np.diag(np.diagonal(cross)), atol=1e-5)
    of_y = y / y.std(0) @ b[:, 0]
    best = np.sqrt(LinearRegression().fit(x, of_y).score(x, of_y))
    assert cross[0, 0] == pytest.approx(best, abs=1e-4) and cross[0, 0] > cross[1, 1] >= 0


def test_noise_is_ineffectual_and_what_agrees_is_not():
    batch = agreeing(200, seed=1)
    rng = np.random.default_rng(3)
    noisy = batch.streams['audio']._replace(x=rng.normal(2, 2, size=(200, 2, 7)).astype(np.float32))
    spoilt = batch._replace(streams=batch.streams | {'audio': noisy})
    of_clean, of_spoilt = (np.asarray(compiled()(variables(), b).aux['effective']) for b in (batch, spoilt))
    audio = MODEL.streams.index('audio')
    assert of_clean.mean() > 0.99
    assert of_spoilt[:, audio].mean() < 0.7
    assert of_spoilt[:, [m for m in range(3) if m != audio]].mean() > 0.99
    unchecked = MODEL.clone(threshold=-1.0)
    assert np.asarray(jax.jit(lambda b: unchecked.apply(variables(), b, train=False).aux['effective'])(spoilt)).all()


def test_who_passes_by_hand():
    correlation = np.ones((5, 3, 3), np.float32)
    for item, (a, b, c) in enumerate([(0.5, 0.5, 0.5), (0.5, 0, 0), (0, 0, 0), (0, 0.5, 0), (0, 0, 0)]):
        correlation[item][[0, 1, 0, 2, 1, 2], [1, 0, 2, 0, 2, 1]] = [a, a, b, b, c, c]
    there = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
    expected = [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 1], [0, 1, 0]]
    np.testing.assert_array_equal(m3er.effective(correlation, there, 0.1), expected)


def test_proxies_are_linear_regressions():
    """Of the absent vision from text and from audio, each alone, and the mean of both."""
    train, test = vectors(agreeing()), batches.without(agreeing(50, seed=2), 'vision')
    vision, text, audio = train
    other = dict(zip(MODEL.streams, vectors(test), strict=True))
    of_text = LinearRegression().fit(text, vision).predict(other['text'])
    of_audio = LinearRegression().fit(audio, vision).predict(other['audio'])
    np.testing.assert_allclose(compiled()(variables(), test).aux['proxies']['vision'], (of_text + of_audio) / 2,
                               atol=0.05)
    alone = batches.without(test, 'audio')
    np.testing.assert_allclose(compiled()(variables(), alone).aux['proxies']['vision'], of_text, atol=0.05)
    nothing = compiled()(variables(), batches.without(alone, 'text')).aux['proxies']['vision']
    np.testing.assert_allclose(nothing, np.broadcast_to(vision.mean(0)[None], (50, 4)), rtol=1e-4)


def test_moments_are_equally_far_apart():
    x = np.arange(7, dtype=np.float32).reshape(1, 7, 1)
    x = np.concatenate([x, x, x])
    mask = np.array([[1, 1, 1, 1, 1, 1, 0], [0, 1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]], bool)
    expected = [[1, 3, 5], [1, 3, 3], [2, 2, 2]]
    np.testing.assert_array_equal(m3er.at_moments(x, mask, 3)[..., 0], expected)


@pytest.mark.parametrize('beta', [0.0, 1.0, 3.0])
def test_the_multiplicative_loss_by_hand(beta):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), size=(4, 3))
    there = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]], bool)
    label = Label(np.array([2, 0, 1, -1], np.int32), np.array([True, True, True, False]))
    expected = [-sum(p[b, m, y] ** (beta / 2) * np.log(p[b, m, y]) for m in range(3) if there[b, m])
                for b, y in enumerate(label.value[:2])]
    term = m3er.multiplicative(np.log(p).astype(np.float32), label, there, beta)
    np.testing.assert_allclose(term.value, [*expected, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(term.weight, [1, 1, 0, 0])


def test_real_values_are_refused():
    batch = agreeing(3)
    real = {'emotion': Label(np.zeros((3, 1), np.float32), np.ones(3, bool))}
    with pytest.raises(ValueError, match='m3er: label: found values of type float32, expected class indices'):
        m3er.loss(MODEL, compiled()(variables(), batch), batch._replace(labels=real))


def equations(jaxpr):
    """Of a program and of all programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'jaxpr')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from equations(inner)


def test_seeds_factorise_one_matrix_at_a_time():
    """Batched calls of LAPACK can block one another on a CPU, so that a run of several seeds never ends."""
    batch = agreeing(4)
    variables = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), batch, train=False))
    seeds = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), variables)
    program = jax.make_jaxpr(jax.vmap(lambda v: MODEL.apply(v, batch, train=False).logits))(seeds)
    found = [(e.primitive.name, e.invars[0].aval.ndim) for e in equations(program.jaxpr)
             if e.primitive.name in ('svd', 'eigh', 'lu', 'triangular_solve')]
    assert {name for name, _ in found} == {'svd', 'eigh', 'lu', 'triangular_solve'}
    assert all(axes == 2 for _, axes in found)

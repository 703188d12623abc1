"""The recurrence of DialogueRNN against one written out speaker by speaker, in float64."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers.dialogue_rnn import KINDS, DialogueRNN

QUICK = {'xla_backend_optimization_level': 0}
CASES = [(kind, 0) for kind in KINDS] + [('general', 3)]
WIDTHS = {'global': 4, 'party': 3, 'emotion': 2, 'listener': 3}


def draw(turns=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, turns, 4)).astype(np.float32), rng.integers(0, 3, (2, turns)).astype(np.int32)


@cache
def layer(kind='general', listeners=0, reverse=False, dropout=0.0):
    return DialogueRNN(4, 3, 2, kind, 5, listeners, dropout, reverse)


@cache
def variables(kind='general', listeners=0):
    x, speakers = draw()
    mask = np.ones(speakers.shape, bool)
    return jax.jit(lambda key: layer(kind, listeners).init(key, x, speakers, mask, train=False),
                   compiler_options=QUICK)(jax.random.key(0))


@cache
def compiled(kind='general', listeners=0, reverse=False):
    return jax.jit(lambda v, *args: layer(kind, listeners, reverse).apply(v, *args, train=False),
                   compiler_options=QUICK)


def run(x, speakers, mask=None, **options):
    case = {name: options[name] for name in ('kind', 'listeners') if name in options}
    mask = np.ones(speakers.shape, bool) if mask is None else mask
    return np.asarray(compiled(**options)(variables(**case), x, speakers, mask))


def gru(params, name, x, hidden):
    kernel, recurrent, bias, candidate = (
        np.asarray(params[f'{name}_{key}'], np.float64)
        for key in ('input_kernel', 'hidden_kernel', 'bias', 'candidate_bias'))
    (xr, xz, xn), (hr, hz, hn) = (x @ kernel + bias).reshape(3, -1), (hidden @ recurrent).reshape(3, -1)
    r, z = (1 / (1 + np.exp(-gate)) for gate in (xr + hr, xz + hz))
    return (1 - z) * np.tanh(xn + r * (hn + candidate)) + z * hidden


def score(params, kind, past, x):
    if kind == 'simple':
        return (past @ params['attention_score'])[0]
    if kind == 'dot':
        return past @ x
    if kind == 'concat':
        return (np.tanh(np.concatenate([past, x]) @ params['attention_kernel']) @ params['attention_vector'])[0]
    return past @ (x @ params['attention']['kernel'] + params['attention'].get('bias', 0))


def by_hand(params, kind, listeners, x, speakers):
    """One dialogue [u d]; every speaker has a state, and the states of the past are a list."""
    parties = np.zeros((3, WIDTHS['party']))
    past, emotion, out = [np.zeros(WIDTHS['global'])], np.zeros(WIDTHS['emotion']), []
    for turn, who in zip(x, speakers, strict=True):
        new = gru(params, 'global', np.concatenate([turn, parties[who]]), past[-1])
        context = np.zeros_like(new)
        if past[1:]:
            weight = np.exp([score(params, kind, g, turn) for g in past[1:]])
            context = weight / weight.sum() @ np.array(past[1:])
        spoken = gru(params, 'party', np.concatenate([turn, context]), parties[who])
        if listeners:
            heard = np.concatenate([turn, spoken])
            parties = np.array([gru(params, 'listener', heard, party) for party in parties])
        parties[who] = spoken
        past.append(new)
        emotion = gru(params, 'emotion', spoken, emotion)
        out.append(emotion)
    return np.array(out)


@pytest.mark.parametrize(('kind', 'listeners'), CASES)
def test_it_is_dialoguernn(kind, listeners):
    x, speakers = draw()
    y = run(x, speakers, kind=kind, listeners=listeners)
    params = jax.tree.map(lambda v: np.asarray(v, np.float64), variables(kind, listeners)['params'])
    for row in range(len(x)):
        expected = by_hand(params, kind, listeners, x[row], speakers[row])
        np.testing.assert_allclose(y[row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('listeners', [0, 3])
@pytest.mark.parametrize('reverse', [False, True])
def test_absent_turns_change_nothing_and_reverse_is_reversed(listeners, reverse):
    x, speakers = draw(4)
    order = slice(None, None, -1) if reverse else slice(None)
    alone = run(x[:, order], speakers[:, order], listeners=listeners)[:, order]
    places, mask = [0, 2, 3, 5], np.zeros((2, 6), bool)
    wide, who = np.full((2, 6, 4), np.nan, np.float32), np.ones((2, 6), np.int32)
    wide[:, places], who[:, places], mask[:, places] = x, speakers, True
    y = run(wide, who, mask, listeners=listeners, reverse=reverse)
    np.testing.assert_allclose(y[:, places], alone, rtol=1e-5, atol=1e-6)
    assert not y[~mask].any()


def test_speakers_beyond_the_listeners_share_the_last_state():
    x, _ = draw(4)
    several, other = np.array([[0, 5, 1, 5]] * 2, np.int32), np.array([[0, 5, 1, 7]] * 2, np.int32)
    np.testing.assert_array_equal(run(x, several, listeners=2), run(x, np.minimum(several, 1), listeners=2))
    assert np.abs(run(x, several) - run(x, other)).max() > 1e-4, 'without listeners any number is somebody'


def test_dropout_is_scaled_and_drawn_by_key():
    x, speakers = draw()
    mask = np.ones(speakers.shape, bool)
    values = variables(listeners=3)
    dropped = jax.jit(lambda key: layer(listeners=3, dropout=0.5).apply(
        values, x, speakers, mask, train=True, rngs={'dropout': key}), compiler_options=QUICK)
    one, two = (np.asarray(dropped(jax.random.key(k))) for k in (0, 1))
    np.testing.assert_array_equal(one, dropped(jax.random.key(0)))
    assert 0.2 < np.mean(one == 0) < 0.8 and np.abs(one - two).max() > 1e-3


def test_gradients_are_those_of_differences():
    x, speakers = draw(3)
    mask = np.ones(speakers.shape, bool)

    def squares(v, x):
        return jnp.sum(layer(listeners=3).apply(v, x, speakers, mask, train=False) ** 2)

    v = variables(listeners=3)
    gradient = jax.jit(jax.grad(squares, argnums=(0, 1)), compiler_options=QUICK)(v, x)
    value, rng = jax.jit(squares, compiler_options=QUICK), np.random.default_rng(1)
    way = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), (v, x))
    ahead, back = (value(*jax.tree.map(lambda a, d, h=h: a + h * d, (v, x), way)) for h in (1e-2, -1e-2))
    slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True))
    np.testing.assert_allclose(slope, (ahead - back) / 2e-2, rtol=1e-2)

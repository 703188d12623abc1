"""MMFA-RNN: the fusion of all streams and levels, by hand."""

from functools import cache

import jax
import numpy as np
import pytest

from jmer.models.utterance import mmfa_rnn
from tests import batches

MODEL = mmfa_rnn.Model(3, width=2, levels=2, heads=2, hidden=3)


@cache
def variables():
    return jax.jit(lambda: MODEL.init(jax.random.key(0), batches.utterances(), train=False))()


@cache
def compiled():
    given = variables()
    return jax.jit(lambda batch: MODEL.apply(given, batch, train=False).aux)


def test_vectors_of_all_levels_attend_to_each_other():
    aux = jax.tree.map(np.asarray, compiled()(batches.utterances()))
    params, x = jax.tree.map(np.asarray, variables()['params']), aux['levels']
    assert x.shape == (3, 4, 4)                         # two streams at two levels

    def linear(x, layer):
        return x @ params[layer]['kernel'] + params[layer]['bias'][None, None]

    def heads(x):
        return x.reshape(3, 4, 2, 2).swapaxes(1, 2)

    q, (k, v) = linear(x, 'query'), np.split(linear(x, 'key_value'), 2, -1)
    scores = np.exp(heads(q) @ heads(k).swapaxes(2, 3) / np.sqrt(2))
    weights = scores / scores.sum(-1, keepdims=True)
    np.testing.assert_allclose(aux['attention'], weights, atol=1e-6)

    y = x + linear((weights @ heads(v)).swapaxes(1, 2).reshape(3, 4, 4), 'attention_out')
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(aux['fused'], y, atol=1e-5)


def test_nobody_attends_to_an_absent_stream():
    batch = batches.utterances()
    whole, alone = (compiled()(b) for b in (batch, batches.without(batch, 'audio')))
    np.testing.assert_array_equal(alone['levels'][:, 2:], whole['levels'][:, 2:])
    assert not np.any(alone['attention'][..., :2]) and not np.any(alone['fused'][:, :2])
    np.testing.assert_allclose(np.asarray(alone['attention'])[:, :, 2:].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(('change', 'message'), [
    ({'levels': 0}, 'levels: found 0, expected 1 or more'),
    ({'heads': 3}, 'heads: found 3, expected a divisor of 4'),
])
def test_what_does_not_fit_is_refused(change, message):
    model = MODEL.clone(**change)
    with pytest.raises(ValueError, match='mmfa_rnn: ' + message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), batches.utterances(), train=False))

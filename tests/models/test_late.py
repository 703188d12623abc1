"""Late fusion: the weights that a stream gets for being sure, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from jmer.models.utterance import late
from tests import batches

P = np.array([[[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]], [[0.2, 0.2, 0.6], [1 / 3, 1 / 3, 1 / 3]]])
BOTH = np.ones((2, 2), bool)
BY_HAND = {'entropy': np.log(3) - entropy(P, axis=-1), 'confidence': P.max(-1)}
RULES = {'entropy': late.entropy_weights, 'confidence': late.confidence_weights}
every_rule = pytest.mark.parametrize('rule', RULES)


@every_rule
def test_weights_by_hand(rule):
    expected = BY_HAND[rule] / BY_HAND[rule].sum(-1, keepdims=True)
    np.testing.assert_allclose(RULES[rule](np.log(P, dtype=np.float32), BOTH), expected, atol=1e-5)


@every_rule
def test_an_absent_stream_weighs_nothing_however_sure_it_is(rule):
    there = np.array([[False, True], [False, False]])
    np.testing.assert_array_equal(RULES[rule](np.log(P, dtype=np.float32), there), [[0, 1], [0, 0]])


@every_rule
def test_undecided_streams_share_alike_and_the_surest_of_all_takes_no_harm(rule):
    """Nothing divides by zero: neither where all entropies are the largest, nor where a probability is 1."""
    undecided = jnp.zeros((1, 2, 3))
    sure = jnp.array([[[200.0, 0, 0], [0, 0, 0]]])
    for scores in (undecided, sure):
        weights, slope = jax.value_and_grad(
            lambda x: RULES[rule](jax.nn.log_softmax(x), BOTH[:1])[0, 0])(scores)
        assert np.isfinite(slope).all()
        assert weights == pytest.approx(0.5) if scores is undecided else weights > 0.7


@every_rule
def test_the_model_mixes_probabilities_by_these_weights(rule):
    model, batch = late.Model(3, hidden=(), rule=rule), batches.utterances()
    variables = jax.jit(lambda key: model.init(key, batch, train=False))(jax.random.key(0))
    out = jax.jit(lambda batch: model.apply(variables, batch, train=False))(batch)
    decisions = np.asarray(out.aux['decisions'], np.float64)
    weights = np.asarray(RULES[rule](out.aux['decisions'], np.ones((3, 3), bool)))
    np.testing.assert_allclose(out.aux['weights'], weights, rtol=1e-5)
    np.testing.assert_allclose(out.logits, np.log((weights[..., None] * np.exp(decisions)).sum(1)), atol=1e-5)


@every_rule
def test_items_without_any_stream_leave_gradients_finite(rule):
    model, batch = late.Model(3, hidden=(), rule=rule, dropout=0.0), batches.pad(batches.utterances())
    variables = jax.jit(lambda key: model.init(key, batch, train=False))(jax.random.key(0))
    slopes = jax.jit(jax.grad(lambda v: model.apply(v, batch, train=True).logits.sum()))(variables)
    assert all(np.isfinite(x).all() and np.abs(x).max() > 0 for x in jax.tree.leaves(slopes))


@every_rule
@pytest.mark.parametrize('fields', [{'probabilities': False}, {'classes': 1}])
def test_real_values_have_no_such_weight(rule, fields):
    model = late.Model(**{'classes': 3, 'hidden': (), 'rule': rule} | fields)
    with pytest.raises(ValueError, match=f"late: rule '{rule}': found .* expected probabilities of two classes"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), batches.utterances(), train=False))

"""Losses that couple the items of a batch, and the loss of a batch's one target."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import losses
from jmer.types import Label

RNG = np.random.default_rng(0)
MASK = np.array([True, True, False, True, True])
X, Y = (RNG.normal(size=(5, 3)).astype(np.float32) for _ in range(2))


def loud(x):
    return np.where(MASK[:, None], x, 1e3).astype(np.float32)


def test_central_moment_discrepancy_equals_the_formula():
    x, y = X[MASK].astype(np.float64), Y[MASK].astype(np.float64)
    expected = np.linalg.norm(x.mean(0) - y.mean(0)) + sum(
        np.linalg.norm(((x - x.mean(0)) ** k).mean(0) - ((y - y.mean(0)) ** k).mean(0)) for k in (2, 3, 4, 5))
    np.testing.assert_allclose(losses.central_moment_discrepancy(loud(X), loud(Y), MASK), expected, rtol=1e-5)


def test_one_distribution_is_not_apart_and_has_a_gradient():
    value, gradient = jax.value_and_grad(lambda x: losses.central_moment_discrepancy(x, x, MASK))(jnp.asarray(X))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_difference_equals_the_formula():
    def rows(z):
        z = z[MASK].astype(np.float64)
        z = z - z.mean(0)
        return z / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-6)

    expected = ((rows(X).T @ rows(Y)) ** 2).mean()
    np.testing.assert_allclose(losses.difference(loud(X), loud(Y), MASK), expected, rtol=1e-5)


def test_ctc_sums_over_all_alignments():
    """Two labels in four steps: the probability of every path that reads 1, 2."""
    logits = RNG.normal(size=(1, 5, 3)).astype(np.float32)
    p = np.exp(logits[0, :4]) / np.exp(logits[0, :4]).sum(-1, keepdims=True)

    def reads(path):
        return [k for k, _ in itertools.groupby(path) if k] == [1, 2]

    paths = [path for path in itertools.product(range(3), repeat=4) if reads(path)]
    expected = -np.log(sum(np.prod([p[t, k] for t, k in enumerate(path)]) for path in paths))
    mask, labels = np.arange(5)[None] < 4, np.array([[1, 2, 0]])
    np.testing.assert_allclose(losses.ctc(logits, mask, labels, labels > 0), [expected], rtol=1e-5)


def test_unbiased_concordance_equals_the_formula():
    label = Label(Y, MASK)
    x, y = X[MASK].astype(np.float64), Y[MASK].astype(np.float64)
    covariance = ((x - x.mean(0)) * (y - y.mean(0))).sum(0) / (len(x) - 1)
    ccc = 2 * covariance / (x.var(0, ddof=1) + y.var(0, ddof=1) + (x.mean(0) - y.mean(0)) ** 2)
    term = losses.ccc(loud(X), label, unbiased=True)
    np.testing.assert_allclose(term.value, 1 - ccc.mean(), rtol=1e-5)


def test_a_batch_without_items_has_no_loss():
    nobody = np.zeros(5, bool)
    term = losses.coupled(losses.central_moment_discrepancy(X, Y, nobody), nobody)
    assert (term.value, term.weight) == (0, 0)


def test_the_loss_of_the_one_target():
    classes = Label(np.array([0, 1, 2, 0, 1]), MASK)
    values = Label(Y, MASK)
    for label, expected in ((classes, losses.cross_entropy), (values, losses.mae)):
        for found, wanted in zip(losses.task(X, {'name': label}), expected(X, label), strict=True):
            np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(losses.task(X, {'name': values}, losses.mse).value, losses.mse(X, values).value)
    with pytest.raises(ValueError, match=r"labels: found \['a', 'b'\], expected one target"):
        losses.task(X, {'a': classes, 'b': values})

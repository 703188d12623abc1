"""Calibration against closed forms, scikit-learn, and the metrics that the cards carry."""

import inspect
from typing import NamedTuple

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics as sk
from scipy.special import softmax

from jmer import calibration, metrics
from jmer.types import Label


class Side(NamedTuple):
    scores: np.ndarray
    truth: np.ndarray


def draw(n=400, classes=4, heat=1.0, seed=0) -> Side:
    """Classes drawn from probabilities that are then sharpened: the right temperature is `heat`."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, classes))
    truth = np.array([rng.choice(classes, p=p) for p in softmax(logits, -1)])
    return Side(softmax(heat * logits, -1).astype(np.float32), truth)


def nll(probabilities, truth):
    exact = probabilities.astype(np.float64)
    return sk.log_loss(truth, exact / exact.sum(-1, keepdims=True), labels=range(exact.shape[1]))


@pytest.mark.parametrize('heat', [0.3, 1.0, 4.0])
def test_the_temperature_is_found(heat):
    found = calibration.fit_temperature(*draw(4000, heat=heat))
    assert found == pytest.approx(heat, rel=0.08)


def test_the_temperature_has_the_least_nll():
    """Two classes, logit gap 2 throughout, three quarters right: sigmoid(2 / T) = 3/4, T = 2 / log 3."""
    p = np.tile(softmax(np.array([2.0, 0.0])), (8, 1))
    truth = np.array([0, 0, 0, 1, 0, 0, 0, 1])
    assert calibration.fit_temperature(p, truth) == pytest.approx(2 / np.log(3), rel=1e-4)
    scores, truth = draw(heat=3.0)
    best = nll(calibration.apply_temperature(scores, calibration.fit_temperature(scores, truth)), truth)
    others = [nll(calibration.apply_temperature(scores, t), truth) for t in np.geomspace(0.01, 100, 200)]
    assert best <= min(others) + 1e-9


@pytest.mark.parametrize('seed', range(5))
def test_validation_is_never_worse_and_the_order_of_classes_stays(seed):
    scores, truth = draw(12, heat=0.5 + seed, seed=seed)
    temperature = calibration.fit_temperature(scores, truth)
    after = calibration.apply_temperature(scores, temperature)
    assert nll(after, truth) <= nll(scores.astype(np.float64), truth) + 1e-9
    np.testing.assert_array_equal(after.argsort(-1), scores.argsort(-1))
    np.testing.assert_allclose(after.sum(-1), 1)


def test_temperature_1_changes_nothing_and_inverses_cancel():
    scores, _ = draw(20)
    np.testing.assert_allclose(calibration.apply_temperature(scores, 1.0), scores, rtol=1e-5)
    there = calibration.apply_temperature(scores, 2.5)
    np.testing.assert_allclose(calibration.apply_temperature(there, 1 / 2.5), scores, rtol=1e-5)


def test_certain_probabilities():
    """All right: as cold as can be. All wrong, with probability 0: hot, and finite."""
    sure = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    right, wrong = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 1])
    assert calibration.fit_temperature(np.where(sure > 0, 0.8, 0.1), right) < 0.1
    assert calibration.fit_temperature(sure, wrong) > 90
    assert np.isfinite(calibration.calibrate(Side(sure, wrong), Side(sure, wrong))['test']['after']['nll'])


def test_reliability_is_scikit_learns_curve():
    scores, truth = draw(500)
    found = calibration.reliability(scores, truth, bins=10)
    hit = scores.argmax(-1) == truth
    accuracy, confidence = sklearn.calibration.calibration_curve(hit, scores.max(-1), n_bins=10)
    filled = found.items > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], confidence, rtol=1e-6)
    assert np.isnan(found.accuracy[~filled]).all() and not filled[0]    # four classes: never below 1/4
    assert found.items.sum() == 500


def test_reliability_has_the_bins_of_ece15():
    scores, truth = draw(500, heat=2.0)
    sums = metrics.class_sums(np.log(scores), Label(truth, np.ones(500, bool)))
    found = calibration.reliability(scores, truth)
    np.testing.assert_array_equal(found.items, sums.bin_items)
    ece = np.nansum(found.items * abs(found.accuracy - found.confidence)) / 500
    assert ece == pytest.approx(metrics.class_metrics(sums)['ece15'], rel=1e-4)
    edges = np.array([[0.4, 0.6], [0.6, 0.4], [0.0, 1.0]])   # 0.6 ends the 9th of 15 bins, 1 the last
    np.testing.assert_array_equal(np.flatnonzero(calibration.reliability(edges, np.array([0, 0, 1])).items), [8, 14])


def test_abstention_by_hand():
    top = np.array([0.6, 0.9, 0.8, 0.7])
    found = calibration.abstention(np.stack([top, 1 - top], 1), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(found.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.risk, [0, 1 / 2, 2 / 3, 2 / 4])     # right, wrong, wrong, right
    assert found.aurc == pytest.approx((0 + 1 / 2 + 2 / 3 + 1 / 2) / 4)


def test_abstention_among_equals_is_random_order():
    """One sure hit, then three items at 0.6, of which one is right: expected errors 2/3, 4/3, 2."""
    p = np.array([[0.6, 0.4], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    truth = np.array([1, 0, 0, 0])
    found = calibration.abstention(p, truth)
    np.testing.assert_allclose(found.risk, [0, 1 / 3, 4 / 9, 1 / 2])
    other = calibration.abstention(p[::-1], truth[::-1])
    np.testing.assert_allclose(other.risk, found.risk)


def test_abstention_limits():
    scores, truth = draw(300)
    found = calibration.abstention(scores, truth)
    assert found.risk[-1] == pytest.approx(1 - sk.accuracy_score(truth, scores.argmax(-1)))
    hit = scores.argmax(-1) == truth
    errors = np.count_nonzero(~hit)
    # The best order has all errors last: risk (k - hits) / k from there on; the worst has them first.
    last = np.maximum(np.arange(1, 301) - (300 - errors), 0) / np.arange(1, 301)
    first = np.minimum(np.arange(1, 301), errors) / np.arange(1, 301)
    assert last.mean() < found.aurc < first.mean()
    oracle = np.where(hit, 0.9, 0.6)[:, None]
    ideal = calibration.abstention(np.concatenate([oracle, 1 - oracle], 1), np.where(hit, 0, 1))
    assert ideal.aurc == pytest.approx(last.mean())


def test_calibrate_fits_on_validation_alone():
    validation, test = draw(400, heat=3.0), draw(300, heat=3.0, seed=1)
    found = calibration.calibrate(validation, test)
    assert found['temperature'] == calibration.fit_temperature(*validation)
    other = calibration.calibrate(validation, draw(50, heat=0.2, seed=2))
    assert other['temperature'] == found['temperature'] and other['validation'] == found['validation']
    assert found['test']['after']['nll'] == pytest.approx(
        nll(calibration.apply_temperature(test.scores, found['temperature']), test.truth), rel=1e-5)
    assert found['test']['before']['brier_multiclass'] == pytest.approx(
        ((test.scores - np.eye(4)[test.truth]) ** 2).sum(-1).mean(), rel=1e-5)
    for side in ('validation', 'test'):
        before, after = found[side]['before'], found[side]['after']
        assert before['accuracy'] == after['accuracy']
        assert all(after[name] < before[name] for name in ('nll', 'brier_multiclass', 'ece15'))


@pytest.mark.parametrize('function', ['fit_temperature', 'reliability', 'abstention'])
def test_bad_input_is_named(function):
    run = inspect.unwrap(getattr(calibration, function))   # as users have it, without checks of annotations
    scores, truth = draw(5)
    hole = scores.copy()
    hole[3, 1] = np.nan
    for wrong, words in (((scores[:0], truth[:0]), 'probabilities: found no items'),
                         ((hole, truth), r'probabilities: found .*nan.* at item 3'),
                         ((np.log(scores), truth), 'probabilities: found .* at item 0'),
                         ((scores / 2, truth), 'sum to 1'),
                         ((scores, truth[:4]), 'truth: found 4 items, expected 5'),
                         ((scores, truth - 10), 'truth: found classes -10')):
        with pytest.raises(ValueError, match=words):
            run(*wrong)


def test_bad_settings_are_named():
    scores, truth = draw(5)
    with pytest.raises(ValueError, match='bins: found 0'):
        calibration.reliability(scores, truth, 0)
    for wrong in (0.0, -1.0, float('nan')):
        with pytest.raises(ValueError, match='temperature: found'):
            calibration.apply_temperature(scores, wrong)
    with pytest.raises(ValueError, match='probabilities: found no items'):
        calibration.calibrate(Side(scores, truth), Side(scores[:0], truth[:0]))

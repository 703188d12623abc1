"""What a card says of several runs together."""

import numpy as np
import pytest

from jmer.results import publish
from jmer.results.collect import collect, pooled
from tests.results.leaves import leaf


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Two folds of different size by two seeds."""
    folder, rng = tmp_path_factory.mktemp('runs'), np.random.default_rng(0)
    for seed in (0, 1):
        for fold, n in (('fold0', 40), ('fold1', 24)):
            leaf(folder / fold / f'seed{seed}', seed=seed, fold=fold, n=n, rng=rng)
    return folder


def test_means_intervals_and_the_ensemble(runs):
    results = collect(runs)
    found = publish.summary(results)
    single = [entry['accuracy'] for entry in found['results']]
    assert found['mean']['accuracy'] == pytest.approx(np.mean(single))
    assert found['deviation']['accuracy'] == pytest.approx(np.std(single, ddof=1))
    test = pooled(results)
    assert test.scores.shape == (2, 64, 3) and test.ids.tolist() == sorted(test.ids)
    right = test.scores.mean(0).argmax(-1) == test.truth
    assert found['ensemble']['accuracy'] == pytest.approx(right.mean())
    low, high = found['interval']['accuracy']
    pooled_accuracy = (test.scores.argmax(-1) == test.truth).mean()
    assert low < pooled_accuracy < high


def test_seeds_of_different_tests_are_not_pooled(runs):
    some = [result for result in collect(runs) if result.folder.name == 'seed0' or result.folder.parent.name == 'fold0']
    assert pooled(some) is None
    assert 'interval' not in publish.summary(some)

"""Transcripts as vectors."""

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer

from jmer.data import text

RNG = np.random.default_rng(0)
TURNS = [RNG.zipf(1.5, RNG.integers(1, 12)).clip(max=30) for _ in range(200)]


def test_weighed_counts_are_those_of_scikit_learn():
    words = text.fit(TURNS, 5)
    held = words.weight > 0
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(text.counts(TURNS, len(words.weight))[:, held])
    np.testing.assert_allclose(text.weighed(TURNS, words.weight)[:, held], expected.toarray(), atol=1e-12)
    assert words.weight[0] == 0, 'no turn holds word 0'


def test_directions_are_those_of_the_singular_value_decomposition():
    words = text.fit(TURNS, 5)
    found = text.vectors(TURNS, words)
    assert found.shape == (200, 5) and found.dtype == np.float32
    svd = TruncatedSVD(5, algorithm='arpack', random_state=0).fit(text.weighed(TURNS, words.weight))
    np.testing.assert_allclose(np.abs(words.directions.T), np.abs(svd.components_), atol=1e-8)
    largest = words.directions[np.abs(words.directions).argmax(0), range(5)]
    assert (largest > 0).all()


def test_other_turns_cannot_change_what_was_learned():
    words = text.fit(TURNS, 5)
    alone = text.vectors(TURNS[:1], words)
    np.testing.assert_allclose(text.vectors(TURNS[:3], words)[:1], alone, atol=1e-7)
    unknown = np.append(TURNS[0], [1000, 0])     # words that no turn of the training held
    np.testing.assert_allclose(text.vectors([unknown], words), alone, atol=1e-7)


@pytest.mark.parametrize('unknown', [np.array([], int), np.array([99])])
def test_a_turn_of_unknown_words_is_zero(unknown):
    np.testing.assert_array_equal(text.vectors([unknown], text.fit(TURNS, 5)), np.zeros((1, 5)))


def test_directions_that_turns_do_not_span_are_zero():
    words = text.fit([np.array([1, 2]), np.array([1, 2, 2]), np.array([], int)], 6)
    assert words.directions.shape == (3, 6)
    np.testing.assert_allclose(np.linalg.norm(words.directions, axis=0), [1, 1, 0, 0, 0, 0], atol=1e-12)
    assert not text.fit([np.array([], int)], 4).directions.any()

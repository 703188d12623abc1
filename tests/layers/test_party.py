"""Every speaker's turns against the layer run on those turns alone."""

import jax
import numpy as np
import pytest

from jmer.layers.party import by_speaker
from jmer.layers.recurrent import BiGRU

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 7, 3)).astype(np.float32)
SPEAKERS = np.array([[0, 1, 1, 0, 2, 1, 0], [1, 1, 0, 1, 0, 0, 0]], np.int32)
PRESENT = np.arange(7)[None] < np.array([[7], [5]])
LAYER = BiGRU(2, 2)


@pytest.mark.parametrize('padded', [False, True])
def test_each_speaker_is_read_alone(padded):
    params = jax.jit(lambda key: LAYER.init(key, X, PRESENT, train=False))(jax.random.key(0))
    run = jax.jit(lambda x, mask: LAYER.apply(params, x, mask, train=False))
    garbage = np.where(PRESENT[..., None], X, np.nan)
    found = np.asarray(by_speaker(run, garbage, SPEAKERS, PRESENT, 2, padded=padded))
    for b, p in np.ndindex(2, 3):
        own = np.flatnonzero((SPEAKERS[b] == p) & PRESENT[b])
        if p == 2 or not len(own):
            assert not found[b, own].any(), 'a speaker beyond the count gives zeros'
            continue
        turns = PRESENT[b].sum() if padded else len(own)
        alone = np.zeros((1, turns, 3), np.float32)
        alone[0, :len(own)] = X[b, own]
        expected = run(alone, np.ones((1, turns), bool))[0, :len(own)]
        np.testing.assert_allclose(found[b, own], expected, atol=1e-6)
    assert not found[~PRESENT].any()

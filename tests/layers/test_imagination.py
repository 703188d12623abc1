"""Encoders of MMIN: what is read of short texts, of missing streams, and by which pooling."""

import jax
import numpy as np
import pytest

from jmer.layers.imagination import Encoders, LSTMEncoder, TextCNN
from jmer.types import Stream
from tests import batches


def stream(steps, absent=0, seed=0):
    x = np.random.default_rng(seed).normal(size=(2, steps + absent, 3)).astype(np.float32)
    return Stream(x, np.broadcast_to(np.arange(steps + absent) < steps, x.shape[:2]))


@pytest.mark.parametrize('steps', [1, 4, 6])
def test_a_text_of_any_length_is_read_without_its_padding(steps):
    encoder, padded = TextCNN(4, 5), stream(steps, 3)
    alone = Stream(padded.x[:, :steps], padded.mask[:, :steps])
    variables = encoder.init(jax.random.key(0), padded, train=False)
    vector = encoder.apply(variables, padded, train=False)
    np.testing.assert_allclose(vector, encoder.apply(variables, alone, train=False), atol=1e-6)
    assert np.abs(vector).max() > 1e-3


def test_states_are_pooled_as_named():
    given = stream(5, 2)
    variables = LSTMEncoder(4).init(jax.random.key(0), given)
    found = {kind: LSTMEncoder(4, kind).apply(variables, given) for kind in ('max', 'last', 'sum')}
    states = np.stack([LSTMEncoder(4, 'last').apply(variables, Stream(given.x[:, :n], given.mask[:, :n]))
                       for n in range(1, 6)], 1)
    for kind, expected in {'max': states.max(1), 'last': states[:, -1], 'sum': states.sum(1)}.items():
        np.testing.assert_allclose(found[kind], expected, atol=1e-6)
    with pytest.raises(ValueError, match="pooling: found 'mean', expected one of max, last, sum"):
        LSTMEncoder(4, 'mean').apply(variables, given)


def test_a_missing_stream_is_nothing_unless_zeros_are_read():
    batch = batches.without(batches.utterances(), 'audio')
    encoders = Encoders(('audio', 'text', 'vision'), 4, 5, 0.0, ('max', 'max'), False)
    variables = encoders.init(jax.random.key(0), batch, train=False)
    audio, *_ = encoders.apply(variables, batch, train=False)
    assert (audio == 0).all()
    traced, *_ = encoders.clone(read_zeros=True).apply(variables, batch, train=False)
    assert (traced != 0).all() and (traced == traced[:1]).all()

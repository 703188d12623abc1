"""TACFN: how a stream is reinforced, by hand."""

from functools import cache

import jax
import numpy as np
import pytest

from jmer.models.utterance import tacfn
from tests import batches

MODEL = tacfn.Model(3, width=4, heads=2, layers=1)


@cache
def params():
    return jax.jit(lambda: MODEL.init(jax.random.key(0), batches.utterances(), train=False))()['params']


@cache
def compiled():
    variables = {'params': params()}
    return jax.jit(lambda batch: MODEL.apply(variables, batch, train=False))


def test_the_spliced_weight_vector_reinforces_the_other_stream():
    aux, vectors = compiled()(batches.utterances()).aux, []
    for name, other in (('audio', 'vision'), ('vision', 'audio')):
        layer, x = params()[f'weigh_{name}'], np.asarray(aux['steps'][name])
        spliced = np.concatenate([x, np.repeat(np.asarray(aux['selected'][other])[:, None], x.shape[1], 1)], -1)
        weights = 1 / (1 + np.exp(-(spliced @ np.asarray(layer['kernel']) + np.asarray(layer['bias'])[None, None])))
        np.testing.assert_allclose(aux['weights'][name], weights, atol=1e-6)
        vectors.append((x * (1 + weights)).mean(1))
    np.testing.assert_allclose(aux['fused'], np.concatenate(vectors, -1), atol=1e-6)


def test_a_stream_selects_without_the_other():
    batch = batches.utterances()
    whole, alone = (compiled()(b).aux for b in (batch, batches.without(batch, 'vision')))
    np.testing.assert_array_equal(whole['selected']['audio'], alone['selected']['audio'])


def test_an_absent_stream_reinforces_nothing():
    batch = batches.without(batches.utterances(), 'vision')
    aux = compiled()(batch).aux
    assert not np.any(aux['weights']['audio'])
    np.testing.assert_allclose(aux['fused'][:, :4], np.asarray(aux['steps']['audio']).mean(1), atol=1e-6)
    assert not np.any(aux['fused'][:, 4:])


def test_three_streams_are_refused():
    model = MODEL.clone(streams=('audio', 'vision', 'text'))
    with pytest.raises(ValueError, match=r'tacfn: streams: found .*, expected two'):
        jax.eval_shape(lambda: model.init(jax.random.key(0), batches.utterances(), train=False))

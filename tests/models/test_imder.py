"""IMDer where streams are missing: whose the noise is, and what training hides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers import diffusion
from jmer.models.utterance.imder import Model
from jmer.types import Stream
from tests import batches

QUICK = {'xla_backend_optimization_level': 0}       # compiled to run once
MODEL = Model(3, width=8, heads=2, layers=1, channels=(8, 8), embed=6, groups=(2, 4), score_layers=1, steps=5,
              sigma=2.0, blocks=1, reduction=4)


def test_what_is_recovered_depends_on_the_item_alone():
    """Neither its place in the batch, nor the other items, nor padding change the noise of an item."""
    batch = batches.utterances()
    gone = {'text': [0], 'audio': [1], 'vision': [1]}        # one stream, two streams, none
    streams = {name: s._replace(mask=s.mask & ~np.isin(np.arange(3), gone[name])[:, None])
               for name, s in batch.streams.items()}
    batch = batch._replace(streams=streams)
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), batch, train=False))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 5, shapes)
    run = jax.jit(lambda batch: MODEL.apply(variables, batch, train=False), compiler_options=QUICK)

    out, order = run(batch), np.array([1, 1, 0])
    for name, rows in gone.items():
        drawn = out.aux['streams'][name]
        assert drawn.mask[np.array(rows)].any(-1).all()
        assert np.abs(np.where(drawn.mask[..., None], drawn.x, 0)[rows]).max() > 1e-3
    np.testing.assert_allclose(run(batches.rows(batch, order)).logits, out.logits[order], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(run(batches.pad(batch)).logits[:3], out.logits, atol=1e-4, rtol=1e-4)


def test_streams_take_turns_to_be_hidden_and_one_stays():
    there = np.array([[1, 1, 1]] * 6 + [[1, 1, 0], [0, 1, 0]], bool)
    given = {name: Stream(np.zeros((8, 2, 8), np.float32), np.repeat(there[:, i:i + 1], 2, 1))
             for i, name in enumerate(MODEL.streams)}

    def hidden(hide, seed=0):
        found = MODEL.clone(hide=hide).apply({}, given, jax.random.key(seed), method='_hide')
        return np.stack([found[name] for name in MODEL.streams], -1)

    assert not hidden((0.0, 0.0)).any()
    one, two = hidden((1.0, 0.0)), hidden((0.0, 1.0))
    np.testing.assert_array_equal(one[:6].sum(0), [2, 2, 2])
    np.testing.assert_array_equal(two[:6].sum(-1), 2)
    for drawn in (one, two, hidden((0.5, 0.5), 1)):
        assert not (drawn & ~there).any() and (there & ~drawn).any(-1).all()


def test_noise_of_a_step_does_not_change_with_the_number_of_steps_and_rows():
    key = jax.random.key(3)
    np.testing.assert_array_equal(diffusion.noise(key, 2, 3, 4), diffusion.noise(key, 5, 7, 4)[:2, :3])


def test_upsampling_is_the_transposed_convolution():
    layer, rng = diffusion.Upsample(4), np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 5, 3), (3, 3, 4)))
    expected = np.zeros((2, 12, 4), np.float32)                      # from step -1 on
    for i in range(5):
        for k in range(3):
            expected[:, 2 * i + k] += x[:, i] @ kernel[k]
    found = layer.apply({'params': {'kernel': kernel}}, x)
    np.testing.assert_allclose(found, expected[:, 1:11], atol=1e-5)


def test_wrong_fields_are_named():
    with pytest.raises(ValueError, match=r'channels: found .*the width 8 first'):
        jax.eval_shape(lambda: MODEL.clone(channels=(16, 8)).init(jax.random.key(0), batches.utterances(), train=False))
    stream = Stream(jnp.zeros((1, 2, 8)), jnp.ones((1, 2), bool))
    with pytest.raises(ValueError, match='found 1 steps, expected 2 or more'):
        diffusion.sample(lambda x, t, c: x.x, stream, stream, lambda i: (stream.x, stream.x), steps=1, sigma=2.0)

"""CTNet: turns that are sequences of steps."""

from functools import cache

import jax
import numpy as np

from jmer.models.dialogue import ctnet
from jmer.types import Batch, Stream

MODEL = ctnet.Model(3, width=4, heads=2, hidden=5)


def batch_of(padding=0):
    """Two dialogues of three turns of four words and five audio frames; `padding` absent steps with rubbish."""
    rng, there, streams = np.random.default_rng(0), np.ones((2, 3), bool), {}
    for name, steps in (('text', 4), ('audio', 5)):
        x = rng.normal(size=(2, 3, steps, 6)).astype(np.float32)
        x = np.concatenate([x, np.full((2, 3, padding, 6), np.nan, np.float32)], 2)
        streams[name] = Stream(x, np.broadcast_to(np.arange(steps + padding) < steps, x.shape[:3]))
    return Batch(streams, there, {}, np.array([[0, 1, 0], [1, 0, 0]], np.int32))


@cache
def compiled():
    variables = jax.jit(lambda: MODEL.init(jax.random.key(0), batch_of(), train=False))()
    return jax.jit(lambda batch: MODEL.apply(variables, batch, train=False).logits)


def test_absent_steps_change_nothing():
    np.testing.assert_allclose(compiled()(batch_of(2)), compiled()(batch_of()), rtol=1e-5, atol=1e-6)


def test_words_have_an_order():
    batch = batch_of()
    text = batch.streams['text']
    turned = batch._replace(streams=batch.streams | {'text': text._replace(x=text.x[:, :, ::-1].copy())})
    assert np.abs(compiled()(turned) - compiled()(batch)).max() > 1e-4


def test_speakers_matter():
    batch = batch_of()
    assert np.abs(compiled()(batch._replace(speakers=1 - batch.speakers)) - compiled()(batch)).max() > 1e-4

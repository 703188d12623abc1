"""SDTN: what a speaker heard, and how their states follow each other."""

import jax
import jax.numpy as jnp
import numpy as np

from jmer.layers.recurrent import GRU
from jmer.models.dialogue import sdtn
from tests import batches

SPEAKERS = np.array([[0, 1, 2, 0, 0, 1], [0, 0, 1, 1, 1, 0]], np.int32)
PRESENT = np.array([[True] * 6, [True] * 4 + [False] * 2])


def test_a_speaker_hears_what_was_said_since_they_spoke():
    own, since = sdtn.links(SPEAKERS, PRESENT)
    found = [[(set(np.flatnonzero(own[row, t])), set(np.flatnonzero(since[row, t]))) for t in range(6)]
             for row in range(2)]
    assert found[0] == [(set(), set()), (set(), {0}), (set(), {0, 1}), ({0}, {1, 2}), ({0, 3}, set()),
                        ({1}, {2, 3, 4})]
    assert found[1] == [(set(), set()), ({0}, set()), (set(), {0, 1}), ({2}, set()), (set(), set()), (set(), set())]


def test_local_states_are_those_of_a_gru_over_the_speakers_turns():
    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    tracker = sdtn.Tracker(4)
    own, _ = sdtn.links(SPEAKERS, PRESENT)
    variables = tracker.init(jax.random.key(0), x, own, PRESENT)
    found = np.asarray(tracker.apply(variables, x, own, PRESENT))
    for speaker in range(3):
        mask = PRESENT & (speaker == SPEAKERS)
        alone = GRU(4).apply(variables, jnp.asarray(x), jnp.asarray(mask))
        np.testing.assert_allclose(found[mask], np.asarray(alone)[mask], rtol=1e-5, atol=1e-6)
    assert not found[~PRESENT].any()


def test_speakers_are_only_compared():
    """Other numbers for the same people change nothing; other people do."""
    model, batch = sdtn.Model(batches.CLASSES, width=4, state_width=3, hidden=5), batches.dialogues(size=2)
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False))()
    run = jax.jit(lambda speakers: model.apply(variables, batch._replace(speakers=speakers), train=False).logits)
    np.testing.assert_array_equal(run(40 - 7 * SPEAKERS), run(SPEAKERS))
    assert np.abs(run(np.zeros_like(SPEAKERS)) - run(SPEAKERS)).max() > 1e-4

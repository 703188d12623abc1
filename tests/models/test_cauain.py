"""CauAIN: which clue of which turn reaches whom."""

from functools import cache

import jax
import numpy as np

from jmer.models.dialogue import cauain
from jmer.types import Stream
from tests import batches

MODEL = cauain.Model(batches.CLASSES, width=4, hidden=5)
SPEAKERS = np.array([[0, 1, 0, 1]], np.int32)


@cache
def dialogue():
    batch = batches.dialogues(size=1, turns=4)
    streams = dict(zip(('text', 'intra', 'inter'), batch.streams.values(), strict=True))
    return batch._replace(streams=streams, speakers=SPEAKERS)


@cache
def compiled():
    variables = jax.jit(lambda: MODEL.init(jax.random.key(0), dialogue(), train=False))()
    return jax.jit(lambda batch: MODEL.apply(variables, batch, train=False))


def changed_turns(kind, turn):
    """The turns whose scores move when one clue of one turn does."""
    batch = dialogue()
    x = batch.streams[kind].x.copy()
    x[:, turn] += 1
    moved = batch._replace(streams=batch.streams | {kind: Stream(x, batch.present)})
    gap = np.abs(compiled()(moved).logits - compiled()(batch).logits)[0].max(-1)
    return set(np.flatnonzero(gap > 1e-5))


def test_an_intra_clue_reaches_its_speaker_from_then_on():
    assert changed_turns('intra', 1) == {1, 3}
    assert changed_turns('intra', 0) == {0, 2}


def test_an_inter_clue_reaches_the_others_after_it():
    assert changed_turns('inter', 0) == {1, 3}
    assert changed_turns('inter', 2) == {3}


def test_attention_is_over_the_turn_and_its_past():
    weights = np.asarray(compiled()(dialogue()).aux['attention'])[0]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert not np.triu(weights, 1).any() and (weights[np.tril_indices(4)] > 0).all()

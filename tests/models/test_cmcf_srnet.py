"""CMCF-SRNet: how far a turn is read, and the second task."""

from functools import cache

import jax
import numpy as np
import pytest

from jmer import losses
from jmer.models.dialogue import cmcf_srnet
from jmer.types import Label
from tests import batches

MODEL = cmcf_srnet.Model(batches.CLASSES, sentiment='sentiment', sentiments=2, width=4, heads=2, hidden=5, layers=1,
                         near=1, past=1, future=1)
BATCH = batches.dialogues(size=2)
SENTIMENT = Label(np.array([[0, 1, 0, 1, 1, 0]] * 2, np.int32), np.arange(6)[None].repeat(2, 0) < 4)


@cache
def compiled():
    variables = jax.jit(lambda: MODEL.init(jax.random.key(0), BATCH, train=False))()
    return jax.jit(lambda batch: MODEL.apply(variables, batch, train=False))


def test_streams_read_the_turns_around():
    """A change of vision at turn 2 is found in the text of turns 1 to 3."""
    vision = BATCH.streams['vision']
    x = vision.x.copy()
    x[:, 2] += 1
    moved = compiled()(BATCH._replace(streams=BATCH.streams | {'vision': vision._replace(x=x)}))
    gap = np.abs(moved.aux['streams']['text'] - compiled()(BATCH).aux['streams']['text']).max((0, 2))
    assert set(np.flatnonzero(gap > 1e-5)) == {1, 2, 3}


def test_a_modality_missing_in_one_turn_is_not_read_there():
    audio = BATCH.streams['audio']
    mask = audio.mask.copy()
    mask[:, 2] = False
    runs = [compiled()(BATCH._replace(streams=BATCH.streams | {'audio': audio._replace(x=x, mask=mask)})).logits
            for x in (audio.x, np.where(mask[..., None], audio.x, np.nan))]
    np.testing.assert_array_equal(*runs)
    assert np.isfinite(runs[0]).all() and np.abs(runs[0] - compiled()(BATCH).logits).max() > 1e-4


def test_speakers_matter_and_may_be_more_than_the_model_knows():
    who = BATCH.speakers
    out = [compiled()(BATCH._replace(speakers=speakers)).logits for speakers in (who, 0 * who, who + 5)]
    assert np.isfinite(out[2]).all() and np.abs(out[0] - out[1]).max() > 1e-4


def test_sentiment_counts_where_it_is_labelled():
    out = compiled()(BATCH)
    emotion = losses.cross_entropy(out.logits, BATCH.labels['emotion'])
    alone = cmcf_srnet.loss(MODEL, out, BATCH)
    assert set(alone) == {'label'}
    np.testing.assert_allclose(alone['label'].value, emotion.value)
    both = cmcf_srnet.loss(MODEL, out, BATCH._replace(labels=BATCH.labels | {'sentiment': SENTIMENT}))
    np.testing.assert_allclose(both['label'].value, emotion.value)
    second = losses.cross_entropy(out.aux['sentiment'], SENTIMENT)
    np.testing.assert_allclose(both['sentiment'].value, MODEL.sentiment_weight * second.value)
    np.testing.assert_array_equal(both['sentiment'].weight, SENTIMENT.mask)


def test_another_second_target_is_refused():
    labels = BATCH.labels | {'valence': SENTIMENT}
    with pytest.raises(ValueError, match=r"found .'emotion', 'valence'., expected one target"):
        cmcf_srnet.loss(MODEL, compiled()(BATCH), BATCH._replace(labels=labels))

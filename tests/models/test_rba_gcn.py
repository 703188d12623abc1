"""RBA-GCN: who is in whose cluster."""

from functools import cache

import jax
import numpy as np
import pytest

from jmer.models.dialogue import rba_gcn
from tests import batches

MODEL = rba_gcn.Model(batches.CLASSES, recurrent=('none',) * 3, width=4, layers=1, speakers=3, dropout=0.0)
SPEAKERS = np.array([[0, 1, 0, 1, 2]], np.int32)


@cache
def dialogue():
    return batches.dialogues(size=1, turns=5)._replace(speakers=SPEAKERS)


def run(**fields):
    model = MODEL.clone(**fields)
    variables = jax.jit(lambda: MODEL.init(jax.random.key(0), dialogue(), train=False))()
    return jax.jit(lambda batch: model.apply(variables, batch, train=False))


@cache
def clusters(least):
    found = run(least_similarity=least)(dialogue()).aux['clusters']
    return {name: np.asarray(weights)[0] for name, weights in found.items()}


def test_without_a_threshold_every_neighbour_is_in_the_cluster_of_its_relation():
    own = SPEAKERS[0][:, None] == SPEAKERS[0][None]
    found, itself = clusters(-2.0), np.eye(5, dtype=bool)
    np.testing.assert_array_equal(found['own'] > 0, np.broadcast_to(own & ~itself, (3, 5, 5)))
    np.testing.assert_array_equal(found['others'] > 0, np.broadcast_to(~own, (3, 5, 5)))
    np.testing.assert_array_equal(found['across'] > 0, np.broadcast_to(~np.eye(3, dtype=bool)[..., None], (3, 3, 5)))


def test_what_is_not_similar_is_left_out_and_the_rest_weighs_more():
    whole, part = clusters(-2.0), clusters(0.3)
    x = np.random.default_rng(0).normal(size=(1, 3, 5, 4)).astype(np.float32)
    cosine = np.asarray(rba_gcn.similarity(x).within)[0]
    unit = x[0] / np.linalg.norm(x[0], axis=-1, keepdims=True)
    np.testing.assert_allclose(cosine, unit @ unit.swapaxes(-1, -2), rtol=1e-5, atol=1e-6)
    dropped = (whole['others'] > 0) & (part['others'] == 0)
    kept = part['others'] > 0
    assert dropped.any() and kept.any()
    # Weights of all are a softmax over similarities, so what is dropped weighed less than all that is kept.
    for node in np.ndindex(3, 5):
        if dropped[node].any() and kept[node].any():
            assert whole['others'][node][dropped[node]].max() < whole['others'][node][kept[node]].min()
    sums = part['others'].sum(-1)
    np.testing.assert_allclose(sums[kept.any(-1)], 1, rtol=1e-5)
    assert not sums[~kept.any(-1)].any()


def test_a_turn_without_similar_turns_depends_on_itself_alone():
    apply, batch = run(least_similarity=1.1), dialogue()
    text = batch.streams['text']
    moved = text.x.copy()
    moved[:, 2] += 1
    after = apply(batch._replace(streams=batch.streams | {'text': text._replace(x=moved)}))
    changed = np.abs(after.logits - apply(batch).logits)[0].max(-1) > 1e-6
    np.testing.assert_array_equal(changed, np.arange(5) == 2)
    assert not np.asarray(after.aux['chosen'][0]).any()


def test_the_choice_is_among_the_clusters_that_there_are():
    chosen = np.asarray(run(least_similarity=-2.0)(dialogue()).aux['chosen'][0])[0]
    np.testing.assert_allclose(chosen.sum(-1), 1, rtol=1e-5)
    alone = SPEAKERS[0] == 2
    assert not chosen[:, alone, 0].any() and (chosen[:, ~alone, 0] > 0).all()


def test_streams_and_their_readers_go_together():
    with pytest.raises(ValueError, match='rba_gcn: recurrent'):
        jax.eval_shape(lambda: MODEL.clone(recurrent=('gru',)).init(jax.random.key(0), dialogue(), train=False))

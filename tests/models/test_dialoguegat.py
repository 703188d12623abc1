"""MM DialogueGAT: what its graph attention computes, and what is not attended to."""

from functools import cache

import jax
import numpy as np

from jmer.models.dialogue import dialoguegat
from tests import batches

MODEL = dialoguegat.Model(batches.CLASSES, width=2, heads=2, hidden=3, layers=1, graph_heads=2, past=2, future=1)
BATCH = batches.dialogues(size=1)._replace(speakers=np.array([[0, 1, 5, 0, 1, 5]], np.int32))


@cache
def compiled():
    variables = jax.jit(lambda: MODEL.init(jax.random.key(0), BATCH, train=False))()
    return variables['params'], jax.jit(lambda batch: MODEL.apply(variables, batch, train=False))


def test_the_graph_layer_is_two_attentions_over_the_window():
    """Turn by turn: softmax over the sources of leaky(a . W x_s + b . W x_t), the mean of two heads, ELU, x added."""
    params, run = compiled()
    out = run(BATCH)
    x, speakers, expected = np.asarray(out.aux['fused'])[0], BATCH.speakers[0], []
    for t in range(6):
        total = np.zeros(3)
        for role in ('own', 'others'):
            p = jax.tree.map(np.asarray, params[f'{role}_0'])
            sources = [s for s in range(max(0, t - 2), min(6, t + 2))
                       if (speakers[s] == speakers[t]) == (role == 'own')]
            total += p['bias']
            for head in range(2 if sources else 0):
                sent = (x @ p['source']['kernel']).reshape(6, 2, 3)[:, head]
                score = sent[sources] @ p['score_source'][head] + sent[t] @ p['score_target'][head]
                weight = np.exp(np.where(score > 0, score, 0.2 * score))
                total += weight / weight.sum() @ sent[sources] / 2
        expected.append(x[t] + np.where(total > 0, total, np.expm1(total)))
    assert np.abs(x).max() > 0.1
    np.testing.assert_allclose(out.aux['graph'][0], expected, rtol=1e-5, atol=1e-6)


def test_another_stream_missing_in_one_turn_is_not_attended_to():
    run = compiled()[1]
    audio = BATCH.streams['audio']
    mask = audio.mask.copy()
    mask[:, 2] = False
    runs = [run(BATCH._replace(streams=BATCH.streams | {'audio': audio._replace(x=x, mask=mask)})).logits
            for x in (audio.x, np.where(mask[..., None], audio.x, np.nan))]
    np.testing.assert_array_equal(*runs)
    assert np.isfinite(runs[0]).all() and np.abs(runs[0] - run(BATCH).logits).max() > 1e-5

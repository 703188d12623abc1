"""CFNet-GFL: what each module can see."""

from functools import cache

import jax
import numpy as np
import pytest

from jmer.models.dialogue import cfnet_gfl
from tests import batches

MODEL = cfnet_gfl.Model(batches.CLASSES, recurrent=('none',) * 3, width=4, heads=2, hidden=5, context_layers=1,
                        past=2, future=1, dropout=0.0)
TEXT, AUDIO = 0, 1


@cache
def dialogue():
    return batches.dialogues(size=1, turns=6)


@cache
def compiled(**fields):
    model = MODEL.clone(**fields)
    variables = jax.jit(lambda: model.init(jax.random.key(0), dialogue(), train=False))()
    return jax.jit(lambda batch: model.apply(variables, batch, train=False))


def moved(module, **fields):
    """Which nodes [m u] of a module's result change with the text of turn 3."""
    batch = dialogue()
    text = batch.streams['text']
    x = text.x.copy()
    x[:, 3] += 1
    after = compiled(**fields)(batch._replace(streams=batch.streams | {'text': text._replace(x=x)}))
    return np.abs(after.aux[module] - compiled(**fields)(batch).aux[module])[0].max(-1) > 1e-6


def test_the_cross_modal_module_lets_streams_read_each_other():
    changed = moved('cross')
    assert changed[1:].all(), 'every turn of the other streams reads the text'
    np.testing.assert_array_equal(changed[TEXT], np.arange(6) == 3)


def test_the_first_graph_stays_in_its_modality_and_window():
    changed = moved('context', cross_layers=0)
    np.testing.assert_array_equal(changed[TEXT], [False, False, True, True, True, True])
    assert not changed[1:].any()


def test_the_second_graph_joins_the_modalities_of_a_turn():
    changed = moved('interaction', cross_layers=0, context_layers=0)
    np.testing.assert_array_equal(changed, np.broadcast_to(np.arange(6) == 3, (3, 6)))


def test_a_modality_missing_in_one_turn_leaves_no_trace():
    batch = dialogue()
    audio = batch.streams['audio']
    mask = audio.mask.copy()
    mask[:, 2] = False

    def without(value):
        x = audio.x.copy()
        x[:, 2] = value
        return compiled()(batch._replace(streams=batch.streams | {'audio': audio._replace(x=x, mask=mask)}))

    out = without(np.nan)
    np.testing.assert_array_equal(out.logits, without(1.0).logits)
    assert not np.asarray(out.aux['interaction'])[:, AUDIO, 2].any()
    assert np.abs(out.logits - compiled()(batch).logits).max() > 1e-4


@pytest.mark.parametrize('fields', [{'streams': ('text',), 'recurrent': ('none',)}, {'recurrent': ('none',)}])
def test_streams_and_their_readers_go_together(fields):
    with pytest.raises(ValueError, match='cfnet_gfl: streams and recurrent'):
        jax.eval_shape(lambda: MODEL.clone(**fields).init(jax.random.key(0), dialogue(), train=False))

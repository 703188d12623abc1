"""DF-ERC: shares of the modalities, gates of the contexts, and what each loss pulls on."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jmer.models.dialogue import df_erc
from jmer.types import Label
from tests import batches

MODEL = df_erc.Model(batches.CLASSES, width=4, dropout=0.0)


@cache
def dialogues():
    """Two dialogues, the second without audio in its third turn, that turn without a label."""
    batch = batches.dialogues(size=2, turns=5)
    mask = np.ones((2, 5), bool)
    mask[1, 2] = False
    audio = batch.streams['audio']._replace(mask=mask)
    label = batch.labels['emotion']._replace(mask=mask)
    return batch._replace(streams=batch.streams | {'audio': audio}, labels={'emotion': label})


@cache
def variables():
    return jax.jit(lambda: MODEL.init(jax.random.key(0), dialogues(), train=False))()


def apply(batch, variables):
    return MODEL.apply(variables, batch, train=False)


@cache
def out():
    return jax.jit(apply)(dialogues(), variables())


def test_modalities_weigh_as_they_are_certain():
    aux = {name: np.asarray(out().aux[name]) for name in ('certainty', 'contribution', 'nodes')}
    assert ((aux['certainty'] > 0) & (aux['certainty'] < 1)).all()
    np.testing.assert_allclose(aux['contribution'].sum(1), 1, rtol=1e-6)
    assert not aux['contribution'][1, 1, 2] and not aux['nodes'][1, 1, 2]
    np.testing.assert_allclose(aux['contribution'][0, 0] / aux['contribution'][0, 2],
                               aux['certainty'][0, 0] / aux['certainty'][0, 2], rtol=1e-5)
    nobody = df_erc.normalised(jnp.ones((1, 3, 2)), jnp.zeros((1, 3, 2), bool))
    assert not np.asarray(nobody).any()


def test_certainty_learns_the_probability_of_the_true_class():
    term = df_erc.loss(MODEL, out(), dialogues())['contribution']
    label, nodes = dialogues().labels['emotion'], np.asarray(out().aux['nodes'])
    p = np.asarray(jax.nn.softmax(out().aux['alone']))
    true = np.take_along_axis(p, np.broadcast_to(label.value[:, None, :, None], (2, 3, 5, 1)), -1)[..., 0]
    there = nodes & label.mask[:, None]
    expected = np.square(np.asarray(out().aux['certainty']) - true)
    np.testing.assert_array_equal(term.weight, there)
    np.testing.assert_allclose(np.asarray(term.value)[there], MODEL.contribution_weight * expected[there], rtol=1e-5)


def test_real_values_have_a_certainty_too():
    values = Label(np.zeros((2, 5, batches.CLASSES), np.float32), np.ones((2, 5), bool))
    term = df_erc.loss(MODEL, out(), dialogues()._replace(labels={'valence': values}))['contribution']
    truth = np.exp(-np.abs(np.asarray(out().aux['alone'])).mean(-1))
    expected = np.where(out().aux['nodes'], np.square(out().aux['certainty'] - truth), 0)
    np.testing.assert_allclose(np.where(term.weight, term.value, 0), MODEL.contribution_weight * expected, rtol=1e-5)


def test_each_contrast_shapes_its_own_space_and_knows_its_partners():
    @jax.jit
    def gradients(variables):
        def total(variables, name):
            term = df_erc.loss(MODEL, apply(dialogues(), variables), dialogues())[name]
            return jnp.sum(term.value * term.weight)

        return {name: jax.grad(total)(variables, name)['params'] for name in ('modality', 'utterance')}

    found = gradients(variables())
    size = {name: {part: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads[part]))
                   for part in ('own_text', 'shared')} for name, grads in found.items()}
    assert size['modality']['own_text'] > 1e-4 and size['modality']['shared'] == 0
    assert size['utterance']['shared'] > 1e-4 and size['utterance']['own_text'] == 0


def test_vectors_that_agree_with_their_partners_cost_less():
    turn = np.broadcast_to(np.arange(4, dtype=np.int32), (3, 4))
    nodes, eye = np.ones((2, 3, 4), bool), np.eye(4, dtype=np.float32)
    alike = np.broadcast_to(eye, (2, 3, 4, 4))              # the modalities of a turn say the same
    apart = np.stack([np.roll(eye, k, 0) for k in range(3)])[None].repeat(2, 0)
    low, high = (df_erc.contrast(jnp.asarray(x), turn, nodes, 0.5) for x in (alike, apart))
    # One positive of cosine 1 against nine others of cosine 0, for every pair.
    np.testing.assert_allclose(low.value, np.log(1 + 9 * np.exp(-2)), rtol=1e-5)
    np.testing.assert_allclose(low.weight, 12)
    assert (np.asarray(high.value) > np.asarray(low.value) + 1).all()


def test_a_dialogue_is_contrasted_by_itself():
    alone = jax.tree.map(lambda x: x[1:], dialogues())
    lone = df_erc.loss(MODEL, jax.jit(apply)(alone, variables()), alone)
    whole = df_erc.loss(MODEL, out(), dialogues())
    for name in ('modality', 'utterance'):
        np.testing.assert_allclose(whole[name].value[1:], lone[name].value, rtol=1e-5)
        np.testing.assert_array_equal(whole[name].weight, [15, 14])


def test_a_monologue_hears_nobody_else():
    """The gate to the others stays shut where there are none, whatever its weights say."""
    alone = dialogues()._replace(speakers=np.zeros((2, 5), np.int32))
    changed = jax.tree.map(lambda x: x, variables())
    changed['params']['tell_others'] = {'kernel': 10 * variables()['params']['tell_others']['kernel']}
    run = jax.jit(apply)
    np.testing.assert_array_equal(run(alone, changed).logits, run(alone, variables()).logits)
    assert np.abs(run(dialogues(), changed).logits - out().logits).max() > 1e-3
    nameless = run(alone._replace(speakers=None), variables())
    np.testing.assert_array_equal(nameless.logits, run(alone, variables()).logits)
    many = dialogues()._replace(speakers=np.arange(10, dtype=np.int32).reshape(2, 5))
    assert np.abs(run(many, variables()).logits - out().logits).max() > 1e-4

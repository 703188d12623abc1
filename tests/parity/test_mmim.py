"""MMIM against the authors' numbers: both stages, and the entropies over a memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.models.utterance import mmim
from jmer.types import Output

from . import fusion, parity

NAMES = {'tv': 'vision_from_text', 'ta': 'audio_from_text', 'va': 'audio_from_vision'}


def adapt(fixture):
    h = fixture.hparams
    return mmim.Model(h['n_class'], states=(h['d_ah'], h['d_vh']), widths=(h['d_aout'], h['d_vout']),
                      width=h['d_prjh'], bidirectional=h['bidirectional'], predictor_layers=h['cpc_layers'],
                      audio_vision=h['add_va'], contrast_weight=h['alpha'], bound_weight=h['beta'],
                      state_dropout=0.0, dropout=0.0)


def to_batch(inputs):
    """Vision and audio are time-major."""
    def masked(x, lengths):
        return fusion.sequence(x.swapaxes(0, 1), jnp.arange(len(x))[None] < lengths[:, None])

    return fusion.batch_of(inputs['labels'], text=fusion.sequence(inputs['text_features']),
                           audio=masked(inputs['acoustic'], inputs['a_len']),
                           vision=masked(inputs['visual'], inputs['v_len']))


def memory_of(inputs):
    rows, signs = {}, {}
    for letters, ours in NAMES.items():
        if f'mem_{letters}_pos' in inputs:
            sides = inputs[f'mem_{letters}_pos'], inputs[f'mem_{letters}_neg']
            rows[ours] = jnp.concatenate(sides)
            signs[ours] = jnp.repeat(jnp.array([1.0, -1.0]), np.array([len(side) for side in sides]),
                                     total_repeat_length=len(rows[ours]))
    return mmim.Memory(rows, signs)


@pytest.mark.parametrize('name', parity.names('mmim'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model, recorded = adapt(fixture), fixture.section('input')
    unweighted = model.clone(contrast_weight=1.0, bound_weight=1.0)
    signs = np.sign(recorded['labels'][:, 0])

    def parts(model, out, inputs):
        batch = to_batch(inputs)
        terms = mmim.loss(model, out, batch) | mmim.entropy(model, out, batch, memory_of(inputs))
        return {name: fusion.total(term) for name, term in terms.items()}

    def part(terms, start):
        return sum(term for name, term in terms.items() if name.startswith(start))

    def named_outputs(out):
        terms = parts(unweighted, out, recorded)
        found = {'preds': out.logits, 'lld': -part(terms, 'likelihood'), 'nce': part(terms, 'contrast'),
                 'H': -part(terms, 'entropy')}
        found |= {f'stage0_{name}': found[name] for name in ('preds', 'lld', 'nce')}
        for letters, ours in NAMES.items():
            if ours in out.aux['estimates']:
                _, projected = out.aux['estimates'][ours]
                found |= {f'pn_{letters}_pos': projected[np.flatnonzero(signs > 0)],
                          f'pn_{letters}_neg': projected[np.flatnonzero(signs < 0)]}
        return found

    def all_losses(out, inputs):
        terms, first_stage = parts(model, out, inputs), mmim.likelihood(model, out, to_batch(inputs))
        return {'task': terms['label'], 'total': sum(terms.values()),
                'stage0': sum(fusion.total(term) for term in first_stage.values())}

    fusion.assert_equals(
        fixture,
        lambda state: mmim.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs), train=train), {}),
        named_outputs,
        all_losses,
    )


def test_the_memory_holds_the_last_utterances_that_count():
    """In batch order; an absent stream, or a label of 0, has the sign 0."""
    model = mmim.Model(1, widths=(4, 8))
    labels = np.array([[2.0], [-1.0], [0.0], [3.0]], np.float32)
    sequence = fusion.sequence(np.ones((4, 2, 3), np.float32))
    batch = fusion.batch_of(labels, text=sequence, audio=sequence, vision=sequence)
    there = {'text': batch.present, 'vision': batch.present, 'audio': np.array([True, False, True, True])}
    estimates = {name: (jnp.zeros(4), jnp.broadcast_to(jnp.arange(1.0, 5)[:, None], (4, width)))
                 for name, width in (('vision_from_text', 2), ('audio_from_text', 1))}
    out = Output(labels, {'there': there, 'estimates': estimates})
    memory = mmim.memory_after(model, mmim.start(model, 5), out, batch)
    np.testing.assert_array_equal(memory.signs['vision_from_text'], [0, 1, -1, 0, 1])
    np.testing.assert_array_equal(memory.signs['audio_from_text'], [0, 1, 0, 0, 1])
    np.testing.assert_array_equal(memory.rows['audio_from_text'][:, 0], [0, 1, 0, 3, 4])
    memory = mmim.memory_after(model, memory, out, batch)
    np.testing.assert_array_equal(memory.rows['vision_from_text'][:, 1], [4, 1, 2, 3, 4])

    few = mmim.entropy(model, out, batch, mmim.start(model, 5))
    assert float(few['entropy_vision_from_text'].value) == 0, 'two utterances and two features: singular'
    two = -model.bound_weight * np.log(np.var([1, 4])) / 4      # of the two positive ones; no negative one is there
    np.testing.assert_allclose(few['entropy_audio_from_text'].value, two, rtol=1e-6)
    with pytest.raises(ValueError, match='one real value an utterance'):
        mmim.entropy(model, out, fusion.batch_of(np.array([0, 1, 2, 0]), text=sequence), memory)


def test_the_stages_divide_the_parameters():
    fixture = parity.load('mmim')
    params = mmim.params_from_author(fixture.section('param'), adapt(fixture))['params']
    todo = mmim.stages(adapt(fixture))
    first, second = ({name for name in params if stage.moves(f'{name}/kernel')} for stage in todo)
    assert first == {'estimate_vision_from_text', 'estimate_audio_from_text'} == set(params) - second


def test_the_authors_variants_have_a_place_for_every_tensor():
    """One direction, predictors of three layers, and audio estimated from vision."""
    fixture = parity.load('mmim')
    model = adapt(fixture).clone(bidirectional=False, predictor_layers=3, audio_vision=True)
    state = {name: x for name, x in fixture.section('param').items()
             if 'reverse' not in name and not name.startswith(('cpc', 'visual_enc.linear', 'acoustic_enc.linear'))}
    (audio, vision), (heard, seen) = model.widths, model.states
    shapes = {'acoustic_enc.linear_1': (audio, heard), 'visual_enc.linear_1': (vision, seen),
              'mi_va.entropy_prj.0': (audio // 4, audio)}
    for network in ('mlp_mu', 'mlp_logvar'):
        shapes |= {f'mi_va.{network}.0': (audio, vision), f'mi_va.{network}.2': (audio, audio)}
    for letter, width in (('t', fixture.hparams['d_tin']), ('a', audio), ('v', vision)):
        shapes |= {f'cpc_z{letter}.net.{k}': (width, width if k else model.width) for k in (0, 2, 3)}
    for name, shape in shapes.items():
        state |= {f'{name}.weight': np.ones(shape, np.float32), f'{name}.bias': np.ones(shape[:1], np.float32)}
    batch = to_batch(fixture.section('input'))
    ours = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    theirs = mmim.params_from_author(state, model)
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)

"""What is particular to MulT; the contract of all models is in tests/test_models.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.models.utterance import mult
from jmer.types import Batch, Stream
from tests import batches

SMALL = {'width': 8, 'heads': 2, 'layers': 1}
STILL = dict.fromkeys(('text_dropout', 'embed_dropout', 'attention_dropout', 'relu_dropout',
                       'residual_dropout', 'out_dropout'), 0.0)
QUICK = {'xla_backend_optimization_level': 0}       # compiled to run once or twice


def model_of(**fields):
    return mult.Model(batches.CLASSES, **SMALL | fields)


def init(model, batch):
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False), compiler_options=QUICK)()
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.1 * jax.random.normal(k, x.shape)
                                     for x, k in zip(leaves, keys, strict=True)])


def run(model, variables, batch, key=None):
    rngs = None if key is None else {'dropout': jax.random.key(key)}
    return jax.jit(lambda v, b: model.apply(v, b, train=key is not None, rngs=rngs),
                   compiler_options=QUICK)(variables, batch)


def longer(stream, steps):
    """The stream with absent steps of NaN behind it."""
    return Stream(np.pad(stream.x, ((0, 0), (0, steps), (0, 0)), constant_values=np.nan),
                  np.pad(stream.mask, ((0, 0), (0, steps))))


def test_two_streams_and_unequal_padding():
    """The causal offset comes from true lengths: streams padded differently give the same."""
    batch, model = batches.utterances(), model_of(streams=('audio', 'vision'))
    variables = init(model, batch)
    whole = run(model, variables, batch)
    assert whole.aux['joined'].shape == (3, 2 * 8) and set(whole.aux['crossed']) == {
        'audio_from_vision', 'vision_from_audio'}
    streams = batch.streams | {'audio': longer(batch.streams['audio'], 1),
                               'vision': longer(batch.streams['vision'], 6)}
    padded = run(model, variables, batch._replace(streams=streams))
    np.testing.assert_allclose(padded.logits, whole.logits, atol=2e-5)
    np.testing.assert_allclose(padded.aux['joined'], whole.aux['joined'], atol=2e-5)


def test_an_item_alone_equals_itself_among_longer_ones():
    batch, model = batches.utterances(), model_of(streams=('text', 'vision'), kernels=(2, 3))
    variables = init(model, batch)
    cut = {'text': 4, 'audio': 9, 'vision': 3}
    streams = {name: Stream(s.x, np.array(s.mask)) for name, s in batch.streams.items()}
    for name, length in cut.items():
        streams[name].mask[1, length:] = False
    alone = {name: Stream(s.x[1:2, :cut[name]], s.mask[1:2, :cut[name]]) for name, s in streams.items()}
    among = run(model, variables, batch._replace(streams=streams))
    single = run(model, variables, Batch(alone, batch.present[1:2], {}))
    np.testing.assert_allclose(among.logits[1:2], single.logits, atol=2e-5)
    np.testing.assert_array_equal(single.aux['crossed']['text_from_vision'].shape, (1, 3, 8))


def test_one_branch_reads_the_others_and_builds_nothing_else():
    batch, model = batches.utterances(), model_of(branches=('audio',))
    variables = init(model, batch)
    assert set(variables['params']) == {
        'project_text', 'project_audio', 'project_vision', 'audio_from_text', 'audio_from_vision',
        'audio_memory', 'residual_in', 'residual_out', 'head'}
    out = run(model, variables, batch)
    moved = batch.streams | {'text': batch.streams['text']._replace(x=batch.streams['text'].x + 1)}
    assert np.abs(run(model, variables, batch._replace(streams=moved)).logits - out.logits).max() > 1e-4


def test_a_stream_of_the_right_width_is_not_projected():
    batch = batches.utterances(widths={'text': 8, 'audio': 7, 'vision': 4})
    model = model_of(streams=('text', 'audio'), kernels=(3, 1))
    variables = init(model, batch)
    assert 'project_text' not in variables['params']
    assert run(model, variables, batch).aux['crossed']['text_from_audio'].shape == (3, 6, 8)


def test_a_stream_shorter_than_its_kernel_is_absent():
    batch, model = batches.utterances(), model_of(streams=('text', 'vision'), kernels=(5, 3))
    variables = init(model, batch)
    text = batch.streams['text']
    short = batch._replace(streams=batch.streams | {'text': Stream(text.x[:, :4], text.mask[:, :4])})
    gone = batch._replace(streams=batch.streams | {'text': Stream(text.x, np.zeros_like(text.mask))})
    a, b = (run(model, variables, inputs).logits for inputs in (short, gone))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_attention_is_dropped_out_by_source():
    """As the authors name the rates: `text_from_audio` has the rate of audio."""
    batch = batches.utterances()
    model = model_of(**STILL, streams=('text', 'audio'), other_attention_dropout=(0.5,))
    variables = init(model, batch)
    still, noisy = (run(model, variables, batch, key=key).aux['crossed'] for key in (None, 0))
    changed = {name for name, h in noisy.items() if np.abs(h - still[name]).max() > 1e-3}
    assert changed == {'text_from_audio'}


def test_only_the_first_stream_has_feature_dropout():
    batch = batches.utterances()
    model = model_of(**STILL | {'text_dropout': 0.5}, streams=('audio', 'text'))
    variables = init(model, batch)
    absent = batches.without(batch, 'audio')        # what is left is text, the same with every key
    for inputs, moved in ((absent, False), (batch, True)):
        a, b = (run(model, variables, inputs, key=key).aux['crossed']['text_from_audio'] for key in (0, 1))
        assert (np.abs(a - b).max() > 1e-3) == moved


def test_gradients_are_finite_with_everything_missing():
    batch, model = batches.utterances(), model_of(streams=('text', 'audio'))
    variables = init(model, batch)
    absent = batches.without(batch, 'text', 'audio')

    def total(variables, batch):
        out = model.apply(variables, batch, train=True, rngs={'dropout': jax.random.key(0)})
        return jnp.sum(out.logits**2)

    grads = jax.jit(jax.grad(total), compiler_options=QUICK)(variables, absent)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.any(grads['params']['head']['bias'])


@pytest.mark.parametrize(('fields', 'named'), [
    ({'streams': ('text',)}, 'streams'),
    ({'streams': ('text', 'text')}, 'streams'),
    ({'branches': ('eeg',)}, 'branches'),
    ({'width': 9}, 'width'),
    ({'kernels': (1, 3)}, 'kernels'),
    ({'other_attention_dropout': (0.1, 0.1, 0.1)}, 'other_attention_dropout'),
])
def test_fields_that_do_not_fit_are_named(fields, named):
    with pytest.raises(ValueError, match=f'mult: {named}: found .* expected'):
        jax.eval_shape(lambda: model_of(**fields).init(jax.random.key(0), batches.utterances(), train=False))


def test_an_author_checkpoint_has_three_streams():
    with pytest.raises(ValueError, match='three'):
        mult.params_from_author({}, model_of(streams=('audio', 'vision')))


def test_a_foreign_checkpoint_names_all_that_differs():
    with pytest.raises(ValueError, match='not a checkpoint of mult') as error:
        mult.params_from_author({'proj_l.weight': np.zeros((8, 5, 3)), 'x': np.zeros(2)}, model_of())
    for line in ('misshapen  proj_l.weight', 'missing    trans_v_mem.layers.2.fc1.weight', 'surplus    x'):
        assert line in str(error.value)

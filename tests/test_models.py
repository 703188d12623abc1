"""One contract over the whole zoo. A new model adds its small case and its pin here, nothing else."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import zoo
from jmer.stages import objective
from jmer.train.step import make_step
from jmer.types import Batch
from tests import batches

STREAMS = ('text', 'audio', 'vision')

CASES = {
    'arcface_interaction': {'streams': ('text', 'vision'), 'states': 2, 'heads': 2, 'hidden': 5, 'width': 4,
                            'scale': 8.0},
    'attcorr': {'width': 5},
    'bclstm': {'streams': STREAMS, 'width': 4, 'hidden': 6, 'attention': True},
    'camser': {'streams': STREAMS, 'images': 1, 'channels': (2, 2, 2, 2, 2), 'lstm': 3, 'steps': (12, 7), 'width': 5},
    'cauain': {'streams': ('text',), 'intra': 'audio', 'inter': 'vision', 'width': 4, 'hidden': 5},
    'cfn_esa': {'width': 4, 'heads': 2, 'layers': 2, 'recurrent_layers': 1, 'shift_hidden': 3},
    'cfn_sr': {'streams': ('text', 'vision'), 'steps': 24, 'regions': 2, 'widths': (3, 3, 4), 'attention': 3,
               'heads': 2, 'layers': 1},
    'cfnet_gfl': {'streams': ('text', 'audio'), 'recurrent': ('gru', 'none'), 'width': 4, 'base_width': 3, 'heads': 2,
                  'hidden': 5, 'context_layers': 1, 'past': 2, 'future': 1},
    'cmcf_srnet': {'width': 4, 'heads': 2, 'hidden': 5, 'layers': 1, 'near': 2, 'past': 2, 'future': 1},
    'cmt_gru': {'streams': STREAMS, 'width': 4},
    'cmt_mser': {'streams': ('text', 'vision'), 'width': 8, 'heads': 2, 'layers': 1, 'hidden': 6},
    'cogmen': {'hidden': 4, 'past': 2, 'future': 1, 'transformer_hidden': 6, 'layers': 1, 'graph_heads': 2},
    'cold_fusion': {'states': 2, 'layers': 1, 'width': 3, 'hidden': 4},
    'cross_attention_cnn': {'streams': ('vision', 'text'), 'widths': (3, 4), 'kernels': (3, 2), 'strides': (2, 1),
                            'text_widths': (3,), 'lstm': 2, 'heads': 2, 'hidden': 5},
    'ctnet': {'streams': ('text', 'audio'), 'width': 4, 'heads': 2, 'hidden': 5},
    'dagerc': {'streams': STREAMS, 'hidden': 4, 'layers': 2, 'attention': 'past'},
    'deer': {'states': 2, 'width': 6, 'heads': 2, 'hidden': 5, 'layers': 1},
    'df_erc': {'width': 4},
    'dialoguegat': {'width': 2, 'heads': 2, 'hidden': 5, 'layers': 1, 'graph_heads': 2, 'past': 2, 'future': 1},
    'dialoguegcn': {'streams': STREAMS, 'width': 3, 'hidden': 4, 'past': 2, 'future': 1, 'bases': 2, 'max_turns': 6},
    'dialoguernn': {'streams': STREAMS, 'global_width': 4, 'party_width': 5, 'width': 3, 'hidden': 6},
    'dst': {'layers': 1, 'heads': 2, 'hidden': 6, 'length': 30},
    'dualgats': {'streams': STREAMS, 'width': 4, 'layers': 2, 'hidden_layers': 1},
    'dwformer': {'heads': 2, 'hidden': 6, 'blocks': 1},
    'early': {'hidden': (8,)},
    'gcnet': {'width': 2, 'past': 2, 'future': 1},
    'gmu': {'streams': STREAMS, 'hidden': 6},
    'graphcfc': {'width': 3, 'base_width': 4, 'layers': (1, 2, 1), 'heads': 2, 'past': 2, 'future': 1},
    'graphmft': {'width': 3, 'base_width': 4, 'layers': (2, 1, 1), 'heads': 2, 'past': 2, 'future': 1},
    'haucl': {'width': 4, 'hidden': 3, 'layers': 2, 'speakers': 2},
    'headfusion': {'heads': 2, 'hidden': 3, 'channels': (2, 3, 3, 3, 3)},
    'ifmmin': {'width': 3, 'text_channels': 2, 'narrowing': (4, 3), 'blocks': 2, 'hidden': (4,)},
    'imder': {'streams': ('text', 'audio'), 'width': 8, 'heads': 2, 'layers': 1, 'channels': (8, 8), 'embed': 6,
              'groups': (2, 4), 'score_layers': 1, 'steps': 9, 'sigma': 2.0, 'blocks': 1, 'reduction': 4,
              'hide': (1.0, 0.0), 'error_weight': 1e-3, 'attention_dropout': (0.0, 0.0)},
    'jca': {'streams': ('text', 'vision'), 'steps': 12, 'width': 4, 'attention': 3, 'hidden': 3},
    'late': {'hidden': (8,), 'rule': 'weighted'},
    'lfmim': {'steps': (9, 12, 7), 'width': 8, 'heads': 2, 'layers': 2, 'tokens': 2},
    'lmf': {'hidden': (3, 4, 6), 'text_width': 3, 'rank': 2},
    'lmr_cbt': {'streams': ('text', 'vision'), 'width': 8, 'heads': 2, 'layers': 1},
    'm3er': {'states': 2, 'memory': 3, 'moments': 2, 'hidden': 4},
    'm3net': {'width': 4, 'hidden': 3, 'hyper_layers': 2, 'gated_layers': 2},
    'mag': {'width': 8, 'heads': 2, 'layers': 1, 'hidden': 10, 'steps': 12},
    'magnet': {'streams': ('text', 'vision'), 'width': 4, 'hidden': 3},
    'mcfn': {'width': 4, 'narrow': (3, 3), 'attention': 2, 'heads': 2, 'hidden': 3},
    'misa': {'width': 4, 'hidden': 8},
    'mmdfn': {'width': 3, 'hidden': 4, 'layers': 2, 'party_weights': (1.0, 2.0, 3.0), 'speaker_streams': ('text',)},
    'mmer': {'width': 8, 'heads': 2, 'hidden': 6},
    'mmfa_rnn': {'streams': ('text', 'vision'), 'width': 2, 'heads': 2, 'hidden': 3},
    'mmgcn': {'width': 3, 'hidden': 4, 'layers': 3, 'modal_vectors': True},
    'mmim': {'states': (3, 2), 'widths': (4, 4), 'width': 5, 'audio_vision': True},
    'mmin': {'width': 3, 'text_channels': 2, 'narrowing': (4, 3), 'blocks': 2, 'hidden': (4,)},
    'mser3m': {'width': 4, 'heads': 1, 'hidden': 3},
    'mult': {'streams': ('text', 'audio'), 'width': 8, 'heads': 2, 'layers': 1},
    'multiemo': {'recurrent': ('text',), 'width': 4, 'heads': 2, 'layers': 1, 'hidden': 6, 'hidden_out': 5},
    'rba_gcn': {'width': 4, 'base_width': 3, 'layers': 1},
    'rja': {'streams': ('text', 'vision'), 'steps': 12, 'regions': 2, 'width': 4, 'hidden': 3},
    'sacl_lstm': {'streams': STREAMS, 'width': 3, 'layers': 1, 'dropout': 0.0},
    'sdt': {'width': 4, 'heads': 2},
    'sdtn': {'streams': STREAMS, 'width': 4, 'state_width': 3, 'hidden': 5},
    'sdumc': {'width': 4, 'hidden': (5, 3), 'contrast': 4},
    'se_attention': {'streams': ('text', 'vision'), 'width': 4, 'heads': 2, 'reduction': 2, 'hidden': 3},
    'self_mm': {'states': (3, 2), 'widths': (3, 4), 'hidden': (4, 3, 3, 2)},
    'shiftser': {'shift': False, 'heads': 2, 'length': 15},
    'tacfn': {'streams': ('text', 'vision'), 'width': 4, 'heads': 2, 'layers': 1},
    'tailor': {'steps': 12, 'width': 4, 'heads': 2, 'hidden': 3, 'layers': (1, 1, 2), 'join_layers': 1},
    'tetfn': {'states': (3, 2), 'width': 4, 'heads': 2, 'kernels': (1, 3), 'hidden': (4, 3, 3, 3)},
    'tfn': {'hidden': (3, 4, 5), 'text_width': 3, 'fusion_width': 6},
    'timnet': {'width': 6, 'blocks': 3},
}
"""Fields that make each model small."""

PINS = {
    'arcface_interaction': 521, 'attcorr': 172, 'bclstm': 1235, 'camser': 1924, 'cauain': 735, 'cfn_esa': 2322,
    'cfn_sr': 567, 'cfnet_gfl': 803, 'cmcf_srnet': 1363, 'cmt_gru': 899, 'cmt_mser': 6174, 'cogmen': 1809,
    'cold_fusion': 526, 'cross_attention_cnn': 674, 'ctnet': 1275, 'dagerc': 1551, 'deer': 403, 'df_erc': 783,
    'dialoguegat': 720, 'dialoguegcn': 1053, 'dialoguernn': 1823, 'dst': 1653, 'dualgats': 919, 'dwformer': 4381,
    'early': 291, 'gcnet': 2844, 'gmu': 677, 'graphcfc': 1287, 'graphmft': 735, 'haucl': 1390, 'headfusion': 539,
    'ifmmin': 854, 'imder': 24213, 'jca': 377, 'late': 364, 'lfmim': 21534, 'lmf': 522, 'lmr_cbt': 3371, 'm3er': 557,
    'm3net': 362, 'mag': 1125, 'magnet': 130, 'mcfn': 1265, 'misa': 4863, 'mmdfn': 1199, 'mmer': 2416, 'mmfa_rnn': 867,
    'mmgcn': 841, 'mmim': 891, 'mmin': 1242, 'mser3m': 327, 'mult': 7731, 'multiemo': 1805, 'rba_gcn': 509, 'rja': 1543,
    'sacl_lstm': 999, 'sdt': 1600, 'sdtn': 652, 'sdumc': 944, 'se_attention': 327, 'self_mm': 402, 'shiftser': 6531,
    'tacfn': 719, 'tailor': 1999, 'tetfn': 9280, 'tfn': 917, 'timnet': 1236,
}
"""Parameters of each case, on the widths of `batches`."""

STEPS = {'mcfn': {'steps': {'text': 6, 'audio': 14, 'vision': 4}}}
"""Other sequences, for models that have but one step of the usual ones."""

MODELS = zoo.list_models()


def test_every_model_has_a_case_and_a_pin():
    assert set(CASES) == set(MODELS) == set(PINS)


@cache
def model_of(name):
    return zoo.create(name, classes=batches.CLASSES, **CASES[name])


@cache
def batch_of(name):
    return batches.of(zoo.family(name), **STEPS.get(name, {}))


@cache
def shapes_of(model, name):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), batch_of(name), train=False))


def filled(shapes):
    """Random values everywhere, so that no zero bias and no unit scale hides a fault.

    They are drawn here: to compile a model's own initialisation takes longer than all that is asked of it.
    """
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            values = noise / np.sqrt(leaf.size / leaf.shape[-1]) + 0.1 * np.abs(noise)
        else:
            values = 0.1 * np.abs(noise) + (path[-1].key in ('scale', 'var'))
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@cache
def variables_of(name):
    return filled(shapes_of(model_of(name), name))


@cache
def compiled(name):
    return jax.jit(lambda variables, batch: model_of(name).apply(variables, batch, train=False))


def logits(name, batch: Batch):
    return np.asarray(compiled(name)(variables_of(name), batch).logits)


@pytest.mark.parametrize('name', MODELS)
def test_shapes_and_size(name):
    """Of a batch of one item too, which a dropped axis would show in."""
    shapes = shapes_of(model_of(name), name)
    for batch in (batch_of(name), batches.rows(batch_of(name), [1])):
        out = jax.eval_shape(compiled(name), shapes, batch)
        assert out.logits.shape == (*batch.present.shape, batches.CLASSES)
    assert sum(x.size for x in jax.tree.leaves(shapes['params'])) == PINS[name]


@pytest.mark.parametrize('name', MODELS)
def test_description_survives_json(name):
    model = model_of(name)
    assert zoo.build(json.loads(json.dumps(zoo.describe(model)))) == model
    assert hash(model) == hash(zoo.build(zoo.describe(model)))


@pytest.mark.parametrize('name', MODELS)
def test_padding_is_invisible(name):
    batch = batch_of(name)
    inside = tuple(slice(n) for n in batch.present.shape)
    np.testing.assert_allclose(logits(name, batches.pad(batch))[inside], logits(name, batch), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('name', MODELS)
def test_one_step_is_enough(name):
    """Of an utterance its first step, of a dialogue its first turn; whatever stands behind them."""
    batch = batch_of(name)
    first = [batches.first(batch, garbage) for garbage in (1e3, -7.0)]
    found, other = (logits(name, only)[..., :1, :] if only.present.ndim == 2 else logits(name, only) for only in first)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, other)


@pytest.mark.parametrize('name', MODELS)
def test_the_rest_of_the_batch_is_invisible(name):
    batch = batch_of(name)
    whole = logits(name, batch)
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(logits(name, batches.rows(batch, order)), whole[order], atol=2e-5, rtol=1e-5)
    for garbage in (1e3, -7.0):
        alone = logits(name, batches.alone(batch, 1, garbage))
        np.testing.assert_allclose(alone[1], whole[1], atol=2e-5, rtol=1e-5)


SPEECH = zoo.list_models('speech')
GONE = [(name, gone) for name in MODELS
        for gone in ([('audio',)] if name in SPEECH else [('text',), ('audio', 'vision'), STREAMS])]
"""Every model with each set of streams that it may have to do without."""


@pytest.mark.parametrize(('name', 'gone'), GONE)
def test_missing_modalities_leave_no_trace(name, gone):
    batch = batch_of(name)
    absent = batches.without(batch, *gone)
    out = logits(name, absent)
    assert np.isfinite(out).all()
    streams = {n: s._replace(x=-s.x) if n in gone else s for n, s in absent.streams.items()}
    np.testing.assert_array_equal(logits(name, absent._replace(streams=streams)), out)
    assert np.abs(out - logits(name, batch)).max() > 1e-4, 'the missing streams were not used at all'


@cache
def training(name):
    """The compiled step of a model without dropout, what it gives of a loss alone, and the state it begins with."""
    import optax

    from jmer import losses, metrics
    from jmer.train.step import TrainState

    model, variables = model_of(name).clone(**dropouts(name, 0.0)), dict(variables_of(name))
    metric = metrics.for_target('class', batches.CLASSES)
    loss = getattr(zoo.module(name), 'loss', None) or (
        lambda model, out, batch: {'label': losses.cross_entropy(out.logits, batch.labels['emotion'])})
    optimizer = optax.sgd(0.1)
    step = make_step(model, objective(loss), optimizer,
                     lambda out, batch: metric.sums(out.logits, batch.labels['emotion']))
    params = variables.pop('params')
    state = TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))
    # Where nobody asks for gradients, they are not compiled.
    return jax.jit(step), jax.jit(lambda *given: step(*given)[1]['loss']), state


@pytest.mark.parametrize('name', MODELS)
def test_training_step(name):
    """Every parameter is moved, padding changes no loss, and the state stays finite."""
    step, loss, state = training(name)
    after, sums = step(state, batches.pad(batch_of(name)), jax.random.key(0))
    assert bool(sums['finite'])
    still = [jax.tree_util.keystr(path) for path, moved in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool((a != b).any()), state.params, after.params)) if not moved]
    # Not the same: of what only rounding moves, some moves.
    assert set(still) <= set(UNMOVED.get(name, []))
    unpadded = loss(state, batch_of(name), jax.random.key(0))
    assert set(unpadded) == set(sums['loss'])
    for term, found in unpadded.items():
        np.testing.assert_allclose(sums['loss'][term], found, atol=2e-5, rtol=1e-4, err_msg=term)


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_padding_moves_nothing(name):
    """Neither a parameter nor the model's state."""
    step, _, state = training(name)
    after, padded = (step(state, batch, jax.random.key(0))[0]
                     for batch in (batch_of(name), batches.pad(batch_of(name))))
    for a, b in zip(jax.tree.leaves((after.params, after.model_state)),
                    jax.tree.leaves((padded.params, padded.model_state)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


UNMOVED: dict[str, list[str]] = {
    # Without dropout nothing is hidden that could be reconstructed.
    'gcnet': ["['reconstruct']['bias']", "['reconstruct']['kernel']"],
    # What is the same for all turns is taken away by a softmax over keys, or by the norm behind the graph.
    'cogmen': [f"['{name}']['bias']" for name in ('key', 'skip', 'value')],
    # Only the teacher of the second stage looks at what the last autoencoder imagines.
    'ifmmin': [f"['cascade']{layer}['{part}']" for layer in ("['block_1']['decode_0']", "['block_1']['decode_1']",
               "['transition_0']", "['transition_1']") for part in ('bias', 'kernel')],
    # Drawn once and never learnt.
    'imder': ["['score_audio']['frequencies']", "['score_text']['frequencies']"],
    # A turn of one vector is a sequence of one step: there is nothing to choose from.
    'ctnet': [f"['{m}_from_{n}_0']['query']['{part}']" for m in ('audio', 'text') for n in ('audio', 'text')
              for part in ('bias', 'kernel')],
    # The batch does not tell which pictures are memes.
    'magnet': [f"['meme']['dense_{k}']['{part}']" for k in (0, 1) for part in ('bias', 'kernel')],
    # Only the entropies, which want a memory of earlier batches, look at what is projected.
    'mmim': [f"['estimate_{pair}']['project']['{part}']" for pair in ('audio_from_text', 'audio_from_vision',
             'vision_from_text') for part in ('bias', 'kernel')],
    # All labels share it, and a softmax over them does not see what they share.
    'tailor': ["['scores']['bias']"],
}
"""Parameters that one step cannot move, with the reason beside them."""


def dropouts(name, rate):
    """All dropout rates of a model: numbers whose field has dropout in its name."""
    fields = zoo.describe(model_of(name))['fields']
    return {field: rate for field, value in fields.items() if 'dropout' in field and isinstance(value, float)}


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_eager_equals_compiled(name):
    with jax.disable_jit():
        eager = model_of(name).apply(variables_of(name), batch_of(name), train=False).logits
    np.testing.assert_allclose(eager, logits(name, batch_of(name)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('name', MODELS)
def test_dropout_draws_by_key(name):
    rates = dropouts(name, 0.5)
    if not rates:
        return
    model, variables = model_of(name).clone(**rates), variables_of(name)

    @jax.jit
    def run(seed):
        return model.apply(variables, batch_of(name), train=True, rngs={'dropout': jax.random.key(seed)},
                           mutable=['batch_stats'])[0].logits

    np.testing.assert_array_equal(run(0), run(0))
    # Of a small case one draw may leave nothing alive.
    assert max(np.abs(np.asarray(run(0) - run(seed))).max() for seed in (1, 2, 3)) > 1e-4


CAUSAL = [name for name in zoo.list_models('dialogue') if hasattr(zoo.module(name).Model, 'causal')]


@pytest.mark.parametrize('name', CAUSAL)
def test_a_causal_model_ignores_the_future(name):
    """Later turns are changed, speakers and masks included: what was said of the earlier ones stays."""
    model, batch = model_of(name).clone(causal=True), batch_of(name)
    variables = filled(shapes_of(model, name))
    run = jax.jit(lambda batch: model.apply(variables, batch, train=False).logits)
    before, now = run(batch), 3
    streams = {name: s._replace(x=np.where(np.arange(s.x.shape[1])[:, None] < now, s.x, s.x[::-1] + 1))
               for name, s in batch.streams.items()}
    speakers = np.where(np.arange(batch.speakers.shape[1]) < now, batch.speakers, 1 - batch.speakers)
    after = run(batch._replace(streams=streams, speakers=speakers))
    np.testing.assert_allclose(after[:, :now], before[:, :now], atol=1e-6)
    assert np.abs(after[:, now:] - before[:, now:]).max() > 1e-4

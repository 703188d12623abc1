"""One contract over the whole zoo. A new model adds its small case and its pin here, nothing else."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import zoo
from jmer.train.step import make_step
from jmer.types import Batch
from tests import batches

STREAMS = ('text', 'audio', 'vision')

CASES = {
    'bclstm': {'streams': STREAMS, 'width': 4, 'hidden': 6, 'attention': True},
    'early': {'hidden': (8,)},
    'gmu': {'streams': STREAMS, 'hidden': 6},
    'late': {'hidden': (8,), 'rule': 'weighted'},
    'mult': {'streams': ('text', 'audio'), 'width': 8, 'heads': 2, 'layers': 2},
}
"""Fields that make each model small."""

PINS = {'bclstm': 1235, 'early': 291, 'gmu': 677, 'late': 364, 'mult': 9475}
"""Parameters of each case, on the widths of `batches`."""

MODELS = zoo.list_models()


def test_every_model_has_a_case_and_a_pin():
    assert set(CASES) == set(MODELS) == set(PINS)


@cache
def model_of(name):
    return zoo.create(name, classes=batches.CLASSES, **CASES[name])


@cache
def batch_of(name):
    return batches.of(zoo.family(name))


@cache
def variables_of(name):
    """Random values everywhere, so that no zero bias and no unit scale hides a fault."""
    variables = jax.jit(lambda key: model_of(name).init(key, batch_of(name), train=False))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jnp.abs(jax.random.normal(k, x.shape)) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


@cache
def compiled(name):
    return jax.jit(lambda variables, batch: model_of(name).apply(variables, batch, train=False))


def logits(name, batch: Batch):
    return np.asarray(compiled(name)(variables_of(name), batch).logits)


@pytest.mark.parametrize('name', MODELS)
def test_shapes_and_size(name):
    batch = batch_of(name)
    shapes = jax.eval_shape(lambda: model_of(name).init(jax.random.key(0), batch, train=False))
    out = jax.eval_shape(lambda v: model_of(name).apply(v, batch, train=False), shapes)
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
def test_the_rest_of_the_batch_is_invisible(name):
    batch = batch_of(name)
    whole = logits(name, batch)
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(logits(name, batches.rows(batch, order)), whole[order], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(logits(name, batches.rows(batch, [1])), whole[[1]], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('gone', [('text',), ('audio', 'vision'), STREAMS])
def test_missing_modalities_leave_no_trace(name, gone):
    batch = batch_of(name)
    absent = batches.without(batch, *gone)
    out = logits(name, absent)
    assert np.isfinite(out).all()
    streams = {n: s._replace(x=-s.x) if n in gone else s for n, s in absent.streams.items()}
    np.testing.assert_array_equal(logits(name, absent._replace(streams=streams)), out)
    assert np.abs(out - logits(name, batch)).max() > 1e-4, 'the missing streams were not used at all'


@pytest.mark.parametrize('name', MODELS)
def test_training_step(name):
    """Every parameter is moved, padding moves none, and the state stays finite."""
    import optax

    from jmer import losses, metrics
    from jmer.train.step import TrainState

    model, variables = model_of(name).clone(**dropouts(name, 0.0)), dict(variables_of(name))
    metric = metrics.for_target('class', batches.CLASSES)
    loss = getattr(zoo.module(name), 'loss', None) or (
        lambda model, out, batch: {'label': losses.cross_entropy(out.logits, batch.labels['emotion'])})
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_step(model, loss, optimizer,
                             lambda out, batch: metric.sums(out.logits, batch.labels['emotion'])))
    params = variables.pop('params')
    state = TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))
    after, sums = step(state, batch_of(name), jax.random.key(0))
    padded, _ = step(state, batches.pad(batch_of(name)), jax.random.key(0))

    assert bool(sums['finite'])
    still = [jax.tree_util.keystr(path) for path, moved in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool((a != b).any()), params, after.params)) if not moved]
    assert still == UNMOVED.get(name, [])
    for a, b in zip(jax.tree.leaves((after.params, after.model_state)),
                    jax.tree.leaves((padded.params, padded.model_state)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


UNMOVED: dict[str, list[str]] = {}
"""Parameters that one step cannot move, with the reason beside them."""


def dropouts(name, rate):
    """All dropout rates of a model: numbers whose field has dropout in its name."""
    fields = zoo.describe(model_of(name))['fields']
    return {field: rate for field, value in fields.items() if 'dropout' in field and isinstance(value, float)}


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
    assert np.abs(np.asarray(run(0) - run(1))).max() > 1e-4

"""The training step: one loss, however the batch is padded, split or spread over devices."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmer import losses, metrics, parallel, zoo
from jmer.stages import objective
from jmer.train import optimizers
from jmer.train.experiment import Optimizer
from jmer.train.step import Perturbation, init_state, make_step
from jmer.types import Label
from tests import batches

FIELDS = {
    'gmu': {'streams': ('text', 'audio', 'vision'), 'hidden': 6},
    'bclstm': {'streams': ('text', 'audio'), 'width': 4, 'hidden': 5, 'layers': 1, 'attention': True},
    'early': {'hidden': (4,)},
}
"""gmu has batch statistics, bclstm speaks of turns, early compiles fast."""
RATE = 0.1
SGD = optax.sgd(RATE)
CLASS_WEIGHTS = (1.0, 4.0, 0.25)
METRIC = metrics.for_target('class', batches.CLASSES)


@cache
def model(name, dropout=0.0):
    return zoo.create(name, classes=batches.CLASSES, dropout=dropout, **FIELDS[name])


def weighted(model, out, batch):
    return {'label': losses.cross_entropy(out.logits, batch.labels['emotion'], class_weights=CLASS_WEIGHTS)}


def measured(out, batch):
    return METRIC.sums(out.logits, batch.labels['emotion'])


@cache
def batch(name, seed=0):
    """16 rows: 11 items, then padding; so of 8 devices some see two items, one sees one, two see none.

    Streams go missing and labels lack, unevenly.
    """
    made = batches.pad(batches.of(zoo.family(name), size=11, seed=seed), steps=2, rows=5)
    rng = np.random.default_rng(seed + 100)
    gone = rng.random(len(made.present)) < 0.3
    audio = made.streams['audio']
    labels = made.labels['emotion']
    labels = Label(labels.value, labels.mask & (rng.random(labels.mask.shape) < 0.7))
    streams = made.streams | {'audio': audio._replace(mask=audio.mask & ~gone[:, None])}
    return made._replace(streams=streams, labels={'emotion': labels})


@cache
def step(name, via='jit', devices=1, optimizer=SGD, **options):
    mesh = parallel.mesh(jax.devices()[:devices])
    rates = {'dropout': options.pop('dropout')} if 'dropout' in options else {}
    made = make_step(model(name, **rates), objective(weighted), optimizer, measured, **options)
    return parallel.compile_step(made, mesh, via), mesh


def start(name, mesh, optimizer=SGD, seed=0):
    example = batches.rows(batch(name), slice(0, 1))
    return parallel.replicate(init_state(model(name), optimizer, example, seed), mesh)


def run(name, steps=1, first=0, state=None, key=0, **options):
    """State and sums after some steps from the start (or `state`), on batches of their own."""
    optimizer = options.get('optimizer', SGD)
    compiled, mesh = step(name, **options)
    state = start(name, mesh, optimizer) if state is None else parallel.replicate(state, mesh)
    for k in range(first, first + steps):
        state, sums = compiled(state, parallel.shard(batch(name, k), mesh), jax.random.key(key))
    return parallel.fetch(state), parallel.fetch(sums)


@cache
def initial(name):
    return parallel.fetch(start(name, parallel.mesh(jax.devices()[:1])))


@cache
def one_device(name, steps):
    return run(name, steps)


def moved(name, after):
    """How far the parameters went, over the whole vector."""
    flat = [
        np.asarray(a - b).ravel()
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(initial(name).params), strict=True)
    ]
    return np.concatenate(flat)


def assert_same_way(name, found, expected, tolerance=1e-6):
    """Parameters agree to `tolerance` of the largest, and so does the way they went, tenfold."""
    for a, b in zip(
        jax.tree.leaves((found.params, found.model_state)),
        jax.tree.leaves((expected.params, expected.model_state)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1))
    way = moved(name, expected)
    assert np.abs(moved(name, found) - way).max() < 10 * tolerance * np.abs(way).max()


@pytest.mark.parametrize('name', ['gmu', 'bclstm'])
@pytest.mark.parametrize(('via', 'devices'), [('jit', 8), ('pmap', 8)])
def test_one_trajectory_on_one_device_and_on_eight(name, via, devices):
    """The real step, batch normalisation and class weights included, padding spread unevenly."""
    found, sums = run(name, 3, via=via, devices=devices)
    expected, expected_sums = one_device(name, 3)
    assert_same_way(name, found, expected)
    for a, b in zip(jax.tree.leaves(sums), jax.tree.leaves(expected_sums), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('via', 'devices'), [('jit', 1), ('jit', 4), ('pmap', 4)])
def test_accumulation_changes_nothing(via, devices):
    """Without batch statistics four parts give the gradient of the whole."""
    found, sums = run('early', via=via, devices=devices, accumulate=4)
    expected, expected_sums = one_device('early', 1)
    assert_same_way('early', found, expected)
    np.testing.assert_allclose(sums['loss']['label'], expected_sums['loss']['label'], rtol=1e-6)
    np.testing.assert_array_equal(sums['metrics'].confusion, expected_sums['metrics'].confusion)


def test_the_loss_is_divided_by_the_global_weight():
    """Gradient by hand: of the weighted mean over all labelled items, written without the step."""
    label = batch('early').labels['emotion']
    weights = np.where(label.mask, np.array(CLASS_WEIGHTS, np.float32)[label.value], 0)

    @jax.jit
    def loss(params):
        logits = model('early').apply({'params': params}, batch('early'), train=False).logits
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), label.value[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(label.mask, picked, 0) * weights) / weights.sum()

    value, gradient = jax.value_and_grad(loss)(initial('early').params)
    found, sums = one_device('early', 1)
    np.testing.assert_allclose(sums['loss']['label'], (value * weights.sum(), weights.sum()), rtol=1e-5)
    np.testing.assert_allclose(sums['gradient_norm'], optax.tree.norm(gradient), rtol=1e-5)
    expected = np.concatenate([-RATE * np.ravel(g) for g in jax.tree.leaves(gradient)])
    np.testing.assert_allclose(moved('early', found), expected, atol=2e-6 * np.abs(expected).max() + 1e-8)
    assert sums['metrics'].confusion.sum() == label.mask.sum()


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match='a batch of 16 cannot be accumulated in 3 parts'):
        run('early', accumulate=3)


def test_a_batch_without_labels_moves_nothing():
    made = batch('early')
    label = made.labels['emotion']
    none = made._replace(labels={'emotion': label._replace(mask=np.zeros_like(label.mask))})
    compiled, mesh = step('early')
    after, sums = compiled(start('early', mesh), parallel.shard(none, mesh), jax.random.key(0))
    assert bool(sums['finite']) and int(after.step) == 1
    assert not moved('early', parallel.fetch(after)).any()


def test_half_precision_is_close_and_keeps_the_state_in_float32():
    found, sums = run('gmu', compute_dtype='bfloat16')
    expected, expected_sums = one_device('gmu', 1)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, expected)
    np.testing.assert_allclose(sums['loss']['label'], expected_sums['loss']['label'], rtol=0.03)
    way, expected_way = moved('gmu', found), moved('gmu', expected)
    assert np.dot(way, expected_way) > 0.97 * np.linalg.norm(way) * np.linalg.norm(expected_way)
    assert (way != expected_way).any(), 'it was computed in float32'


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('bclstm', {'compute_dtype': 'bfloat16'}),
        ('gmu', {'accumulate': 4}),
        ('gmu', {'accumulate': 4, 'compute_dtype': 'bfloat16'}),
    ],
)
def test_shapes_and_types_stay(name, options):
    """Traced only: recurrence in half precision, and batch statistics that differ from part to part."""

    def types(**options):
        made = make_step(model(name), objective(weighted), optax.sgd(RATE), measured, **options)
        return jax.eval_shape(made, initial(name), batch(name), jax.random.key(0))

    assert types(**options) == types()


def spoilt(name, value):
    """The batch with one bad value in a step that is there."""
    made = batch(name)
    x = made.streams['text'].x.copy()
    x[(0,) * x.ndim] = value
    return made._replace(streams=made.streams | {'text': made.streams['text']._replace(x=x)})


@pytest.mark.parametrize(('name', 'value'), [('early', np.nan), ('gmu', np.nan), ('gmu', 1e30)])
def test_a_step_that_is_not_finite_leaves_the_state_alone(name, value):
    """1e30 overflows the variance only: all gradients are finite, the running statistics are not."""
    compiled, mesh = step(name)
    before = parallel.fetch(one_device(name, 1)[0])
    after, sums = compiled(
        parallel.replicate(before, mesh), parallel.shard(spoilt(name, value), mesh), jax.random.key(0)
    )
    assert not bool(sums['finite'])
    for a, b in zip(jax.tree.leaves(parallel.fetch(after)), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_hangs_on_key_and_step():
    def way(key, first):
        state = initial('early')._replace(step=np.int32(first))
        return moved('early', run('early', state=state, key=key, dropout=0.5)[0])

    np.testing.assert_array_equal(way(0, 0), way(0, 0))
    assert (way(0, 0) != way(1, 0)).any() and (way(0, 0) != way(0, 1)).any()


def test_augmentation_changes_what_is_learnt_and_measured():
    def silence(batch, key):
        return batch._replace(
            labels={
                'emotion': batch.labels['emotion']._replace(mask=jnp.zeros_like(batch.labels['emotion'].mask))
            }
        )

    _, sums = run('early', augment=silence)
    assert sums['loss']['label'][1] == sums['metrics'].confusion.sum() == 0


PARAMS = {
    'dense': {'kernel': np.full((2, 2), 2.0, np.float32), 'bias': np.full(2, 2.0, np.float32)},
    'norm': {'scale': np.full(2, 2.0, np.float32)},
    'lstm': {'input_kernel': np.full(2, 2.0, np.float32), 'hidden_bias': np.full(2, 2.0, np.float32)},
}


def update(settings, gradient=0.0, steps=100, count=1):
    """How far PARAMS go in `count` steps along a constant gradient."""
    optimizer = optimizers.make(settings, steps)
    state, params = optimizer.init(PARAMS), PARAMS
    for _ in range(count):
        updates, state = optimizer.update(
            jax.tree.map(lambda x: np.full_like(x, gradient), PARAMS), state, params
        )
        params = optax.apply_updates(params, updates)
    return jax.tree.map(lambda a, b: float(np.max(np.abs(np.asarray(a) - b))), params, PARAMS)


def test_weight_decay_spares_biases_and_scales():
    gone = update(Optimizer('adamw', rate=0.1, weight_decay=0.5))
    assert gone['dense']['bias'] == gone['norm']['scale'] == gone['lstm']['hidden_bias'] == 0
    for decayed in (gone['dense']['kernel'], gone['lstm']['input_kernel']):
        np.testing.assert_allclose(decayed, 0.1 * 0.5 * 2, rtol=1e-5)
    assert not any(jax.tree.leaves(update(Optimizer('adam', rate=0.1, weight_decay=0.5))))


def test_frozen_parameters_do_not_move():
    gone = update(Optimizer('adamw', rate=0.1, weight_decay=0.5, freeze=('dense/*', '*/scale')), gradient=1.0)
    assert gone['dense'] == {'kernel': 0, 'bias': 0} and gone['norm'] == {'scale': 0}
    assert min(gone['lstm'].values()) > 0.05


def test_a_pattern_that_freezes_nothing_is_refused():
    with pytest.raises(ValueError, match=r"freeze: no parameter matches 'encoder/\*'.*dense/bias"):
        optimizers.make(Optimizer(freeze=('dense/*', 'encoder/*')), 10).init(PARAMS)


def test_clip_bounds_the_global_norm():
    """12 numbers of gradient 3 have norm 3 sqrt(12)."""
    gone = update(Optimizer('sgd', rate=1.0, clip=0.5), gradient=3.0)
    np.testing.assert_allclose(jax.tree.leaves(gone), 0.5 / np.sqrt(12), rtol=1e-5)
    np.testing.assert_allclose(
        jax.tree.leaves(update(Optimizer('sgd', rate=1.0), gradient=3.0)), 3.0, rtol=1e-5
    )


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (Optimizer(rate=2.0), {0: 2, 50: 2, 99: 2}),
        (Optimizer(rate=2.0, schedule='linear'), {0: 2, 50: 1, 100: 0, 120: 0}),
        (Optimizer(rate=2.0, schedule='cosine'), {0: 2, 25: 1 + 2**-0.5, 50: 1, 100: 0}),
        (Optimizer(rate=2.0, warmup=0.2), {0: 0, 10: 1, 20: 2, 99: 2}),
        (Optimizer(rate=2.0, schedule='linear', warmup=0.2), {0: 0, 10: 1, 20: 2, 60: 1, 100: 0}),
        (Optimizer(rate=2.0, schedule='cosine', warmup=0.2), {5: 0.5, 20: 2, 60: 1, 100: 0}),
    ],
)
def test_schedules(settings, expected):
    rate = optimizers.schedule(settings, 100)
    for at, value in expected.items():
        np.testing.assert_allclose(rate(at), value, atol=1e-6)


def test_the_rate_falls_as_steps_are_taken():
    """SGD under a linear schedule of 4 steps goes 1 + 3/4 + 1/2 + 1/4, and no further."""
    for count, way in ((4, 2.5), (6, 2.5)):
        gone = update(Optimizer('sgd', rate=1.0, schedule='linear'), gradient=1.0, steps=4, count=count)
        np.testing.assert_allclose(jax.tree.leaves(gone), way, rtol=1e-5)


def test_a_perturbed_step_adds_the_gradient_at_moved_weights():
    """By hand: the kernel that is named moves along its own gradient, and is itself updated without the addition."""
    names, by = ('head/dense_1/kernel',), 0.5
    label = batch('early').labels['emotion']
    params = initial('early').params
    chosen = jax.tree_util.tree_map_with_path(lambda path, _: optimizers.matches(path, names), params)
    assert 0 < sum(jax.tree.leaves(chosen)) < len(jax.tree.leaves(chosen))

    @jax.jit
    @jax.grad
    def gradient(params):
        out = model('early').apply({'params': params}, batch('early'), train=False)
        term = losses.cross_entropy(out.logits, label, class_weights=CLASS_WEIGHTS)
        return jnp.sum(term.value * term.weight) / jnp.sum(term.weight)

    own = gradient(params)
    away = jax.tree.map(lambda p, g, it: p + it * by * g / np.linalg.norm(g), params, own, chosen)
    expected = jax.tree.map(lambda g, m, it: -RATE * (g if it else g + m), own, gradient(away), chosen)
    found, sums = run('early', perturbation=Perturbation(names, by))
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(expected)])
    np.testing.assert_allclose(moved('early', found), flat, atol=2e-6 * np.abs(flat).max() + 1e-8)
    assert (moved('early', found) != moved('early', one_device('early', 1)[0])).any()
    assert bool(sums['finite'])

"""Losses against formulas written out in NumPy float64, and the promises their terms make."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr
from sklearn.utils.class_weight import compute_class_weight

from jmer import losses
from jmer.losses import Term
from jmer.types import Label

WEIGHTS = (0.5, 2.0, 1.0, 3.0)
EACH = {
    'cross_entropy': ('class', losses.cross_entropy),
    'cross_entropy weighted, smoothed': (
        'class',
        functools.partial(losses.cross_entropy, class_weights=WEIGHTS, label_smoothing=0.1),
    ),
    'focal': ('class', functools.partial(losses.focal, gamma=0.5, class_weights=WEIGHTS)),
    'focal detached': ('class', functools.partial(losses.focal, gamma=2.0, detach=True)),
    'arcface': ('class', functools.partial(losses.arcface, scale=2.0)),
    'binary_cross_entropy': ('multilabel', losses.binary_cross_entropy),
    'nt_xent': ('class', losses.nt_xent),
    'swfc': ('class', functools.partial(losses.swfc, class_weights=WEIGHTS)),
    'mae': ('regression', losses.mae),
    'mse': ('regression', losses.mse),
    'ccc': ('regression', losses.ccc),
    'kl': ('distribution', losses.kl),
}
every_loss = pytest.mark.parametrize('name', EACH)


def draw(kind, shape=(5, 3), classes=4, seed=0):
    rng = np.random.default_rng(seed)
    scores = (2 * rng.normal(size=(*shape, classes))).astype(np.float32)
    value = {
        'class': rng.integers(0, classes, shape),
        'multilabel': rng.integers(0, 2, (*shape, classes)).astype(np.float32),
        'regression': rng.normal(size=(*shape, classes)).astype(np.float32),
        'distribution': rng.dirichlet(np.ones(classes), shape).astype(np.float32),
    }[kind]
    mask = rng.random(shape) < 0.7
    mask.flat[0] = True
    return scores, Label(value, mask)


def worth(term: Term) -> float:
    """What the trainer makes of a term."""
    return (term.value * term.weight).sum() / term.weight.sum()


def present(scores, label):
    return scores[label.mask].astype(np.float64), label.value[label.mask]


@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('epsilon', [0.0, 0.1])
def test_cross_entropy_is_torchs(weights, epsilon):
    scores, label = draw('class')
    term = losses.cross_entropy(scores, label, class_weights=weights, label_smoothing=epsilon)
    x, y = present(scores, label)
    w = np.ones(4) if weights is None else np.array(weights)
    nll = -log_softmax(x, -1)
    # torch.nn.CrossEntropyLoss(weight, label_smoothing) with reduction 'mean'
    true = (w[y] * nll[np.arange(len(y)), y]).sum()
    spread = (w * nll).sum() / 4
    expected = ((1 - epsilon) * true + epsilon * spread) / w[y].sum()
    np.testing.assert_allclose(worth(term), expected, rtol=1e-6)


def test_cross_entropy_takes_log_probabilities():
    scores, label = draw('class')
    np.testing.assert_allclose(
        losses.cross_entropy(jax.nn.log_softmax(scores), label).value,
        losses.cross_entropy(scores, label).value,
        rtol=1e-5,
    )


def test_a_class_of_weight_zero_does_not_count():
    scores, label = draw('class')
    zeroed = losses.cross_entropy(
        scores, label, class_weights=(0.0, 1.0, 1.0, 1.0), label_smoothing=0.0
    )
    kept = Label(label.value, label.mask & (label.value != 0))
    assert (label.mask & (label.value == 0)).any()
    np.testing.assert_allclose(worth(zeroed), worth(losses.cross_entropy(scores, kept)), rtol=1e-6)


def test_class_balance_is_the_effective_number():
    counts = np.array([90, 10, 0, 1])
    assert losses.class_balance(counts, 0.0) == (1.0, 1.0, 0.0, 1.0)
    inverse = losses.class_balance(counts, 1.0)
    y = np.repeat([0, 1, 3], [90, 10, 1])
    np.testing.assert_allclose(np.array(inverse)[[0, 1, 3]],
                               compute_class_weight('balanced', classes=np.array([0, 1, 3]), y=y))
    assert inverse[2] == 0
    beta = 0.9
    found = np.array(losses.class_balance(counts, beta))
    np.testing.assert_allclose(found[[0, 1]] / found[3], [(1 - beta) / (1 - beta**n) for n in (90, 10)])
    np.testing.assert_allclose((found * counts).sum(), counts.sum())
    np.testing.assert_allclose(losses.class_balance(counts, 1 - 1e-9), inverse, rtol=1e-5)
    assert losses.class_balance(np.zeros(3, int), 0.5) == (0.0, 0.0, 0.0)
    for beta in (-0.1, 1.1, float('nan')):
        with pytest.raises(ValueError, match='balance: found'):
            losses.class_balance(counts, beta)


def test_reweighted_terms_are_those_of_class_weights():
    """In terms of one value an item; what couples items, or has other shapes, stays."""
    scores, label = draw('class')
    terms = {'label': losses.cross_entropy(scores, label), 'contrast': losses.nt_xent(scores, label),
             'other': Term(jnp.ones((5, 2, 3)), jnp.ones((5, 2, 3))),
             'rebuilt': Term(jnp.ones(label.mask.shape), jnp.ones(label.mask.shape))}
    found = losses.reweighted(terms, label, WEIGHTS)
    expected = losses.cross_entropy(scores, label, class_weights=WEIGHTS)
    for a, b in zip(found['label'], expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert found['contrast'] is terms['contrast'] and found['other'] is terms['other']
    np.testing.assert_allclose(found['rebuilt'].weight, np.where(label.mask, np.array(WEIGHTS)[label.value], 1))
    with pytest.raises(ValueError, match='class_weights'):
        losses.reweighted(terms, label, (1.0, -1.0, 1.0, 1.0))


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_focal(gamma):
    scores, label = draw('class')
    x, y = present(scores, label)
    log_p = log_softmax(x, -1)[np.arange(len(y)), y]
    expected = -((1 - np.exp(log_p)) ** gamma) * log_p
    for detach in (False, True):
        term = losses.focal(scores, label, gamma=gamma, detach=detach)
        np.testing.assert_allclose(term.value[label.mask], expected, rtol=1e-5)


def test_focal_detached_scales_the_gradient_of_cross_entropy():
    scores, label = draw('class')
    slope = jax.grad(lambda x: losses.focal(x, label, gamma=2.0, detach=True).value.sum())(scores)
    plain = jax.grad(lambda x: losses.cross_entropy(x, label).value.sum())(scores)
    factor = (1 - np.exp(-losses.cross_entropy(scores, label).value)) ** 2
    np.testing.assert_allclose(slope, factor[..., None] * plain, rtol=1e-4, atol=1e-7)
    full = jax.grad(lambda x: losses.focal(x, label, gamma=2.0).value.sum())(scores)
    assert np.abs(full - slope).max() > 0.1


def test_arcface_turns_the_true_class_away():
    """By hand: the angle of the true class and no other is larger by the margin."""
    scores, label = draw('class')
    cosines = np.tanh(scores)
    x, y = present(cosines, label)
    rows, turned = np.arange(len(y)), x.copy()
    angle = np.arccos(x[rows, y]) + 0.3
    turned[rows, y] = np.where(angle < np.pi, np.cos(angle), x[rows, y] - 0.3 * np.sin(0.3))
    assert (angle < np.pi).any() and (angle > np.pi).any()
    expected = -log_softmax(16 * turned, -1)[rows, y]
    found = losses.arcface(cosines, label, scale=16.0, margin=0.3)
    np.testing.assert_allclose(found.value[label.mask], expected, rtol=1e-4)


def test_arcface_falls_with_the_angle_and_without_margin_is_cross_entropy():
    cosines = np.cos(np.linspace(0, np.pi, 50, dtype=np.float32))
    label = Label(np.zeros(50, np.int32), np.ones(50, bool))
    scores = np.stack([cosines, np.zeros_like(cosines)], -1)
    value, slope = jax.jvp(lambda x: losses.arcface(x, label, scale=8.0).value, (scores,), (np.ones_like(scores),))
    assert (np.diff(value) > 0).all() and np.isfinite(slope).all()
    plain = losses.cross_entropy(8 * scores, label).value
    np.testing.assert_allclose(losses.arcface(scores, label, scale=8.0, margin=0.0).value, plain, rtol=1e-5)


def test_binary_cross_entropy():
    scores, label = draw('multilabel')
    x, y = present(scores, label)
    expected = -(y * np.log(expit(x)) + (1 - y) * np.log(expit(-x))).mean()
    np.testing.assert_allclose(worth(losses.binary_cross_entropy(scores, label)), expected, rtol=1e-6)


def test_mae_and_mse():
    scores, label = draw('regression')
    x, y = present(scores, label)
    np.testing.assert_allclose(worth(losses.mae(scores, label)), np.abs(x - y).mean(), rtol=1e-6)
    np.testing.assert_allclose(worth(losses.mse(scores, label)), ((x - y) ** 2).mean(), rtol=1e-6)


def test_ccc():
    scores, label = draw('regression')
    x, y = present(scores + 100, Label(label.value + 101, label.mask))
    gaps = (x.mean(0) - y.mean(0)) ** 2
    coefficients = 2 * ((x - x.mean(0)) * (y - y.mean(0))).mean(0) / (x.var(0) + y.var(0) + gaps)
    term = losses.ccc(scores + 100, Label(label.value + 101, label.mask))
    assert term.value.shape == () and term.weight == label.mask.sum()
    np.testing.assert_allclose(term.value, 1 - coefficients.mean(), rtol=1e-4)
    scores, label = draw('regression')
    np.testing.assert_allclose(losses.ccc(label.value, label).value, 0, atol=1e-6)


def test_ccc_of_constants_has_a_finite_gradient():
    label = Label(np.full((4, 1), 2.0, np.float32), np.ones(4, bool))
    value, slope = jax.value_and_grad(lambda x: losses.ccc(x, label).value)(jnp.full((4, 1), 2.0))
    assert value == 1 and np.isfinite(slope).all()


def test_ccc_of_no_items_counts_nothing_and_pulls_nowhere():
    label = Label(np.zeros((4, 1), np.float32), np.zeros(4, bool))
    with jax.debug_nans(True):
        assert losses.ccc(np.ones((4, 1), np.float32), label) == (0, 0)
        slope = jax.grad(lambda x: losses.ccc(x, label).value)(jnp.ones((4, 1)))
    assert (slope == 0).all()


def test_kl():
    scores, label = draw('distribution')
    label.value[label.mask.nonzero()[0][0], 0] = (0, 0, 0.25, 0.75)  # empty classes count nothing
    x, y = present(scores, label)
    expected = rel_entr(y, np.exp(log_softmax(x, -1))).sum(-1)
    np.testing.assert_allclose(losses.kl(scores, label).value[label.mask], expected, rtol=1e-5)


@every_loss
def test_what_stands_under_the_mask_is_invisible(name):
    kind, loss = EACH[name]
    scores, label = draw(kind)
    spoilt = np.where(label.mask[..., None], scores, np.nan)
    if kind == 'class':
        rubbish = np.where(label.mask, label.value, -1)
    else:
        rubbish = np.where(label.mask[..., None], label.value, np.nan)

    slope_of = jax.jit(jax.value_and_grad(lambda x, label: worth(loss(x, label))))
    clean, slope = slope_of(scores, label)
    value, spoilt_slope = slope_of(spoilt, Label(rubbish, label.mask))
    assert clean == value and np.isfinite(clean)
    np.testing.assert_array_equal(spoilt_slope, slope)
    assert (slope[~label.mask] == 0).all() and np.abs(slope[label.mask]).max() > 0


@every_loss
def test_gradients_stay_finite_at_the_extremes(name):
    kind, loss = EACH[name]
    scores, label = draw(kind)
    slope_of = jax.jit(jax.value_and_grad(lambda x: worth(loss(x, label))))
    for scale in (0.0, 1e4):
        value, slope = slope_of(np.float32(scale) * scores)
        assert np.isfinite(value) and np.isfinite(slope).all(), scale


@every_loss
def test_jit_and_half_precision(name):
    kind, loss = EACH[name]
    scores, label = draw(kind)
    eager, jitted = loss(scores, label), jax.jit(loss)(scores, label)
    for a, b in zip(eager, jitted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    half = loss(jnp.asarray(scores, jnp.bfloat16), label)
    assert half.value.dtype == half.weight.dtype == jnp.float32
    same = loss(np.asarray(jnp.asarray(scores, jnp.bfloat16), np.float32), label)
    np.testing.assert_array_equal(half.value, same.value)


@pytest.mark.parametrize('name', [name for name in EACH if name not in ('ccc', 'nt_xent', 'swfc')])
def test_parts_add_up_to_the_whole(name):
    kind, loss = EACH[name]
    loss = jax.jit(loss)
    scores, label = draw(kind)
    parts = [loss(scores[s], Label(label.value[s], label.mask[s])) for s in (slice(1), slice(1, 5))]
    value = sum((part.value * part.weight).sum() for part in parts)
    weight = sum(part.weight.sum() for part in parts)
    np.testing.assert_allclose(value / weight, worth(loss(scores, label)), rtol=1e-6)


@pytest.mark.parametrize(
    ('kind', 'name', 'expected'),
    [
        ('class', None, losses.cross_entropy),
        ('multilabel', None, losses.binary_cross_entropy),
        ('regression', None, losses.mae),
        ('distribution', None, losses.kl),
        ('class', 'focal', losses.focal),
        ('regression', 'mse', losses.mse),
        ('regression', 'ccc', losses.ccc),
    ],
)
def test_supervised_picks_by_kind_and_name(kind, name, expected):
    scores, label = draw(kind)
    term = losses.supervised(kind, name, class_weights=None, label_smoothing=0.0)(scores, label)
    np.testing.assert_array_equal(term.value, expected(scores, label).value)


def test_supervised_fills_in_the_options():
    scores, label = draw('class')
    smooth = losses.supervised('class', class_weights=WEIGHTS, label_smoothing=0.1)(scores, label)
    by_hand = losses.cross_entropy(scores, label, class_weights=WEIGHTS, label_smoothing=0.1)
    np.testing.assert_array_equal(smooth.value, by_hand.value)
    np.testing.assert_array_equal(smooth.weight, by_hand.weight)
    flat = losses.supervised('class', 'focal', gamma=0.0)(scores, label)
    np.testing.assert_allclose(flat.value, losses.cross_entropy(scores, label).value, rtol=1e-6)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'kind': 'ordinal'}, "label kind: found 'ordinal'"),
        ({'kind': 'class', 'name': 'hinge'}, "'hinge', expected cross_entropy, focal"),
        ({'kind': 'regression', 'name': 'focal'}, "'focal', expected mae, mse, ccc"),
        ({'kind': 'regression', 'class_weights': (1.0,)}, 'mae: takes no class_weights'),
        ({'kind': 'class', 'name': 'focal', 'label_smoothing': 0.1}, 'takes no label_smoothing'),
        ({'kind': 'class', 'gamma': 0.0}, 'cross_entropy: takes no gamma'),
        ({'kind': 'class', 'label_smoothing': 1.0}, 'label_smoothing: found 1.0'),
    ],
)
def test_supervised_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.supervised(**arguments)


@pytest.mark.parametrize('weights', [(1.0, 2.0), (1.0, 1.0, 1.0, -1.0), (1.0, 1.0, 1.0, np.nan)])
def test_class_weights_must_fit(weights):
    scores, label = draw('class')
    with pytest.raises(ValueError, match=r'class_weights: found .* expected 4'):
        losses.cross_entropy(scores, label, class_weights=weights)


def cosines(x, y, temperature):
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit @ unit.T / temperature, [[b for b in range(len(y)) if b != a and y[b] == y[a]] for a in range(len(y))]


def test_nt_xent_is_its_formula():
    scores, label = draw('class', (4, 5))
    x, y = present(scores, label)
    score, same = cosines(x, y, 0.3)
    each = [-np.log(np.exp(score[a, b]) / (np.exp(score[a, b]) + np.exp(score[a, y != y[a]]).sum()))
            for a in range(len(y)) for b in same[a]]
    np.testing.assert_allclose(worth(losses.nt_xent(scores, label, temperature=0.3)), np.mean(each), rtol=1e-5)


def test_swfc_is_its_formula():
    scores, label = draw('class', (4, 5))
    x, y = present(scores, label)
    score, same = cosines(x, y, 0.8)
    np.fill_diagonal(score, -np.inf)
    p = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    each = [-WEIGHTS[y[a]] * np.mean([np.log(p[a, b]) * (1 - p[a, b]) ** 2.4 for b in same[a]]) if same[a] else 0
            for a in range(len(y))]
    found = losses.swfc(scores, label, focus=2.4, class_weights=WEIGHTS)
    np.testing.assert_allclose(worth(found), np.mean(each), rtol=1e-5)


@pytest.mark.parametrize('loss', [losses.nt_xent, losses.swfc])
def test_contrast_without_a_pair_is_zero(loss):
    scores, label = draw('class', (4,))
    alone = label._replace(value=np.arange(4))
    assert worth(loss(scores, alone)) == 0
    assert (jax.grad(lambda x: worth(loss(x, alone)))(scores) == 0).all()


@pytest.mark.parametrize('over_channels', [False, True])
def test_soft_hgr_is_its_formula(over_channels):
    rng = np.random.default_rng(0)
    f, g = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    mask = rng.random((3, 4)) < 0.7
    x, y = f[mask].astype(np.float64), g[mask].astype(np.float64)
    if over_channels:       # rows are the variables of numpy.cov
        expected = np.mean(np.sum(x * y, -1)) - np.trace(np.cov(x) @ np.cov(y)) / (2 * len(x))
    else:
        product = (x - x.mean(0)) * (y - y.mean(0))
        expected = np.mean(product.sum(-1)) - np.trace(np.cov(x.T) @ np.cov(y.T)) / 2
    spoilt = np.where(mask[..., None], f, np.nan)
    np.testing.assert_allclose(losses.soft_hgr(spoilt, g, mask, over_channels=over_channels), expected, rtol=1e-5)
    assert losses.soft_hgr(f, g, np.zeros_like(mask), over_channels=over_channels) == 0


def test_distillation_is_kl_and_teaches_both():
    student, label = draw('class')
    teacher = draw('class', seed=1)[0]
    p, q = (np.exp(log_softmax(x[label.mask].astype(np.float64) / 2, -1)) for x in (teacher, student))
    term = losses.distillation(student, teacher, label.mask, temperature=2.0)
    np.testing.assert_allclose(worth(term), rel_entr(p, q).sum(-1).mean(), rtol=1e-5)
    slopes = jax.grad(lambda s, t: worth(losses.distillation(s, t, label.mask)), argnums=(0, 1))(student, teacher)
    for slope in slopes:
        assert (slope[~label.mask] == 0).all() and np.abs(slope[label.mask]).min() > 0


def test_emotion_shift_compares_the_turns_of_one_dialogue():
    _, label = draw('class', (2, 4))
    scores = np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype(np.float32)
    nll, total, weight = -log_softmax(scores.astype(np.float64), -1), 0.0, 0.0
    for b in range(2):
        there = np.flatnonzero(label.mask[b])
        for i in there:
            for j in there:
                changed = int(label.value[b, i] != label.value[b, j])
                total += (0.5, 2.0)[changed] * nll[b, i, j, changed]
                weight += (0.5, 2.0)[changed]
    found = losses.emotion_shift(scores, label, weights=(0.5, 2.0))
    np.testing.assert_allclose(worth(found), total / weight, rtol=1e-6)


@pytest.mark.parametrize('kind', ['class', 'regression'])
def test_rank_n_contrast_is_the_sum_over_its_definition(kind):
    _, label = draw(kind, (7,))
    x = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    x[5] = x[4]                              # no distance, where the root has no slope
    there = np.flatnonzero(label.mask)
    terms = []
    for i in there:
        apart = {k: float(np.abs(label.value[i] - label.value[k]).sum()) if kind == 'regression'
                 else float(label.value[i] != label.value[k]) for k in there}
        near = {k: np.exp(-np.linalg.norm(x[i].astype(np.float64) - x[k]) / 2) for k in there}
        terms += [-np.log(near[j] / sum(near[k] for k in there if k != i and apart[k] >= apart[j]))
                  for j in there if j != i]
    assert len(terms) >= 6
    np.testing.assert_allclose(worth(losses.rank_n_contrast(x, label)), np.mean(terms), rtol=1e-5)
    slope = jax.grad(lambda x: worth(losses.rank_n_contrast(x, label)))(x)
    assert np.isfinite(slope).all() and (slope[~label.mask] == 0).all()


def test_rank_n_contrast_of_items_far_apart():
    """Where every share but the nearest would underflow."""
    x = np.array([[0], [1], [1000], [1003]], np.float32)
    label = Label(np.arange(4, dtype=np.float32)[:, None], np.ones(4, bool))
    terms = []
    for i in range(4):
        near = -np.abs(x[i] - x)[:, 0].astype(np.float64) / 2
        for j in {0, 1, 2, 3} - {i}:
            among = [near[k] for k in range(4) if k != i and abs(k - i) >= abs(j - i)]
            terms.append(np.logaddexp.reduce(among) - near[j])
    value, slope = jax.value_and_grad(lambda x: worth(losses.rank_n_contrast(x, label)))(x)
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    assert np.isfinite(slope).all()

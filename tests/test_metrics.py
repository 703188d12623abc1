"""Metrics against scikit-learn, SciPy, audmetric, MMSA's own file, and the promises of their sums."""

import functools
import importlib.util
import itertools
from pathlib import Path

import audmetric
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import sklearn.metrics as sk
from scipy.special import expit, softmax

from jmer import metrics
from jmer.types import Label

KINDS = {
    'class': metrics.for_target('class', 5, without=2),
    'multilabel': metrics.for_target('multilabel', 5),
    'regression': metrics.for_target('regression', 5),
    'sentiment': metrics.for_target('regression', 1, sentiment=True),
    'distribution': metrics.for_target('distribution', 5),
}
SUMS = {kind: jax.jit(metric.sums) for kind, metric in KINDS.items()}
every_kind = pytest.mark.parametrize('kind', KINDS)


def draw(kind, shape=(40, 6), seed=0):
    """Scores and labels of five classes; dialogues by shape, a third of the turns unlabelled."""
    rng = np.random.default_rng(seed)
    wide = (*shape, 1 if kind == 'sentiment' else 5)
    scores = (2 * rng.normal(size=wide)).astype(np.float32)
    value = {
        'class': rng.choice(5, shape, p=[0.4, 0.3, 0.15, 0.1, 0.05]),
        'multilabel': (rng.random(wide) < 0.3).astype(np.float32),
        'regression': (scores + rng.normal(size=wide)).astype(np.float32),
        # Raters' means: thirds, as in MOSI, with whole numbers, zeros and halves among them.
        'sentiment': (rng.integers(-9, 10, wide) / rng.choice([2, 3], wide)).clip(-3, 3).astype('f'),
        'distribution': rng.dirichlet(np.full(5, 0.5), shape).astype(np.float32),
    }[kind]
    if kind == 'class':
        np.put_along_axis(scores, value[..., None], np.take_along_axis(scores, value[..., None], -1) + 2, -1)
    if kind == 'sentiment':
        scores = np.where(rng.random(wide) < 0.5, np.round(value + scores / 2) / 2, value + scores)
        scores = scores.astype(np.float32)
    return scores, Label(value, rng.random(shape) < 2 / 3)


def figures(kind, scores, label):
    return KINDS[kind].compute(SUMS[kind](scores, label))


def present(scores, label):
    return scores[label.mask].astype(np.float64), label.value[label.mask]


def agree(found, expected, rtol=1e-6):
    np.testing.assert_allclose([found[name] for name in expected], [*expected.values()], rtol=rtol)


# --- one item type after the other, against other people's code


def test_class_figures_are_scikit_learns():
    scores, label = draw('class')
    x, y = present(scores, label)
    said, p = x.argmax(-1), softmax(x, -1)
    found = figures('class', scores, label)
    others = [0, 1, 3, 4]
    expected = {
        'accuracy': sk.accuracy_score(y, said),
        'uar': sk.balanced_accuracy_score(y, said),
        'weighted_f1': sk.f1_score(y, said, average='weighted'),
        'macro_f1': sk.f1_score(y, said, average='macro'),
        'micro_f1_without_2': sk.f1_score(y, said, average='micro', labels=others),
        'nll': sk.log_loss(y, p),
        'brier_multiclass': ((p - np.eye(5)[y]) ** 2).sum(-1).mean(),
    }
    agree(found, expected)
    assert set(found) == {*expected, 'ece15'}
    assert found['uar'] == pytest.approx(audmetric.unweighted_average_recall(y, said))
    state = SUMS['class'](scores, label)
    np.testing.assert_array_equal(state.confusion, sk.confusion_matrix(y, said))
    each = metrics.per_class(state)
    by_sklearn = sk.precision_recall_fscore_support(y, said)
    for name, column in zip(('precision', 'recall', 'f1', 'support'), by_sklearn, strict=True):
        np.testing.assert_allclose(each[name], column)


def test_classes_that_do_not_occur():
    """Class 3 is never true but predicted, class 4 neither: UAR leaves out both, macro-F1 one."""
    y, said = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 3, 0])
    scores = np.eye(5, dtype=np.float32)[said]
    found = figures('class', scores, Label(y, np.ones(5, bool)))
    assert found['uar'] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found['macro_f1'] == pytest.approx(sk.f1_score(y, said, average='macro', zero_division=0))
    assert found['macro_f1'] == pytest.approx((2 * 1 / 4 + 2 * 1 / 3 + 0 + 0) / 4)


def test_ece_is_the_definition():
    scores, label = draw('class')
    x, y = present(scores, label)
    p = softmax(x, -1)
    confidence, hit = p.max(-1), x.argmax(-1) == y
    expected = 0
    for low, high in itertools.pairwise(np.linspace(0, 1, 16)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert expected > 0.01
    assert figures('class', scores, label)['ece15'] == pytest.approx(expected, rel=1e-5)
    state = SUMS['class'](scores, label)  # the bins themselves serve the reliability diagram
    np.testing.assert_array_equal(state.bin_items, np.histogram(confidence, 15, (0, 1))[0])
    np.testing.assert_array_equal(state.bin_hits, np.histogram(confidence[hit], 15, (0, 1))[0])


def test_ece_of_the_certain_and_of_the_undecided():
    label = Label(np.array([0, 1, 1, 1]), np.ones(4, bool))
    certain = np.float32([[100, 0], [100, 0], [0, 100], [0, 100]])
    metric = metrics.for_target('class', 2)
    assert metric.compute(metric.sums(certain, label))['ece15'] == pytest.approx(1 / 4)
    undecided = np.zeros((4, 2), np.float32)
    assert metric.compute(metric.sums(undecided, label))['ece15'] == pytest.approx(1 / 4)


def test_multilabel_figures_are_scikit_learns():
    scores, label = draw('multilabel')
    x, y = present(scores, label)
    said = expit(x) > 0.5
    columns = list(zip(y.T > 0.5, said.T, strict=True))
    found = figures('multilabel', scores, label)
    expected = {
        'subset_accuracy': sk.accuracy_score(y, said),
        'hamming_loss': sk.hamming_loss(y, said),
        'micro_f1': sk.f1_score(y, said, average='micro'),
        'macro_f1': sk.f1_score(y, said, average='macro'),
        'mosei_weighted_accuracy': np.mean([_mosei_accuracy(t, s) for t, s in columns]),
        'mosei_weighted_f1': np.mean([sk.f1_score(t, s, average='weighted') for t, s in columns]),
        'bce': -(y * np.log(expit(x)) + (1 - y) * np.log(expit(-x))).mean(),
    }
    agree(found, expected)
    assert set(found) == set(expected)
    each = metrics.per_class(SUMS['multilabel'](scores, label))
    np.testing.assert_allclose(each['f1'], sk.f1_score(y, said, average=None))
    np.testing.assert_allclose(each['precision'], sk.precision_score(y, said, average=None))
    np.testing.assert_allclose(each['weighted_accuracy'], [_mosei_accuracy(t, s) for t, s in columns])


def _mosei_accuracy(truth, said):
    positives, negatives = truth.sum(), (~truth).sum()
    hits, rejections = (truth & said).sum(), (~truth & ~said).sum()
    return (hits * negatives / positives + rejections) / (2 * negatives)


def test_a_label_that_never_occurs_is_left_out_of_weighted_accuracy_alone():
    truth = np.float32([[1, 0], [0, 0], [1, 0]])
    scores = np.float32([[1, -1], [1, -1], [1, -1]])
    metric = metrics.for_target('multilabel', 2)
    found = metric.compute(metric.sums(scores, Label(truth, np.ones(3, bool))))
    assert found['mosei_weighted_accuracy'] == 0.5
    assert found['macro_f1'] == pytest.approx((0.8 + 0) / 2)


def test_regression_figures_of_each_dimension():
    scores, label = draw('regression')
    x, y = present(scores, label)
    expected = {
        'mae': sk.mean_absolute_error(y, x, multioutput='raw_values'),
        'rmse': np.sqrt(sk.mean_squared_error(y, x, multioutput='raw_values')),
        'pearson': [scipy.stats.pearsonr(a, b)[0] for a, b in zip(x.T, y.T, strict=True)],
        'ccc': [audmetric.concordance_cc(b, a) for a, b in zip(x.T, y.T, strict=True)],
    }
    each = metrics.per_class(SUMS['regression'](scores, label))
    found = figures('regression', scores, label)
    assert set(found) == set(expected) == set(each)
    for name, values in expected.items():
        np.testing.assert_allclose(each[name], values, rtol=1e-5)
        assert found[name] == pytest.approx(np.mean(values), rel=1e-5)


def test_correlation_of_a_constant():
    """Undefined for Pearson, even where rounding leaves it a variance; none at all for CCC."""
    y = np.tile(np.linspace(1, 5, 999, dtype=np.float32)[:, None], 5)
    x = np.broadcast_to(np.float32([0.1, 1.7, 2.3, 3.3, 4.1]), y.shape)
    state = SUMS['regression'](x, Label(y, np.ones(999, bool)))
    xx, mean = (np.asarray(a, np.float64) / 999 for a in (state.xx, state.x))
    assert (xx > mean**2).any()  # the rounding that is meant
    each = metrics.per_class(state)
    assert np.isnan(each['pearson']).all() and (each['ccc'] == 0).all()
    np.testing.assert_allclose(each['mae'], np.abs(y - x).mean(0), rtol=1e-5)


def test_correlation_of_a_nearly_constant_prediction_is_kept():
    y = np.linspace(1, 5, 999, dtype=np.float32)[:, None]
    metric = metrics.for_target('regression', 1)
    found = metric.compute(metric.sums(3 + 0.01 * y, Label(y, np.ones(999, bool))))
    assert found['pearson'] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(('low', 'high'), [(-3, 3), (1, 5), (1, 9)])
def test_moments_of_many_batches_stay_exact(low, high):
    rng = np.random.default_rng(0)
    y = rng.normal((low + high) / 2, (high - low) / 8, (400, 256, 1)).astype(np.float32)
    x = (y + rng.normal(0, 0.5, y.shape)).astype(np.float32)
    mask = np.ones(256, bool)
    steps = (SUMS['sentiment'](a, Label(b, mask)) for a, b in zip(x, y, strict=True))
    found = KINDS['sentiment'].compute(metrics.total(steps))
    x, y = (a.reshape(-1).astype(np.float64) for a in (x, y))
    assert found['pearson'] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-5)
    assert found['ccc'] == pytest.approx(audmetric.concordance_cc(y, x), rel=1e-5)


class Tensor(np.ndarray):
    """As much of a torch tensor as MMSA's metrics ask of one."""

    def view(self, *shape):
        return self.reshape(*shape)

    def cpu(self):
        return self

    def detach(self):
        return self

    def numpy(self):
        return np.asarray(self)


@functools.cache
def mmsa():
    """MMSA's metrics.py by itself: importing the package would need torch and more."""
    package = importlib.util.find_spec('MMSA')
    if package is None:
        pytest.skip('MMSA is not installed: pip install --no-deps MMSA==2.2.1')
    file = Path(package.origin).parent / 'utils' / 'metricsTop.py'
    spec = importlib.util.spec_from_file_location('mmsa_metrics', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MetricsTop('regression').getMetics('MOSI')


@pytest.mark.parametrize('seed', range(5))
def test_sentiment_figures_are_mmsas(seed):
    scores, label = draw('sentiment', seed=seed)
    x, y = (np.asarray(a, np.float32).view(Tensor) for a in (scores[label.mask], label.value[label.mask]))
    assert (y == 0).any() and (x == 0).any() and (np.abs(y) == 0.5).any() and (np.abs(x) > 3).any()
    peers = mmsa()(x, y)
    found = figures('sentiment', scores, label)
    names = {
        'Has0_acc_2': 'acc2_has0',
        'Has0_F1_score': 'weighted_f1_has0',
        'Non0_acc_2': 'acc2_non0',
        'Non0_F1_score': 'weighted_f1_non0',
        'Mult_acc_5': 'acc5_round',
        'Mult_acc_7': 'acc7_round',
        'MAE': 'mae',
        'Corr': 'pearson',
    }
    assert set(peers) == set(names)
    for theirs, ours in names.items():
        assert found[ours] == pytest.approx(peers[theirs], abs=5.1e-5), ours  # they round to 4 digits


@pytest.mark.parametrize('bound', [1, 2, 3])
@pytest.mark.parametrize('rule', ['round', 'outward'])
def test_both_rules_of_rounding_by_their_bins(rule, bound):
    """Written as intervals: the SDK's (-1, 0) -> -1, 0 -> 0, (0, 1] -> 1; half to even for the other."""
    grid = np.arange(-16, 17) / 4

    def place(a):
        if rule == 'outward':
            above = [n for n in range(1, 5) if n - 1 < a <= n]
            below = [n for n in range(-4, 0) if n <= a < n + 1]
            (n,) = above + below or [0]
            return min(max(n, -bound), bound)
        return round(min(max(a, -bound), bound))  # Python, too, rounds half to even

    x, y = (a.reshape(-1) for a in np.meshgrid(grid, grid))
    expected = np.mean([place(a) == place(b) for a, b in zip(x, y, strict=True)])
    label = Label(y[:, None].astype(np.float32), np.ones(len(y), bool))
    found = figures('sentiment', x[:, None].astype(np.float32), label)
    assert found[f'acc{2 * bound + 1}_{rule}'] == pytest.approx(expected)


def test_distances_of_distributions_are_scipys():
    scores, label = draw('distribution')
    label.value[label.mask.nonzero()[0][0]] = np.float32([0, 0, 0.5, 0.5, 0])
    x, y = present(scores, label)
    p, y = softmax(x, -1), y.astype(np.float64)
    distance = scipy.spatial.distance
    pairs = list(zip(p, y, strict=True))
    expected = {
        'kl': np.mean([scipy.stats.entropy(b, a) for a, b in pairs]),
        'js': np.mean([distance.jensenshannon(a, b) ** 2 for a, b in pairs]),
        'chebyshev': np.mean([distance.chebyshev(a, b) for a, b in pairs]),
        'clark': np.mean(np.sqrt((((p - y) / (p + y)) ** 2).sum(-1))),
        'canberra': np.mean([distance.canberra(a, b) for a, b in pairs]),
        'cosine': np.mean([1 - distance.cosine(a, b) for a, b in pairs]),
    }
    found = figures('distribution', scores, label)
    agree(found, expected, rtol=1e-5)
    assert set(found) == set(expected)


def test_a_probability_of_zero_does_not_poison_the_distances():
    label = Label(np.float32([[0, 1, 0]]), np.ones(1, bool))
    metric = metrics.for_target('distribution', 3)
    found = metric.compute(metric.sums(np.float32([[-500, 0, -500]]), label))
    assert found == pytest.approx(
        {'kl': 0, 'js': 0, 'chebyshev': 0, 'clark': 0, 'canberra': 0, 'cosine': 1}
    )


def test_mean_average_precision_is_scikit_learns():
    scores, label = draw('multilabel')
    x, y = present(scores, label)
    coarse = np.round(x)  # with ties
    for ranked in (x, coarse):
        expected = sk.average_precision_score(y, ranked, average='macro')
        assert metrics.mean_average_precision(ranked, y) == pytest.approx(expected)
    whole, truth = scores.reshape(-1, 5), label.value.reshape(-1, 5)
    masked = metrics.mean_average_precision(whole, truth, label.mask.reshape(-1))
    assert masked == pytest.approx(metrics.mean_average_precision(x, y))
    empty = np.concatenate([y, np.zeros((len(y), 1))], 1)  # a label that never occurs
    padded = np.concatenate([x, x[:, :1]], 1)
    assert metrics.mean_average_precision(padded, empty) == pytest.approx(masked)
    assert np.isnan(metrics.mean_average_precision(np.where(x == x.max(), np.nan, x), y))


def test_recall_at_k():
    rng = np.random.default_rng(0)
    scores, match = rng.normal(size=(60, 9)), rng.integers(0, 9, 60)
    for k in (1, 3, 8):
        expected = sk.top_k_accuracy_score(match, scores, k=k, labels=range(9))
        assert metrics.recall_at(scores, match, k) == pytest.approx(expected)
    assert metrics.recall_at(np.zeros((60, 9)), match, 8) == 0
    assert metrics.recall_at(np.zeros((60, 9)), match, 9) == 1
    assert metrics.recall_at(np.full((60, 9), np.nan), match, 8) == 0


# --- what holds of every kind


@every_kind
def test_parts_add_up_to_the_whole(kind):
    scores, label = draw(kind)
    cuts = [slice(0, 7), slice(7, 8), slice(8, 40)]
    parts = [SUMS[kind](scores[s], Label(label.value[s], label.mask[s])) for s in cuts]
    whole = figures(kind, scores, label)
    agree(KINDS[kind].compute(metrics.total(parts)), whole, rtol=1e-5)
    agree(KINDS[kind].compute(functools.reduce(metrics.merge, parts)), whole, rtol=1e-5)


@every_kind
def test_sums_add_up_across_devices(kind):
    scores, label = draw(kind)

    def device(scores, label):
        return jax.lax.psum(KINDS[kind].sums(scores, label), 'data')

    split = jax.tree.map(lambda a: a.reshape(8, 5, *a.shape[1:]), (scores, label))
    state = jax.pmap(device, axis_name='data')(*split)
    first = jax.tree.map(lambda a: a[0], state)
    agree(KINDS[kind].compute(first), figures(kind, scores, label), rtol=1e-5)


@every_kind
def test_seeds_as_an_axis(kind):
    scores, label = draw(kind)
    seeds = np.stack([scores, -scores, scores[::-1]])
    states = jax.jit(jax.vmap(KINDS[kind].sums, in_axes=(0, None)))(seeds, label)
    for i, one in enumerate(seeds):
        found = KINDS[kind].compute(jax.tree.map(lambda a, i=i: a[i], states))
        agree(found, figures(kind, one, label), rtol=1e-5)


@every_kind
def test_what_stands_under_the_mask_is_invisible(kind):
    scores, label = draw(kind)
    spoilt = np.where(label.mask[..., None], scores, np.nan)
    hidden = label.mask if kind == 'class' else label.mask[..., None]
    rubbish = np.where(hidden, label.value, -1 if kind == 'class' else np.nan)
    clean, found = (
        SUMS[kind](s, Label(v, label.mask)) for s, v in ((scores, label.value), (spoilt, rubbish))
    )
    jax.tree.map(np.testing.assert_array_equal, found, clean)


@every_kind
def test_nothing_labelled_is_nan_not_zero(kind):
    scores, label = draw(kind)
    found = figures(kind, scores, label._replace(mask=np.zeros_like(label.mask)))
    assert all(np.isnan(value) for value in found.values()), found


@every_kind
def test_a_broken_model_shows(kind):
    """NaN where an item is present must reach a figure, not vanish."""
    scores, label = draw(kind)
    broken = np.where(np.arange(40)[:, None, None] == 0, np.nan, scores).astype(np.float32)
    assert label.mask[0].any()
    assert any(np.isnan(value) for value in figures(kind, broken, label).values())


@every_kind
def test_eager_half_precision_and_layout(kind):
    scores, label = draw(kind)
    whole = figures(kind, scores, label)
    agree(KINDS[kind].compute(KINDS[kind].sums(scores, label)), whole, rtol=1e-5)
    flat = Label(label.value.reshape(240, *label.value.shape[2:]), label.mask.reshape(-1))
    agree(figures(kind, scores.reshape(240, -1), flat), whole)
    half = jnp.asarray(scores, jnp.bfloat16)
    agree(figures(kind, half, label), figures(kind, np.asarray(half, np.float32), label))


@every_kind
def test_figures_are_plain_numbers(kind):
    assert all(type(value) is float for value in figures(kind, *draw(kind)).values())


def test_counts_are_integers_and_exact():
    label = Label(np.zeros(3, int), np.ones(3, bool))
    state = metrics.for_target('class', 2).sums(np.zeros((3, 2), np.float32), label)
    large = state._replace(confusion=jnp.full((2, 2), 2**30 - 1, jnp.int32))
    assert state.confusion.dtype == jnp.int32
    assert metrics.total([large] * 8).confusion[0, 0] == 8 * (2**30 - 1)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'kind': 'ordinal', 'classes': 2}, "label kind: found 'ordinal'"),
        ({'kind': 'class', 'classes': 2, 'without': 2}, 'without: found 2'),
        ({'kind': 'regression', 'classes': 2, 'without': 0}, 'without: found 0'),
        ({'kind': 'regression', 'classes': 2, 'sentiment': True}, 'sentiment: found 2'),
        ({'kind': 'class', 'classes': 1, 'sentiment': True}, "sentiment: found 1 x 'class'"),
    ],
)
def test_for_target_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.for_target(**arguments)


def test_scores_of_the_wrong_width_are_refused():
    label = Label(np.zeros(3, int), np.ones(3, bool))
    with pytest.raises(ValueError, match=r'scores: found shape \(3, 4\), expected 5 at the end'):
        KINDS['class'].sums(np.zeros((3, 4), np.float32), label)


def test_distributions_have_no_classes():
    with pytest.raises(ValueError, match='DistributionSums'):
        metrics.per_class(SUMS['distribution'](*draw('distribution')))

"""Intervals and tests against explicit resampling, enumeration, SciPy, and their own promises."""

import inspect
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
from scipy.special import expit, softmax

from jmer import metrics, significance

KINDS = {
    'class': ('class', metrics.for_target('class', 4)),
    'multilabel': ('multilabel', metrics.for_target('multilabel', 4)),
    'regression': ('regression', metrics.for_target('regression', 4)),
    'sentiment': ('regression', metrics.for_target('regression', 1, sentiment=True)),
    'distribution': ('distribution', metrics.for_target('distribution', 4)),
}
every_kind = pytest.mark.parametrize('name', KINDS)


def draw(name='class', seeds=2, n=30, skill=1.0, seed=0):
    """Scores [s n c], truth, and groups of unequal size."""
    rng = np.random.default_rng(0)
    wide = (n, 1 if name == 'sentiment' else 4)
    truth = {
        'class': rng.integers(0, 4, n),
        'multilabel': (rng.random(wide) < 0.4).astype(np.float32),
        'regression': rng.normal(size=wide).astype(np.float32),
        'sentiment': rng.integers(-9, 10, wide).astype(np.float32) / 3,
        'distribution': rng.dirichlet(np.ones(4), n).astype(np.float32),
    }[name]
    groups = rng.choice(['ann', 'bob', 'cy', 'dee', 'eve'], n)
    known = np.eye(4)[truth] if name == 'class' else truth
    x = skill * known + np.random.default_rng(seed + 1).normal(size=(seeds, *wide))
    link = {'class': lambda x: softmax(x, -1), 'distribution': lambda x: softmax(x, -1), 'multilabel': expit}
    return link.get(name, lambda x: x)(x).astype(np.float32), truth, groups


def unchecked(function):
    """The function as users have it, without the checks of annotations that tests run under."""
    return inspect.unwrap(function)


def system(name, scores, truth, groups):
    kind, metric = KINDS[name]
    return significance.add_by(significance.item_sums(metric, kind, scores, truth), groups)


def by_sklearn(name, scores, truth):
    """Figures of one seed's scores [n c], from another library."""
    if name == 'class':
        said = scores.argmax(-1)
        return {'accuracy': sk.accuracy_score(truth, said), 'nll': -np.log(scores[np.arange(len(truth)), truth]).mean(),
                'weighted_f1': sk.f1_score(truth, said, average='weighted', zero_division=0)}
    if name == 'multilabel':
        return {'micro_f1': sk.f1_score(truth, scores > 0.5, average='micro'),
                'subset_accuracy': sk.accuracy_score(truth, scores > 0.5)}
    if name == 'distribution':
        return {'kl': scipy.stats.entropy(truth, scores, axis=1).mean(),
                'chebyshev': abs(scores - truth).max(1).mean()}
    figures = {'mae': sk.mean_absolute_error(truth, scores), 'pearson': np.mean(
        [scipy.stats.pearsonr(x, y)[0] for x, y in zip(scores.T, truth.T, strict=True)])}
    return figures | ({'acc2_has0': np.mean((scores >= 0) == (truth >= 0))} if name == 'sentiment' else {})


def explicit(name, scores, truth, groups, counts):
    """Mean over seeds of the figures of the items of groups repeated so many times."""
    names = np.unique(groups)
    items = np.concatenate([np.tile(np.flatnonzero(groups == g), k) for g, k in zip(names, counts, strict=True)])
    rows = [by_sklearn(name, one[items], truth[items]) for one in scores.astype(np.float64)]
    return {figure: np.mean([row[figure] for row in rows]) for figure in rows[0]}


@every_kind
def test_bootstrap_is_the_items_of_drawn_groups_repeated(name):
    data = draw(name)
    found = significance.bootstrap(KINDS[name][1].compute, system(name, *data), samples=40, seed=3, level=0.8)
    whole = explicit(name, *data, np.ones(5, int))
    counts = np.random.default_rng(3).multinomial(5, np.full(5, 1 / 5), 40)
    drawn = [explicit(name, *data, row) for row in counts]
    for figure, value in whole.items():
        low, high = np.quantile([row[figure] for row in drawn], [0.1, 0.9])
        assert low < high
        np.testing.assert_allclose(found[figure], [value, low, high], rtol=2e-5)


def test_bootstrap_of_a_difference_draws_both_together():
    scores, truth, groups = draw()
    other = draw(skill=0.5, seed=9)[0]
    compute = KINDS['class'][1].compute
    a, b = (system('class', x, truth, groups) for x in (scores, other))
    found = significance.bootstrap(compute, a, b, samples=50)
    counts = np.random.default_rng(0).multinomial(5, np.full(5, 1 / 5), 50)
    gaps = [explicit('class', scores, truth, groups, row)['accuracy']
            - explicit('class', other, truth, groups, row)['accuracy'] for row in counts]
    np.testing.assert_allclose(found['accuracy'][1:], np.quantile(gaps, [0.025, 0.975]))
    same = significance.bootstrap(compute, a, a, samples=50)
    assert all(interval == (0, 0, 0) for interval in same.values())


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    """Accuracy 0.7 of 80 speakers who differ: 95 % intervals hold it in most of 60 worlds, 50 % in half."""
    hits = {0.95: 0, 0.5: 0}
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 4)
    for _ in range(60):
        right = (rng.random(320) < np.repeat(rng.choice([0.5, 0.9], 80), 4)).astype(float)
        sums = significance.add_by(right[None], groups)
        for level in hits:
            _, low, high = significance.bootstrap(lambda x: {'accuracy': x / 320}, sums, samples=200,
                                                  level=level)['accuracy']
            hits[level] += low <= 0.7 <= high
    assert hits[0.95] >= 52      # 57 expected; fewer than 52 in one world of 100
    assert 19 <= hits[0.5] <= 41


def test_clusters_widen_the_interval():
    """Ten copies of every item under one name say no more than the item itself."""
    scores, truth, _ = draw(n=20)
    names = np.arange(20)
    copies = np.repeat(scores, 10, axis=1), np.repeat(truth, 10), np.repeat(names, 10)
    compute = KINDS['class'][1].compute
    alone = significance.bootstrap(compute, system('class', scores, truth, names), samples=200)
    clustered = significance.bootstrap(compute, system('class', *copies), samples=200)
    naive = significance.bootstrap(compute, system('class', *copies[:2], np.arange(200)), samples=200)
    np.testing.assert_allclose(clustered['accuracy'], alone['accuracy'])
    assert np.ptp(naive['accuracy'][1:]) < 0.5 * np.ptp(alone['accuracy'][1:])


def test_an_undefined_figure_has_no_interval_and_no_p():
    scores, truth, groups = draw('sentiment')
    nothing = system('sentiment', scores, 0 * truth, groups)   # no sign to be right about
    compute = KINDS['sentiment'][1].compute
    assert np.isnan(significance.bootstrap(compute, nothing, samples=5)['acc2_non0']).all()
    p = significance.paired_permutation(compute, nothing, nothing, samples=5)
    assert np.isnan(p['acc2_non0']) and p['mae'] == 1


def test_resamples_without_the_figure_are_left_out():
    """One group alone has any non-zero sentiment: a third of the draws miss it, the others agree."""
    truth = np.array([[0.0], [0.0], [2.0]], np.float32)
    sums = system('sentiment', truth[None], truth, np.array(['a', 'b', 'c']))
    found = significance.bootstrap(KINDS['sentiment'][1].compute, sums, samples=50)
    assert found['acc2_non0'] == (1, 1, 1)


@every_kind
def test_permutation_is_the_share_of_all_exchanges(name):
    """Five groups have 32 exchanges: the drawn p comes near the exact one, for every metric."""
    scores, truth, groups = draw(name)
    other = draw(name, skill=0.3, seed=9)[0]
    compute = KINDS[name][1].compute
    a, b = (system(name, x, truth, groups) for x in (scores, other))
    found = significance.paired_permutation(compute, a, b, samples=200, seed=1)
    names, exact = np.unique(groups), []
    for flips in itertools.product([False, True], repeat=5):
        swapped = np.isin(groups, names[list(flips)])[None, :, None]
        mixed = [np.where(swapped, y, x) for x, y in ((scores, other), (other, scores))]
        one, two = (explicit(name, x, truth, groups, np.ones(5, int)) for x in mixed)
        exact.append({figure: abs(one[figure] - two[figure]) for figure in one})
    for figure, seen in exact[0].items():
        p = np.mean([row[figure] >= seen - 1e-7 for row in exact])
        assert found[figure] == pytest.approx(p, abs=0.1), figure
        assert found[figure] > 0


def test_permutation_of_equals_and_of_the_plainly_unequal():
    scores, truth, groups = draw(n=200)
    groups = np.arange(200) // 10
    right = np.repeat(np.eye(4, dtype=np.float32)[truth][None], 2, 0)
    compute = KINDS['class'][1].compute
    a, b = (system('class', x, truth, groups) for x in (scores, right))
    assert set(significance.paired_permutation(compute, a, a, samples=20).values()) == {1.0}
    p = significance.paired_permutation(compute, a, b, samples=199)
    assert p['accuracy'] == p['nll'] == 1 / 200      # the least that 199 exchanges can give
    assert p == significance.paired_permutation(compute, b, a, samples=199)


def test_seeds_are_averaged_not_pooled():
    """Macro-F1 is no mean over items: the figure is the mean of the seeds' figures."""
    scores, truth, groups = draw(seeds=3)
    compute = KINDS['class'][1].compute
    sums = system('class', scores, truth, groups)
    each = [sk.f1_score(truth, one.argmax(-1), average='macro') for one in scores]
    np.testing.assert_allclose(significance.by_seed(compute, sums)['macro_f1'], each)
    value = significance.bootstrap(compute, sums, samples=2)['macro_f1'].value
    assert value == pytest.approx(np.mean(each))


def test_mcnemar_is_the_binomial_tail():
    a = np.array([True] * 12 + [False] * 8)
    b = np.array([True] * 3 + [False] * 9 + [True] * 2 + [False] * 6)
    found = significance.mcnemar(a, b)
    assert found[:4] == (3, 9, 2, 6)
    assert found.p == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert significance.mcnemar(b, a).p == found.p
    assert significance.mcnemar(a, a) == (12, 0, 0, 8, 1.0)


def test_wilcoxon_is_the_share_of_all_signs():
    a, b = np.array([0.81, 0.79, 0.84, 0.80, 0.77, 0.88, 0.7]), np.array([0.78, 0.8, 0.79, 0.73, 0.75, 0.8, 0.7])
    gap = (a - b)[:6]
    ranks = scipy.stats.rankdata(abs(gap))
    sums = [ranks[list(signs)].sum() for signs in itertools.product([False, True], repeat=6)]
    seen = min(ranks[gap > 0].sum(), ranks[gap < 0].sum())
    found = significance.wilcoxon(a, b)
    assert found.p == pytest.approx(2 * np.mean(np.array(sums) <= seen))
    assert (found.pairs, found.least_p, found.enough) == (6, 1 / 32, True)


def test_wilcoxon_says_when_there_are_too_few_pairs():
    b = np.zeros(5)
    found = significance.wilcoxon(np.arange(1.0, 6), b)
    assert found == (5, 0.0625, 0.0625, False)       # all five agree, and still
    assert significance.wilcoxon(b, b) == (0, 1, 1, False)
    assert np.isnan(significance.wilcoxon(np.full(5, np.nan), b).p)
    # 0.8 - 0.7 and 0.3 - 0.2 are one gap, though not in floating point: ranks tie.
    tied = significance.wilcoxon(np.array([0.8, 0.2, 0.9]), np.array([0.7, 0.3, 0.6]))
    assert tied.p == pytest.approx(6 / 8)


def test_summary():
    assert significance.summary(np.array([1.0, 2.0, 6.0])) == (3, pytest.approx(math.sqrt(7)), 3)
    one = significance.summary(np.array([0.5]))
    assert one.mean == 0.5 and np.isnan(one.sd)


@pytest.mark.parametrize('name', ['class', 'multilabel', 'distribution'])
def test_certain_probabilities_have_finite_losses(name):
    scores, truth, groups = draw(name)
    certain = np.eye(4, dtype=np.float32)[scores.argmax(-1)]
    found = significance.by_seed(KINDS[name][1].compute, system(name, certain, truth, groups))
    assert all(np.isfinite(values).all() for values in found.values())
    if name == 'class':
        np.testing.assert_allclose(found['accuracy'], (certain.argmax(-1) == truth).mean(-1))


def test_bad_input_is_named():
    scores, truth, groups = draw()
    kind, metric = KINDS['class']
    hole = np.where(np.arange(30)[:, None] == 7, np.float32(np.nan), scores)
    item_sums, mcnemar, wilcoxon = map(unchecked, (significance.item_sums, significance.mcnemar, significance.wilcoxon))
    for wrong, words in (((hole, truth), 'scores: found 8 values'),
                         ((scores[:, :20], truth), 'truth: found 30 items, expected 20'),
                         ((scores[:, :0], truth[:0]), 'truth: found nothing')):
        with pytest.raises(ValueError, match=words):
            item_sums(metric, kind, *wrong)
    with pytest.raises(ValueError, match=r'scores: found shape .*expected 4'):
        item_sums(metric, kind, scores[..., :3], truth)
    a = system('class', scores, truth, groups)
    fewer = system('class', scores, truth, np.where(groups == 'ann', 'bob', groups))
    with pytest.raises(ValueError, match='groups: found 5 and 4'):
        significance.bootstrap(metric.compute, a, fewer)
    with pytest.raises(ValueError, match='seeds: found 2 and 1'):
        significance.paired_permutation(metric.compute, a, system('class', scores[:1], truth, groups))
    with pytest.raises(ValueError, match='samples: found 0'):
        significance.bootstrap(metric.compute, a, samples=0)
    with pytest.raises(ValueError, match=r'level: found 1\.5'):
        significance.bootstrap(metric.compute, a, level=1.5)
    with pytest.raises(ValueError, match='correct_b: found 2 items, expected 3'):
        mcnemar(np.ones(3, bool), np.ones(2, bool))
    with pytest.raises(ValueError, match='correct_a: found nothing'):
        mcnemar(np.ones(0, bool), np.ones(0, bool))
    with pytest.raises(ValueError, match='values: found nothing'):
        significance.summary(np.zeros(0))
    with pytest.raises(ValueError, match='b: found 2 values, expected 3'):
        wilcoxon(np.zeros(3), np.zeros(2))

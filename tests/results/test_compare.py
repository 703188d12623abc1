"""Comparisons of made-up runs: figures from the predictions by hand, and what is refused."""

import io
import json

import numpy as np
import pytest
import sklearn.metrics as sk
from rich.console import Console

from jmer import significance
from jmer.results.collect import collect
from jmer.results.compare import compare, show
from tests.results.leaves import leaf, write

SEEDS, FOLDS = (0, 1, 2), ('fold0', 'fold1')
SIZES = {'fold0': 40, 'fold1': 25}


def system(folder, model, skill, seeds=SEEDS, folds=FOLDS, **options):
    """Runs of all folds and seeds; those of one model are the same in every test."""
    for fold in folds:
        for seed in seeds:
            rng = np.random.default_rng([seed, len(model), FOLDS.index(fold)])
            leaf(folder / fold / f'seed{seed}', **{'model': model, 'seed': seed, 'fold': fold, 'n': SIZES[fold],
                                                   'skill': skill, 'rng': rng} | options)
    return folder


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    a, b = system(folder / 'a', 'mult', 1.0), system(folder / 'b', 'early', 0.2)
    return a, b, compare(a, b, samples=100)


def hits(folder, seed):
    """Whether each test item of all folds is right, in the order of the ids."""
    sides = [run.sides['test'] for run in collect(folder) if run.card['seed'] == seed]
    return np.concatenate([side.scores.argmax(-1) == side.truth for side in sides])


def test_folds_make_one_test_set_and_seeds_are_averaged(runs):
    a, b, found = runs
    assert (found['items'], found['groups'], found['folds'], found['seeds']) == (65, 13, [*FOLDS], [*SEEDS])
    each = [np.array([hits(folder, seed).mean() for seed in SEEDS]) for folder in (a, b)]
    row = found['metrics']['accuracy']
    for side, values in zip('ab', each, strict=True):
        assert row[side] == pytest.approx({'mean': values.mean(), 'sd': values.std(ddof=1)})
    assert row['difference'] == pytest.approx(each[0].mean() - each[1].mean())


def test_uar_is_that_of_the_pooled_folds_not_their_mean(runs):
    """One seed: its figure is over the items of both folds, and it has no deviation."""
    a, b, _ = runs
    sides = [run.sides['test'] for run in collect(b) if run.card['seed'] == 1]
    said, truth = (np.concatenate(part) for part in zip(*((side.scores.argmax(-1), side.truth) for side in sides),
                                                        strict=True))
    pooled = sk.balanced_accuracy_score(truth, said)
    assert pooled != pytest.approx(np.mean([sk.balanced_accuracy_score(side.truth, side.scores.argmax(-1))
                                            for side in sides]))
    found = compare(only(a, 1), only(b, 1), samples=5)
    assert found['metrics']['uar']['b'] == {'mean': pytest.approx(pooled), 'sd': None}


def only(folder, *seeds):
    """A copy of a system with some of its seeds."""
    copy = folder.parent / f'{folder.name}-{seeds}'
    for run in collect(folder):
        if run.card['seed'] in seeds:
            to = copy / run.folder.relative_to(folder)
            (to / 'weights').mkdir(parents=True)
            (to / 'weights' / 'card.json').write_text(json.dumps(run.card))
            (to / 'log.jsonl').write_text('')
            write(to / 'predictions.npz', run.sides)
    return copy


def test_intervals_and_p_are_over_groups(runs):
    """Accuracy of 13 groups of five, drawn and exchanged by hand with the same generator."""
    a, b, found = runs
    by_group = [np.mean([hits(folder, seed) for seed in SEEDS], 0).reshape(13, 5).mean(1) for folder in (a, b)]
    gap = by_group[0] - by_group[1]
    row = found['metrics']['accuracy']
    weights = np.random.default_rng(0).multinomial(13, np.full(13, 1 / 13), 100) / 13
    np.testing.assert_allclose([row['low'], row['high']], np.quantile(weights @ gap, [0.025, 0.975]))
    signs = np.where(np.random.default_rng(0).random((100, 13)) < 0.5, -1, 1)
    extreme = abs((signs * gap).mean(1)) >= abs(gap.mean()) - 1e-9
    assert row['p'] == pytest.approx((1 + extreme.sum()) / 101)
    assert row['p'] < 0.05 < row['low']      # skill 1 against 0.2


def test_mcnemar_of_the_majority_of_seeds(runs):
    a, b, found = runs
    right = [np.sum([hits(folder, seed) for seed in SEEDS], 0) >= 2 for folder in (a, b)]
    assert found['mcnemar'] == significance.mcnemar(*right)._asdict()
    assert found['mcnemar']['only_a'] > found['mcnemar']['only_b']
    pair = [only(folder, 0, 1) for folder in (a, b)]     # one of two seeds is no majority
    right = [hits(folder, 0) & hits(folder, 1) for folder in pair]
    assert compare(*pair, samples=1)['mcnemar'] == significance.mcnemar(*right)._asdict()


def test_wilcoxon_is_over_folds_and_seeds(runs):
    a, b, found = runs
    values = []
    for folder in (a, b):
        by_run = {(run.card['data']['protocol']['test'][0], run.card['seed']): run.sides['test']
                  for run in collect(folder)}
        values.append(np.array([sk.f1_score(side.truth, side.scores.argmax(-1), average='weighted')
                                for _, side in sorted(by_run.items())]))
    expected = significance.wilcoxon(*values)
    assert expected.pairs == 6 and expected.enough
    assert found['metrics']['weighted_f1']['wilcoxon'] == pytest.approx(expected._asdict())


def test_exchanging_a_and_b_changes_signs_alone(runs):
    a, b, found = runs
    other = compare(b, a, samples=100)
    for name, row in found['metrics'].items():
        back = other['metrics'][name]
        assert (back['p'], back['a'], back['b']) == (row['p'], row['b'], row['a'])
        np.testing.assert_allclose([-back['difference'], -back['high'], -back['low']],
                                   [row['difference'], row['low'], row['high']], atol=1e-12)


def test_a_system_does_not_differ_from_itself(runs):
    a, _, _ = runs
    found = compare(a, a, samples=20)
    for row in found['metrics'].values():
        assert (row['difference'], row['low'], row['high'], row['p']) == (0, 0, 0, 1)
        assert row['wilcoxon']['pairs'] == 0
    assert found['mcnemar']['p'] == 1


def test_the_order_of_items_does_not_matter(runs, tmp_path):
    a, b, found = runs
    for run in collect(b):
        to = tmp_path / run.folder.relative_to(b)
        (to / 'weights').mkdir(parents=True)
        (to / 'weights' / 'card.json').write_text(json.dumps(run.card))
        (to / 'log.jsonl').write_text('')
        side = run.sides['test']
        order = np.random.default_rng(run.card['seed']).permutation(len(side.ids))
        write(to / 'predictions.npz', {'test': type(side)(*(values[order] for values in side))})
    assert compare(a, tmp_path, samples=100)['metrics'] == found['metrics']


@pytest.mark.parametrize(
    ('kind', 'figure'), [('multilabel', 'micro_f1'), ('regression', 'ccc'), ('distribution', 'kl')])
def test_every_kind_of_target(tmp_path, kind, figure):
    options = {'kind': kind, 'seeds': (0, 1), 'folds': ('fold0',)}
    a, b = system(tmp_path / 'a', 'gmu', 1.0, **options), system(tmp_path / 'b', 'late', 0.1, **options)
    found = compare(a, b, samples=50)
    better = -1 if figure == 'kl' else 1
    row = found['metrics'][figure]
    assert better * row['difference'] > 0 and row['p'] < 0.1
    assert 'mcnemar' not in found
    json.dumps(found, allow_nan=False)


def test_the_tables_say_it_all(runs):
    _, _, found = runs
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = io.StringIO()
    show(found, Console(file=text, width=160))
    lines = text.getvalue().splitlines()
    row = next(line for line in lines if line.split()[1:2] == ['accuracy'])
    for number in (found['metrics']['accuracy'][side]['mean'] for side in 'ab'):
        assert f'{number:.4f} ±' in row
    for name in ('accuracy', 'nll'):      # less nll is better
        line = next(line for line in lines if line.split()[1:2] == [name])
        assert line.rstrip('│ ').endswith('A')
    assert f'only A right {found["mcnemar"]["only_a"]}' in text.getvalue()
    assert '65 test items in 13 groups' in text.getvalue()


def test_too_few_runs_are_said(tmp_path):
    a, b = (system(tmp_path / name, name, skill, seeds=(0,)) for name, skill in (('gmu', 0.9), ('late', 0.3)))
    found = compare(a, b, samples=10)
    assert found['metrics']['nll']['wilcoxon'] == {'pairs': 2, 'p': 0.5, 'least_p': 0.5, 'enough': False}
    text = io.StringIO()
    show(found, Console(file=text, width=160))
    assert 'too few pairs' in text.getvalue()
    assert f'{found["metrics"]["nll"]["a"]["mean"]:.4f} ±' not in text.getvalue()


# --- what is refused


def change(folder, field, edit):
    """Edits one field of a side, or of the card, of one run."""
    if field == 'card':
        path = folder / 'weights' / 'card.json'
        card = json.loads(path.read_text())
        edit(card)
        path.write_text(json.dumps(card))
        return
    sides = collect(folder)[0].sides
    values = getattr(sides['test'], field).copy()
    write(folder / 'predictions.npz', sides | {'test': sides['test']._replace(**{field: edit(values)})})


def first(value):
    return lambda values: np.concatenate([np.array([value], values.dtype), values[1:]])


@pytest.mark.parametrize(('field', 'edit', 'words'), [
    ('ids', first('other'), r'items of fold0 differ: 40 in .*a, 40 in .*b; only one has fold0-test-0000, other'),
    ('truth', first(9), r'fold0 of .*a and .*b: truth of fold0-test-0000: found \d and 9'),
    ('groups', first('bob'), r'groups of fold0-test-0000: found fold0-test-000 and bob'),
    ('ids', first('fold0-test-0001'), r'b.fold0.seed0: fold0-test-0001 stands twice'),
    ('scores', lambda scores: scores * np.nan, 'scores: found 120 values that are NaN'),
    ('card', lambda card: card['target'].update(name='arousal'), 'target: name: found emotion in .* and arousal'),
    ('card', lambda card: card['target'].update(names=['x', 'y', 'z']), 'target: names: found .*class0.* and .*x'),
    ('card', lambda card: card.update(seed=7), r'fold0: found the seeds \[0\] in .*a and \[7\] in .*b'),
])
def test_what_differs_is_refused_and_named(tmp_path, field, edit, words):
    a, b = (system(tmp_path / name, 'gmu', 0.5, seeds=(0,), folds=('fold0',)) for name in 'ab')
    assert compare(a, b, samples=1)['items'] == 40
    change(b / 'fold0' / 'seed0', field, edit)
    with pytest.raises(ValueError, match=words):
        compare(a, b, samples=1)


def test_runs_without_partners_are_refused(tmp_path):
    a = system(tmp_path / 'a', 'gmu', 0.5, seeds=(0, 1))
    for name, options, words in (
            ('one-fold', {'seeds': (0, 1), 'folds': ('fold0',)}, r'a was tested on fold1, .*one-fold was not'),
            ('one-seed', {'seeds': (0,)}, r'fold0: found the seeds \[0, 1\] in .*a and \[0\] in .*one-seed')):
        b = system(tmp_path / name, 'gmu', 0.5, **options)
        for pair in ((a, b), (b, a)):
            with pytest.raises(ValueError, match=words if pair == (a, b) else 'was tested on|found the seeds'):
                compare(*pair, samples=1)
    smaller = leaf(tmp_path / 'smaller', fold='fold0', n=35, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r'35 in .*; only one has fold0-test-0035, .*0037, \.\.\.'):
        compare(a, smaller, samples=1)
    with pytest.raises(ValueError, match='no finished run'):
        compare(a, tmp_path / 'nothing', samples=1)


def test_folders_of_several_experiments_are_refused(tmp_path):
    folder = system(tmp_path / 'a', 'gmu', 0.5, seeds=(0,), folds=('fold0',))
    leaf(folder / 'again', fold='fold0', rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match='is a second run of seed 0 on fold0'):
        compare(folder, folder, samples=1)
    change(folder / 'again', 'card', lambda card: card.update(model='late', seed=1))
    with pytest.raises(ValueError, match='found the models gmu, late'):
        compare(folder, folder, samples=1)
    change(folder / 'again', 'card', lambda card: card.update(model='gmu'))
    change(folder / 'again', 'card', lambda card: card['target'].update(names=['x', 'y']))
    with pytest.raises(ValueError, match=r'found the targets emotion \(class: class0, .*, emotion \(class: x, y\)'):
        compare(folder, folder, samples=1)


def test_seeds_that_one_fold_lacks_are_refused(tmp_path):
    folder = system(tmp_path / 'a', 'gmu', 0.5, seeds=(0,))
    leaf(folder / 'more', seed=1, fold='fold1', n=25, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r'found the seeds \[0\] of fold0 and \[0, 1\] of fold1'):
        compare(folder, folder, samples=1)


def test_a_run_without_a_test_side_is_refused(tmp_path):
    folder = leaf(tmp_path / 'a', rng=np.random.default_rng(0))
    sides = collect(folder)[0].sides
    write(folder / 'predictions.npz', {'validation': sides['validation']})
    with pytest.raises(ValueError, match='found validation, expected a test side'):
        compare(folder, folder, samples=1)
    (folder / 'predictions.npz').unlink()
    with pytest.raises(ValueError, match='found no predictions, expected a test side'):
        compare(folder, folder, samples=1)

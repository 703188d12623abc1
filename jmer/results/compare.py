"""Two systems on the same test items: how far apart, how surely.

A system is a folder of finished runs: one, or the seeds and folds of an experiment. Runs of the two are
paired by what they were tested on and by their seed; whatever cannot be paired is refused, since a
difference between unlike tests says nothing. The items of all folds together make one test set, on which
every seed has one figure; means and deviations are over the seeds.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jmer import significance
from jmer.data.corpus import Target
from jmer.results.collect import Result, Side, collect, target_of
from jmer.train.evaluate import LOWER, metric_of, no_nan


class Fold(NamedTuple):
    """One test side and who judged it. name: its parts; test: sorted by id; scores: by seed, [n c]."""

    name: str
    test: Side
    scores: dict[int, np.ndarray]


class System(NamedTuple):
    """All runs of one experiment. folds: by the ids of their test items."""

    folder: Path
    model: str
    target: Target
    runs: int
    folds: dict[tuple[str, ...], Fold]


def compare(a: Path, b: Path, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """What sets A apart from B on the test side, ready for JSON.

    The result has, under 'metrics', for each metric of the target:
        a, b: {'mean', 'sd'} over the seeds (sd is None for a single seed)
        difference, low, high: a - b and its 95 % interval, from `samples` draws of whole groups
        p: of the paired permutation of groups, `samples` times
        wilcoxon: over all pairs of runs (fold, seed), see `significance.wilcoxon`
    and under 'mcnemar', for classes: the counts and p of `significance.mcnemar`, where an item counts as right
    if more than half of the system's seeds have it right. Figures that rest on nothing are None.

    Raises ValueError, naming what differs, where the two do not share target, test items, labels, groups or
    seeds, where a run has no partner, or where a fold lacks seeds that another has.
    """
    one, other = _system(Path(a)), _system(Path(b))
    target = _target(one, other)
    pairs = _paired(one, other)
    seeds = _seeds(pairs)
    groups, truth = (np.concatenate([getattr(fold.test, field) for fold, _ in pairs]) for field in ('groups', 'truth'))
    fold_of = np.repeat(np.arange(len(pairs)), [len(fold.test.ids) for fold, _ in pairs])
    scores = [_pooled(folds, seeds) for folds in zip(*pairs, strict=True)]
    metric = metric_of(target)
    items = [significance.item_sums(metric, target.kind, x, truth) for x in scores]
    result = {
        'a': _about(one), 'b': _about(other), 'target': target.name, 'seeds': seeds, 'samples': samples,
        'folds': [fold.name for fold, _ in pairs], 'items': len(truth), 'groups': len(np.unique(groups)),
        'metrics': _metrics(metric.compute, items, groups, fold_of, samples, seed),
    }
    if target.kind == 'class':
        right = [(x.argmax(-1) == truth).mean(0) > 0.5 for x in scores]
        result['mcnemar'] = significance.mcnemar(*right)._asdict()
    return no_nan(result)


def show(result: dict[str, Any], console: Console) -> None:
    """The comparison as tables; what differs beyond chance at the 5 % level by permutation stands in bold."""
    a, b = (result[side]['run'] for side in 'ab')
    table = Table(title=escape(f'A: {a}   B: {b}'), caption=_caption(result))
    table.add_column('metric')
    for column in ('A', 'B', 'A - B', '95 % interval', 'p', 'better'):
        table.add_column(column, justify='right')
    for name, row in result['metrics'].items():
        sure = row['p'] is not None and row['p'] < 0.05
        table.add_row(name, *(_mean(row[side]) for side in 'ab'), _signed(row['difference']),
                      f'{_signed(row["low"])} to {_signed(row["high"])}', _p(row['p']),
                      _better(name, row['difference']), style='bold' if sure else None)
    console.print(table)
    for line in _tests(result):
        console.print(line, highlight=False)


def _system(folder: Path) -> System:
    runs = collect(folder)
    models = {run.card['model'] for run in runs}
    targets = {target_of(run.card) for run in runs}
    for what, names in (('models', models), ('targets', {f'{x.name} ({x.kind}: {_list(x.names)})' for x in targets})):
        if len(names) > 1:
            raise ValueError(f'{folder}: found the {what} {_list(names)}, expected the runs of one experiment')
    return System(folder, models.pop(), targets.pop(), len(runs), _folds(folder, runs))


def _folds(folder: Path, runs: list[Result]) -> dict[tuple[str, ...], Fold]:
    folds: dict[tuple[str, ...], Fold] = {}
    for run in runs:
        test, seed, parts = _test(run), run.card['seed'], run.card['data']['protocol']['test']
        fold = folds.setdefault(tuple(test.ids.tolist()), Fold('+'.join(parts), test, {}))
        if seed in fold.scores:
            raise ValueError(f'{run.folder}: is a second run of seed {seed} on {fold.name} in {folder}, expected the '
                             'folds and seeds of one experiment')
        _same(f'{run.folder} and others of {fold.name}', fold.test, test)
        fold.scores[seed] = test.scores
    return folds


def _test(run: Result) -> Side:
    """The test side of a run, sorted by id."""
    if 'test' not in run.sides:
        raise ValueError(f'{run.folder}: found {_list(run.sides) or "no predictions"}, expected a test side in '
                         'predictions.npz')
    side = run.sides['test']
    order = np.argsort(side.ids, kind='stable')
    test = Side(*(values[order] for values in side))
    twice = test.ids[1:][test.ids[1:] == test.ids[:-1]]
    if len(twice):
        raise ValueError(f'{run.folder}: {twice[0]} stands twice among the test items')
    return test


def _target(a: System, b: System) -> Target:
    """The target that both were trained for."""
    for field in ('name', 'kind', 'names'):
        one, other = getattr(a.target, field), getattr(b.target, field)
        if one != other:
            raise ValueError(f'target: {field}: found {one} in {a.folder} and {other} in {b.folder}, '
                             'expected the same')
    return a.target


def _paired(a: System, b: System) -> list[tuple[Fold, Fold]]:
    """The folds of both, each with its partner."""
    for one, other in ((a, b), (b, a)):
        lonely = [fold for ids, fold in one.folds.items() if ids not in other.folds]
        if lonely:
            raise ValueError(_lonely(one, other, lonely[0]))
    pairs = [(a.folds[ids], b.folds[ids]) for ids in sorted(a.folds)]
    for mine, theirs in pairs:
        _same(f'{mine.name} of {a.folder} and {b.folder}', mine.test, theirs.test)
        if mine.scores.keys() != theirs.scores.keys():
            raise ValueError(f'{mine.name}: found the seeds {sorted(mine.scores)} in {a.folder} and '
                             f'{sorted(theirs.scores)} in {b.folder}, expected the same')
    return pairs


def _lonely(one: System, other: System, fold: Fold) -> str:
    """Says which test items set a fold apart from the nearest that the other system has."""
    mine = set(fold.test.ids)
    nearest = max(other.folds.values(), key=lambda fold: len(mine & set(fold.test.ids)))
    theirs = set(nearest.test.ids)
    if not mine & theirs:
        return f'{one.folder} was tested on {fold.name}, {other.folder} was not: expected the same test items'
    apart = sorted(mine ^ theirs)
    return (f'the test items of {fold.name} differ: {len(mine)} in {one.folder}, {len(theirs)} in {other.folder}; '
            f'only one has {", ".join(apart[:3])}{", ..." if len(apart) > 3 else ""}')


def _same(where: str, one: Side, other: Side) -> None:
    """Refuses sides of the same items whose groups or labels are not the same."""
    for field in ('groups', 'truth'):
        mine, theirs = getattr(one, field), getattr(other, field)
        if mine.shape != theirs.shape:
            raise ValueError(f'{where}: {field}: found the shapes {mine.shape} and {theirs.shape}, expected the same')
        differ = (mine != theirs).reshape(len(mine), -1).any(-1)
        if differ.any():
            k = int(differ.argmax())
            raise ValueError(f'{where}: {field} of {one.ids[k]}: found {mine[k]} and {theirs[k]}, expected the same')


def _seeds(pairs: list[tuple[Fold, Fold]]) -> list[int]:
    """The seeds, of which every fold must have all."""
    first = pairs[0][0]
    for fold, _ in pairs:
        if fold.scores.keys() != first.scores.keys():
            raise ValueError(f'found the seeds {sorted(first.scores)} of {first.name} and {sorted(fold.scores)} of '
                             f'{fold.name}, expected every seed on every fold')
    return sorted(first.scores)


def _pooled(folds: tuple[Fold, ...], seeds: list[int]) -> np.ndarray:
    """Scores of all folds, [s n c]."""
    return np.stack([np.concatenate([fold.scores[seed] for fold in folds]) for seed in seeds])


def _metrics(figures, items, groups, fold_of, samples: int, seed: int) -> dict[str, dict[str, Any]]:
    """The rows of the comparison, by metric. items: the sums of both systems, leaves [s n ...]."""
    systems = [significance.add_by(sums, groups) for sums in items]
    by_seed = [significance.by_seed(figures, system) for system in systems]
    by_run = [_by_run(figures, sums, fold_of) for sums in items]
    intervals = significance.bootstrap(figures, *systems, samples=samples, seed=seed)
    p = significance.paired_permutation(figures, *systems, samples=samples, seed=seed)
    return {name: {
        'a': _spread(by_seed[0][name]), 'b': _spread(by_seed[1][name]),
        'difference': interval.value, 'low': interval.low, 'high': interval.high, 'p': p[name],
        'wilcoxon': significance.wilcoxon(by_run[0][name], by_run[1][name])._asdict(),
    } for name, interval in intervals.items()}


def _by_run(figures, sums, fold_of) -> dict[str, np.ndarray]:
    """Figures of every seed on every fold, as if each were a seed of its own."""
    runs = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), significance.add_by(sums, fold_of))
    return significance.by_seed(figures, runs)


def _spread(values: np.ndarray) -> dict[str, float]:
    spread = significance.summary(values)
    return {'mean': spread.mean, 'sd': spread.sd}


def _about(system: System) -> dict[str, Any]:
    return {'run': str(system.folder), 'model': system.model, 'runs': system.runs}


def _caption(result: dict[str, Any]) -> str:
    return (f'{result["target"]} of {result["items"]} test items in {result["groups"]} groups; folds: '
            f'{len(result["folds"])}, seeds: {len(result["seeds"])}; ± is over seeds, interval and p over groups')


def _tests(result: dict[str, Any]) -> list[str]:
    """One line for each of the other tests."""
    lines = []
    if 'mcnemar' in result:
        test = result['mcnemar']
        lines.append(f'McNemar, majority of seeds: only A right {test["only_a"]}, only B right {test["only_b"]}, '
                     f'p: {_p(test["p"])}')
    name, row = next(iter(result['metrics'].items()))
    test = row['wilcoxon']
    weak = '' if test['enough'] else f' (too few pairs: at best {_number(test["least_p"])})'
    lines.append(f'Wilcoxon over runs, {name}: {test["pairs"]} pairs that differ, p: {_p(test["p"])}{weak}')
    return lines


def _better(name: str, difference: float | None) -> str:
    if not difference:
        return '-'
    return 'A' if (difference > 0) != (name in LOWER) else 'B'


def _mean(spread: dict[str, float | None]) -> str:
    sd = spread['sd']
    return _number(spread['mean']) + ('' if sd is None else f' ± {sd:.4f}')


def _signed(value: float | None) -> str:
    return '-' if value is None else f'{value:+.4f}'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'


def _p(value: float | None) -> str:
    return '< 0.0001' if value is not None and value < 1e-4 else _number(value)


def _list(names: Iterable[str]) -> str:
    return ', '.join(sorted(names))

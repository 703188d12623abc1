"""Finished runs as a report compares them: the folds and seeds of one model as one system, with its intervals."""

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jmer import checkpoint, metrics, significance
from jmer.data.corpus import Target
from jmer.results.collect import Result, Side, collect, pooled, target_of
from jmer.results.plots import Band
from jmer.results.table import headline
from jmer.train.evaluate import metric_of

SAMPLES = 2000
"""Draws of the bootstrap, as for the intervals on published cards, which then are the same."""


class Experiment(NamedTuple):
    """The finished runs of one recipe on one target: folds and seeds. folder: the smallest that holds them all."""

    folder: Path
    corpus: str
    target: Target
    model: str
    results: Sequence[Result]


class System(NamedTuple):
    """An experiment as a report compares it with others on the same corpus and target.

    label: unique among them. lead: the metric that decides. bands: the figures of all test sides together with
    their intervals, those of a class as 'f1/angry'; {} where the seeds were not tested on the same items.
    robustness, contribution: what `jmer` measured of the runs, None for nothing.
    """

    label: str
    corpus: str
    target: Target
    lead: str
    results: Sequence[Result]
    bands: Mapping[str, Band]
    robustness: Mapping[str, Any] | None
    contribution: Mapping[str, Any] | None

    @property
    def cards(self) -> list[Mapping[str, Any]]:
        return [result.card for result in self.results]

    @property
    def tests(self) -> list[tuple[Result, Side]]:
        """The runs that have predictions of labelled test items, with these."""
        return _tests(self.results)

    def figures(self, side: str) -> list[Mapping[str, Any]]:
        """The metrics of every run that has some of this side."""
        return [card['metrics'][side] for card in self.cards if (card.get('metrics') or {}).get(side)]


def chapters(runs: Sequence[Path]) -> list[list[System]]:
    """The systems in these folders, those of one corpus and target together.

    A folder may hold the folds and seeds of several recipes; each recipe is a system of its own. Raises ValueError
    where a folder holds no finished run, a damaged one, or the same fold and seed of a recipe twice.
    """
    found: dict[tuple[str, Target], list[Experiment]] = {}
    for experiment in _experiments(runs):
        found.setdefault((experiment.corpus, experiment.target), []).append(experiment)
    return [_systems(found[key]) for key in sorted(found, key=lambda key: (key[0], key[1].name, key[1].names))]


def _experiments(runs: Sequence[Path]) -> list[Experiment]:
    if not runs:
        raise ValueError('runs: found none, expected at least one folder')
    found = []
    for folder in dict.fromkeys(Path(run) for run in runs):
        parts: dict[str, list[Result]] = {}
        for result in collect(folder):
            parts.setdefault(_recipe(result.card), []).append(result)
        found += [_experiment(results) for results in parts.values()]
    return found


def _recipe(card: Mapping[str, Any]) -> str:
    """All of the card that is the same in the folds and seeds of one experiment."""
    data = {key: value for key, value in card['data'].items() if key != 'protocol'}
    fields = {key: card.get(key) for key in ('corpus', 'target', 'model', 'fields', 'features', 'training')}
    return json.dumps({'data': data, **fields}, sort_keys=True)


def _experiment(results: Sequence[Result]) -> Experiment:
    card = results[0].card
    folder = Path(os.path.commonpath([result.folder for result in results]))
    experiment = Experiment(folder, card['corpus'], target_of(card), card['model'], results)
    _refuse_twice(experiment)
    return experiment


def _refuse_twice(experiment: Experiment) -> None:
    seen = set()
    for result in experiment.results:
        protocol, seed = result.card['data']['protocol'], result.card['seed']
        key = seed, protocol.get('seed'), tuple(protocol['test'])
        if key in seen:
            raise ValueError(f'{result.folder}: found a second run of seed {seed} on {"+".join(protocol["test"])}, '
                             f'expected the folds and seeds of one experiment in {experiment.folder}: name the '
                             'folders of several one by one')
        seen.add(key)


def _systems(members: Sequence[Experiment]) -> list[System]:
    lead = headline(members[0].results[0].card)
    return [System(label, one.corpus, one.target, lead, one.results, _bands(one.results, one.target),
                   _measured(one, 'robustness'), _measured(one, 'contribution'))
            for label, one in zip(_names(members), members, strict=True)]


def _names(members: Sequence[Experiment]) -> list[str]:
    """A label for each: the model's name; the folder's, or both, where that is not enough."""
    models = [one.model for one in members]
    folders = [one.folder.name for one in members]
    both = [f'{one.folder}: {one.model}' for one in members]
    return next(names for names in (models, folders, both) if len(set(names)) == len(members))


def _measured(experiment: Experiment, name: str) -> Mapping[str, Any] | None:
    """What `jmer` measured of the folder, or the mean of what it measured of its runs; None for nothing."""
    places = (experiment.folder, *(result.folder for result in experiment.results))
    paths = [path for place in places if (path := place / f'{name}.json').exists()]
    found = [checkpoint.read_json(path) for path in paths]
    found = [one for one in found if one.get('model', experiment.model) == experiment.model]
    if not found:
        return None
    used = found[:1] if paths[0].parent == experiment.folder else found
    try:
        whole = _mean(used)
    except ValueError as fault:
        raise ValueError(f'{experiment.folder}: {name}.json of its runs: {fault}') from None
    sums = {key: sum(one[key] for one in used) for key in ('n', 'items', 'seen_in_training') if key in whole}
    return {**whole, **sums, 'trace': max(one.get('trace') or 0.0 for one in used), 'runs': len(used)}


def _mean(values: Sequence[Any]) -> Any:
    """The mean of every number in JSON values of one form; the first of what is no number."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _mean([value[key] for value in values]) for key in first if all(key in v for v in values)}
    if isinstance(first, list):
        if len({len(value) for value in values}) > 1:
            raise ValueError('found lists of different lengths, expected the same measurements; measure all again')
        return [_mean(column) for column in zip(*values, strict=True)]
    numbers = [value for value in values if isinstance(value, int | float)]
    return statistics.fmean(numbers) if numbers else first


def _tests(results: Iterable[Result]) -> list[tuple[Result, Side]]:
    """The runs that have predictions of labelled test items, with these."""
    return [(result, side) for result in results if (side := result.sides.get('test')) is not None and len(side.ids)]


def _bands(results: Sequence[Result], target: Target) -> dict[str, Band]:
    """Figures of all test items with bootstrap intervals, averaged over the seeds."""
    test = pooled(results)
    if test is None:
        return {}
    metric = metric_of(target)

    def figures(state):
        each = {} if target.kind == 'distribution' else metrics.per_class(state)
        return metric.compute(state) | {f'{figure}/{name}': value for figure, values in each.items()
                                        for name, value in zip(target.names, values, strict=True)}

    sums = significance.add_by(significance.item_sums(metric, target.kind, test.scores, test.truth), test.groups)
    found = significance.bootstrap(figures, sums, samples=SAMPLES)
    return {name: Band(*interval) for name, interval in found.items()}

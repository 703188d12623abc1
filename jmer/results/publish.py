"""From finished runs to what others get: weights, and a card with the figures of all folds and seeds."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jmer import checkpoint, pretrained, significance
from jmer.data.corpus import Target
from jmer.results.collect import Result, Side, collect, logged, pooled, target_of
from jmer.train.evaluate import metric_of, no_nan


def publish(run: str, folder: Path, results: Iterable[Path], store: str) -> dict[str, Any]:
    """Publishes a run's weights; the card gains the test results of all runs of the recipe in `results`.

    store: see `checkpoint.publish`; 'none' writes the card and no weights.
    Raises ValueError where a run differs in more than its protocol and seed, or has no test result.
    """
    _, variables, card = pretrained.load_trained(run)
    card = {key: value for key, value in card.items() if key not in ('params_sha256', 'stored_as')}
    others = [result for place in results for result in collect(place)]
    for other in others:
        if _recipe(other.card) != _recipe(card):
            raise ValueError(f'{other.folder}: found another recipe than that of {run}')
        if 'test' not in other.card['metrics']:
            raise ValueError(f'{other.folder}: found no test result on its card')
    if others:
        card |= summary(others)
    if store == 'none':
        # What is of use beside weights alone, and is most of a card.
        card = {key: value for key, value in card.items() if key not in ('standardisation', 'groups')}
        checkpoint.write_json(folder / 'card.json', card)
        return checkpoint.plain(card)
    return checkpoint.publish(folder, variables, card, store)


def summary(runs: Sequence[Result]) -> dict[str, Any]:
    """What several runs of a recipe say together, for a card.

    'results': one entry a run; 'mean', 'deviation' (of more than one) over them; 'interval': 95 %, bootstrap over the
    groups of all test sides, and 'ensemble': the seeds' mean scores taken as one system (both where all seeds were
    tested on the same items); 'cost': as they were measured in training.
    """
    entries = [_entry(run) for run in runs]
    names = [name for name in runs[0].card['metrics']['test']
             if name != 'n' and all(isinstance(one.get(name), float) for one in entries)]
    found: dict[str, Any] = {'results': entries}
    found['mean'] = {k: statistics.fmean(one[k] for one in entries) for k in names}
    if len(runs) > 1:
        found['deviation'] = {k: statistics.stdev(one[k] for one in entries) for k in names}
    test = pooled(runs)
    if test is not None:
        found |= _together(test, target_of(runs[0].card))
    if all('cost' in run.card for run in runs):
        found['cost'] = {**runs[0].card['cost'], 'ms_per_step': logged(runs, 'time/ms_per_step'),
                         'peak_bytes': logged(runs, 'memory/peak_bytes')}
    return found


def _entry(run: Result) -> dict[str, Any]:
    card = run.card
    entry = {'command': card['command'], 'test': card['data']['protocol']['test'], 'seed': card['seed'],
             **card['metrics']['test']}
    for field in ('per_class', 'test_selected'):
        entry |= {field: card[field]} if field in card else {}
    return entry


def _together(test: Side, target: Target) -> dict[str, dict[str, Any]]:
    """Of every metric over the items of all folds: the interval, seeds averaged; the seeds as an ensemble."""
    metric = metric_of(target)
    sums = significance.item_sums(metric, target.kind, test.scores, test.truth)
    found = significance.bootstrap(metric.compute, significance.add_by(sums, test.groups))
    interval = {name: [one.low, one.high] for name, one in found.items() if np.isfinite(one).all()}
    mean = significance.item_sums(metric, target.kind, test.scores.mean(0, keepdims=True), test.truth)
    ensemble = {name: float(one[0]) for name, one in significance.by_seed(metric.compute, mean).items()}
    return {'interval': interval, 'ensemble': no_nan(ensemble)}


def _recipe(card: dict[str, Any]) -> dict[str, Any]:
    data = {key: value for key, value in card['data'].items() if key != 'protocol'}
    return {'data': data, **{key: card[key] for key in ('model', 'fields', 'features', 'training')}}

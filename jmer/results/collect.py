"""What runs leave behind, read back: one `Result` for every fold and seed of an experiment.

A finished run is a folder with `weights/card.json`, `predictions.npz` and `log.jsonl`; an experiment over
folds or seeds is a folder of such folders. Every comparison, figure and report starts here.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jmer import checkpoint
from jmer.data.corpus import Target
from jmer.train import log, predictions
from jmer.train.predictions import Side

__all__ = ['Result', 'Side', 'collect', 'logged', 'pooled', 'target_of']


class Result(NamedTuple):
    """One trained model: where it lies, its card, the lines of its log, its predictions by side."""

    folder: Path
    card: dict[str, Any]
    log: list[dict[str, Any]]
    sides: dict[str, Side]


def collect(folder: Path) -> list[Result]:
    """All finished runs in a folder, itself included, in the order of their names.

    Raises ValueError where there is none, or where a file of one is damaged.
    """
    cards = sorted(Path(folder).glob('**/weights/card.json'))
    if not cards:
        raise ValueError(f'{folder}: found no finished run (no weights/card.json in it or below)')
    return [_read(card.parent.parent) for card in cards]


def _read(folder: Path) -> Result:
    card = checkpoint.read_json(folder / 'weights' / 'card.json')
    return Result(folder, card, log.read(folder / 'log.jsonl'), predictions.read(folder / 'predictions.npz'))


def target_of(card: Mapping[str, Any]) -> Target:
    """The target that a card names."""
    return Target(card['target']['name'], card['target']['kind'], tuple(card['target']['names']))


def logged(results: Sequence[Result], key: str) -> float | None:
    """The median of a figure over the logs, without their first lines, whose steps were compiled as well."""
    found = [line[key] for result in results for line in result.log[1:] if line.get(key) is not None]
    return float(statistics.median(found)) if found else None


def pooled(results: Sequence[Result]) -> Side | None:
    """The test items of all folds as one side, sorted by id, with scores of every seed: [s n c].

    None where there are none, or the seeds were not tested on the same items.
    """
    by_seed: dict[int, list[Side]] = {}
    for result in results:
        if 'test' in result.sides and len(result.sides['test'].ids):
            by_seed.setdefault(result.card['seed'], []).append(result.sides['test'])
    sides = [_joined(parts) for parts in by_seed.values()]
    if not sides or any(len(set(side.ids)) < len(side.ids) or not np.array_equal(side.ids, sides[0].ids)
                        for side in sides):
        return None
    return sides[0]._replace(scores=np.stack([side.scores for side in sides]))


def _joined(sides: Sequence[Side]) -> Side:
    """Several sides as one, sorted by id."""
    whole = Side(*(np.concatenate(fields) for fields in zip(*sides, strict=True)))
    order = np.argsort(whole.ids, kind='stable')
    return Side(*(values[order] for values in whole))

"""What runs leave behind, read back: one `Result` for every fold and seed of an experiment.

A finished run is a folder with `weights/card.json`, `predictions.npz` and `log.jsonl`; an experiment over
folds or seeds is a folder of such folders. Every comparison, figure and report starts here.
"""

from pathlib import Path
from typing import Any, NamedTuple

from jmer import checkpoint
from jmer.train import log, predictions
from jmer.train.predictions import Side

__all__ = ['Result', 'Side', 'collect']


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

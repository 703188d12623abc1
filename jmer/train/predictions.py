"""Predictions on disk: what a finished run said of its validation and test sides, in one npz file."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jmer.train.evaluate import Prediction, is_labelled


class Side(NamedTuple):
    """The labelled predictions of one side of the splits.

    ids: of utterances or turns, [n]. groups: speaker, video or dialogue of each, [n].
    scores: probabilities, or values of a regression, float32 [n c].
    truth: class codes int32 [n], or float32 [n c].
    """

    ids: np.ndarray
    groups: np.ndarray
    scores: np.ndarray
    truth: np.ndarray


def side(predictions: Iterable[Prediction]) -> Side | None:
    """The predictions that have a label, as arrays; None where none has."""
    known = [p for p in predictions if p.truth is not None and is_labelled(p.truth)]
    if not known:
        return None
    truth = np.asarray([p.truth for p in known])
    return Side(np.array([p.id for p in known]), np.array([p.group for p in known]),
                np.asarray([p.scores for p in known], np.float32),
                truth.astype(np.int32 if truth.dtype.kind == 'i' else np.float32))


def write(path: Path, sides: Mapping[str, Side]) -> None:
    """Writes predictions in one move: a kill leaves the old file or the new one."""
    part = path.with_name(f'.{path.name}.part')
    arrays = {f'{name}/{field}': x for name, found in sides.items() for field, x in found._asdict().items()}
    with part.open('wb') as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    part.replace(path)


def read(path: Path) -> dict[str, Side]:
    """Predictions by side; none where there is no file. Raises ValueError for a damaged one."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            names = sorted({key.split('/')[0] for key in file})
            return {name: Side(*(file[f'{name}/{field}'] for field in Side._fields)) for name in names}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as fault:
        raise ValueError(f'{path}: damaged predictions: {fault}') from fault

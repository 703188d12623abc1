"""From an author's checkpoint to weights that `jmer.load` reads: `jmer import-author`.

The authors' file says nothing of the data, labels and preparation that its weights were made with, so the card of
an import says only what is known: the model, its fields, the file. Such weights can be loaded and applied to
batches of one's own; to evaluate them or to predict clips, jmer would have to guess.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jmer import author_files, checkpoint, zoo
from jmer.train.experiment import Data, Experiment, override
from jmer.types import Batch, Stream, Variables

UNKNOWN = ('training data', 'labels', 'preparation of the features', 'figures', 'licence')
"""What the card of an import cannot say."""


def import_author(
    name: str, path: str | os.PathLike, folder: str | os.PathLike, settings: Sequence[str] = (), key: str = ''
) -> dict[str, Any]:
    """Writes the authors' weights of a model as jmer's own, with a card; returns the card.

    name: of the model. settings: its fields where they differ from the defaults, 'classes=7'. path, key: the
    authors' file, as `author_files.read` takes them. folder: new or empty, or of an earlier import.
    Raises ValueError or OSError naming file and field; all tensors that are missing, misshapen or left over come
    in one message. Nothing is written then.
    """
    model, convert, folder = _model(name, settings), _converter(name), Path(folder)
    _refuse_foreign(folder)
    state = author_files.read(path, key)
    try:
        variables = convert({k: _as_float32(x) for k, x in state.items()}, model)
        widths = check(model, variables)
    except ValueError as fault:
        raise ValueError(f'{path}: {fault}') from fault
    with Path(path).open('rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    card = {
        'jmer': version('jmer'), **zoo.describe(model),
        'parameters': sum(x.size for x in jax.tree.leaves(variables['params'])),
        'imported': {'file': Path(path).name, 'sha256': sha256, 'key': key},
        'widths': widths, 'unknown': UNKNOWN,
    }
    return checkpoint.publish(folder, variables, card)


def _model(name: str, settings: Sequence[str]) -> nn.Module:
    """The model with these fields, parsed and refused as the options of an experiment."""
    required = {'classes': 0} if any(setting.startswith('classes=') for setting in settings) else {}
    blank = Experiment(zoo.create(name, **required), Data('', ()))
    return override(blank, [f'model.{setting}' for setting in settings]).model


def _converter(name: str) -> Callable[[dict[str, Any], nn.Module], Variables]:
    convert = getattr(zoo.module(name), 'params_from_author', None)
    if convert is None:
        raise ValueError(f'{name} has no published code whose checkpoints could be read')
    return convert


def _refuse_foreign(folder: Path) -> None:
    """Raises ValueError where the folder holds something that no import wrote."""
    card = folder / 'card.json'
    theirs = card.is_file() and 'imported' in checkpoint.read_json(card)
    if folder.exists() and not theirs and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f'{folder}: found something there that is no import, expected a new or empty folder')


def _as_float32(x: np.ndarray) -> np.ndarray:
    with np.errstate(over='ignore'):      # what overflows is refused, by name, when it is written
        return x.astype(np.float32, copy=False) if jnp.issubdtype(x.dtype, jnp.floating) else x


def check(model: nn.Module, variables: Variables) -> dict[str, int]:
    """The widths of the streams, as far as the weights show them.

    Raises ValueError naming every leaf that is not what the model would have made for streams of these widths.
    Which sizes hang on widths is found by asking the model, without computing anything, for streams of widths
    that occur nowhere else; a size that hangs on several at once is left unchecked.
    """
    found = _kinds(variables)
    first, second = (_probe(model, start) for start in (1009, 2003))
    if first is None or second is None:
        return _floats(found)
    names = {width: name for name, width in _widths(model, 1009).items()}
    widths = {names[n]: m for leaf in first if leaf in found and len(first[leaf][0]) == len(found[leaf][0])
              for n, m in zip(first[leaf][0], found[leaf][0], strict=True) if n in names}
    expected, other = _probe(model, 1009, widths), _probe(model, 2003, widths)
    assert expected is not None and other is not None
    faults = [f'{leaf}: found {found.get(leaf, "nothing")}, expected {expected.get(leaf, "nothing")}'
              for leaf in sorted({*expected, *found}) if not _fits(leaf, found, expected, other)]
    if faults:
        raise ValueError('the weights do not fit the model:\n  ' + '\n  '.join(faults))
    return widths

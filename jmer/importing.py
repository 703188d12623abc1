"""From an author's checkpoint to weights that `jmer.load` reads: `jmer import-author`.

The authors' file says nothing of the data, labels and preparation that its weights were made with, so the card of
an import says only what is known: the model, its fields, the file. Such weights can be loaded and applied to
batches of one's own; to evaluate them or to predict clips, jmer would have to guess.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

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
    # Settings are parsed into a model that is there: the one field without default gets a value, if it is set at all.
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
    """The widths of the model's streams, as far as the weights show them.

    Raises ValueError naming every leaf that is not as the model makes it for streams of these widths. Which sizes
    hang on widths is asked of the model, without computing anything, by streams of widths that occur nowhere else.
    A size that hangs on several is left unchecked, and all are where the model takes no such widths; a layer that
    hangs on a width that nothing shows may be absent, as some models project only what is not as wide as they are.
    """
    found, marks = _kinds(variables), dict(zip(_streams(model), MARKS, strict=False))
    marked = _made(model, marks)
    widths = _widths(found, marked, marks)
    others = dict(zip(marks, [*MARKS[1:], MARKS[0]], strict=False))
    expected = _agreed(_made(model, marks | widths), _made(model, others | widths))
    unseen = {mark for name, mark in marks.items() if name not in widths}
    optional = {_layer(leaf) for leaf, (shape, _) in marked.items() if unseen & set(shape)}
    faults = [f'{leaf}: found {_told(found.get(leaf))}, expected {_told(expected.get(leaf))}'
              for leaf in sorted({*expected, *found}) if leaf in found or _layer(leaf) not in optional
              if not _fits(found.get(leaf), expected.get(leaf))]
    if faults and expected:
        raise ValueError(f'{len(faults)} weights do not fit the model:\n  ' + '\n  '.join(faults))
    return widths


MARKS = [16 * 3 * prime for prime in (53, 59, 61, 67, 71, 73, 79, 83, 89, 97)]
"""Widths that can be split over heads and states; none is the sum of others."""

Kind = tuple[tuple[int | None, ...], str]
"""Shape and dtype of a leaf; None stands for any size."""


def _kinds(tree: Any) -> dict[str, Kind]:
    """The leaves by path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): (tuple(x.shape), x.dtype.name)
            for path, x in leaves}


def _layer(leaf: str) -> str:
    return leaf.rpartition('/')[0]


def _streams(model: nn.Module) -> tuple[str, ...]:
    """The names of the streams that a model usually looks for; others than these it may find missing."""
    own = (*getattr(model, 'streams', ()), getattr(model, 'stream', 'audio'))
    return tuple(dict.fromkeys(('text', 'audio', 'vision', *own)))


def _made(model: nn.Module, widths: Mapping[str, int]) -> dict[str, Kind]:
    """The variables that the model makes for streams of these widths; none where it cannot take them."""
    items = (2, 6) if zoo.family(zoo.name_of(model)) == 'dialogue' else (2,)

    def init():
        streams = {name: Stream(jnp.zeros((2, 6, d)), jnp.ones((2, 6), bool)) for name, d in widths.items()}
        speakers = jnp.zeros(items, int) if len(items) == 2 else None
        return model.init(jax.random.key(0), Batch(streams, jnp.ones(items, bool), {}, speakers), train=False)

    try:
        return _kinds(jax.eval_shape(init))
    except (ValueError, TypeError, KeyError, FlaxError):
        return {}


def _agreed(one: Mapping[str, Kind], other: Mapping[str, Kind]) -> dict[str, Kind]:
    """What two makings have in common."""
    return {leaf: (tuple(n if n == m else None for n, m in zip(shape, other[leaf][0], strict=True)), dtype)
            for leaf, (shape, dtype) in one.items() if leaf in other}


def _widths(found: Mapping[str, Kind], marked: Mapping[str, Kind], marks: Mapping[str, int]) -> dict[str, int]:
    """What stands in the weights where the model has a marked width."""
    names: dict[int | None, str] = {mark: name for name, mark in marks.items()}
    return {names[mark]: n for leaf, (shape, _) in marked.items() if leaf in found and len(found[leaf][0]) == len(shape)
            for mark, n in zip(shape, found[leaf][0], strict=True) if mark in names and n is not None}


def _fits(found: Kind | None, expected: Kind | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return (found[1] == expected[1] and len(found[0]) == len(expected[0])
            and all(m in (None, n) for n, m in zip(found[0], expected[0], strict=True)))


def _told(kind: Kind | None) -> str:
    return 'nothing' if kind is None else f'{kind[1]} {str(kind[0]).replace("None", "any")}'

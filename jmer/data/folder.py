"""A corpus folder on disk: what lies in it, and its csv and npz files read with errors that say where.

Readers of corpora report through two callables: `fault` for what makes a corpus unusable, `note`
for what its user should know. Loading refuses at the first fault; `jmer data check` collects them
all.
"""

import csv
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

Tell = Callable[[str], None]


def refuse(message: str) -> None:
    """The strict `fault`."""
    raise ValueError(message)


def ignore(message: str) -> None:
    """The silent `note`."""


def present(root: Path, tree: str) -> None:
    """Raises FileNotFoundError, showing the expected tree, where a folder is missing or empty."""
    if not root.is_dir():
        raise missing(root, 'there is no such folder', tree)
    if not files(root):
        raise missing(root, 'the folder is empty', tree)


def missing(root: Path, complaint: str, tree: str) -> FileNotFoundError:
    """The error for a folder that does not hold a corpus."""
    return FileNotFoundError(f'{root}: {complaint}. Expected:\n{tree.strip()}')


def files(root: Path) -> list[Path]:
    """All files under a folder, sorted; links are followed, each folder is entered once."""
    found, entered = [], set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            inner.clear()
            continue
        entered.add(real)
        found += [Path(folder, name) for name in names]
    return sorted(path for path in found if path.is_file())


def arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Some arrays of an npz file, or all. Raises ValueError where one is absent or holds Python objects."""
    try:
        # Opened here, since NumPy leaves the file open where it is no archive.
        with path.open('rb') as file, np.load(file, allow_pickle=False) as archive:
            names = archive.files if names is None else names
            lacking = [name for name in names if name not in archive.files]
            if lacking:
                raise ValueError(f'it lacks {", ".join(lacking)}; found {", ".join(archive.files)}')
            return {name: archive[name] for name in names}
    except (ValueError, OSError, EOFError, TypeError, AttributeError,
            zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'{path}: not the npz file that was expected: {error}') from error


def strings(path: Path, found: Mapping[str, np.ndarray], name: str) -> list[str]:
    """The strings that a file keeps as arrays `<name>_bytes`, in UTF-8, and `<name>_offsets`. Errors as `bounds`."""
    text, array = found[f'{name}_bytes'].astype(np.uint8).tobytes(), f'{name}_offsets'
    ends = bounds(path, array, found[array], len(text))
    try:
        return [text[start:stop].decode() for start, stop in pairwise(ends)]
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: array {name}_bytes: no UTF-8 where {array} cuts it: {error}') from error


def bounds(path: Path, name: str, offsets: np.ndarray, end: int) -> list[int]:
    """Where the pieces of an array of `end` rows begin, and where the last one ends.

    Raises ValueError where offsets do not rise from 0 to `end`.
    """
    whole = offsets.ndim == 1 and offsets.dtype.kind in 'iu' and len(offsets)
    # As signed numbers: differences of unsigned ones are never negative.
    if not whole or offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise ValueError(f'{path}: array {name}: expected increasing numbers from 0 to {end}')
    return offsets.tolist()


def table(
    path: Path, columns: Sequence[str], fault: Tell = refuse
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Line number and fields (by column, stripped) of each row of a csv file in UTF-8.

    Raises ValueError naming the columns that are missing; tells `fault` of rows of another length.
    """
    try:
        with path.open(encoding='utf-8-sig', newline='') as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            lacking = [name for name in columns if name not in header]
            if lacking:
                raise ValueError(f'{path}: lacks the columns {", ".join(lacking)}; '
                                 f'found {", ".join(header) or "nothing"}')
            for row in reader:
                if len(row) == len(header):
                    fields = zip(header, row, strict=True)
                    yield reader.line_num, {name: field.strip() for name, field in fields}
                elif row:
                    fault(f'{path}: line {reader.line_num}: found {len(row)} fields, '
                          f'expected {len(header)}')
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: cannot be read as csv in UTF-8: {error}') from error

"""Training states and published weights on disk; the only file that imports Orbax.

A run keeps its states under `<workdir>/checkpoints`:

    run.json             the mark of a run
    1200/                one state: an Orbax checkpoint of flat names, and seal.json
    1300.part...         a save under way, or cut off; removed by the next process that saves
    1100.torn            found damaged and moved out of the way of a new save; never removed

Published weights are a folder with `card.json` and `params/` (an Orbax checkpoint and its seal.json).

The seal lists every file with size and SHA-256 and is written last, before one atomic rename gives the
folder its name. So whatever stops a save (a crash, `kill -9`, a full disk) leaves no folder of that name,
and damage done later is seen before Orbax reads a byte; Orbax itself lets changed bytes, missing metadata
and wrong dtypes pass.

All arrays are stored as host arrays. They are read back on any number of devices or processes.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jmer import parallel
from jmer.types import Variables

RUN_FORMAT = 'jmer run 2'
SEAL = 'seal.json'
STORES = 'float32', 'float16', 'bfloat16'
FILE_SIZE = 3 << 20
"""Bytes after which Orbax begins a new data file. It overshoots by a chunk or so; hosts of git
repositories and reviewers are comfortable below 5 MB."""


class Run:
    """The saved states of one training run.

    workdir: of the run; states go to `<workdir>/checkpoints`.
    write: a process that trains makes the folder; others open an existing run for reading.
    keep: how many of the newest states are kept; None keeps all.

    Raises FileNotFoundError where there is no run to read, ValueError where the folder belongs to
    something else. With several processes, all make the same calls.
    """

    def __init__(self, workdir: str | os.PathLike, write: bool = False, *, keep: int | None = 2):
        if keep is not None and keep < 1:
            raise ValueError(f'keep: found {keep}, expected at least 1')
        self.folder = Path(workdir).absolute() / 'checkpoints'
        self._keep = keep
        self._writer = ThreadPoolExecutor(1, 'jmer checkpoint') if write else None
        self._pending: Future[None] | None = None
        self._torn: set[int] = set()
        self._sound: set[int] = set()
        found = _mark(self.folder)
        if found is None and not write:
            raise FileNotFoundError(f'{self.folder / "run.json"}: no such file; '
                                    'is this the workdir of a run?')
        if found is None and parallel.is_main_process():
            write_json(self.folder / 'run.json', {'format': RUN_FORMAT})

    def __enter__(self) -> 'Run':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def save(self, step: int, state: Any, metrics: Mapping[str, float]) -> None:
        """Saves in the background; `state` is copied first and may be donated at once.

        state: any pytree of arrays, NumPy scalars and Python numbers. metrics: kept beside it.
        Raises FileExistsError where the step is there and sound; OSError where this or the save before
        it failed, with the cause, for example a full disk. What was saved before stays.
        """
        if self._writer is None:
            raise ValueError(f'{self.folder}: opened for reading; open it with write=True to save')
        self.wait()
        leaves = _host(state)
        note = {'step': step, 'metrics': {k: _finite(v) for k, v in metrics.items()}}
        if parallel.is_main_process():
            self._make_way(step)
        with self._reporting(step):
            written = _begin(self._part(step), leaves)
        self._pending = self._writer.submit(self._finish, step, written, leaves, note)

    def wait(self) -> None:
        """Returns when the last save is on disk. Raises OSError if it failed."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        finally:
            if self._writer is not None:
                meet()

    def close(self) -> None:
        """Waits for the last save; raises OSError if it failed."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def steps(self) -> list[int]:
        """The steps saved, ascending, without those already found damaged."""
        self.wait()
        return self._steps()

    def _steps(self) -> list[int]:
        names = [p.name for p in self.folder.iterdir() if p.is_dir()] if self.folder.is_dir() else []
        return sorted({int(n) for n in names if n.isdecimal()} - self._torn)

    def latest(self) -> int | None:
        """The newest sound step, or None. Warns of each damaged one that it passes over."""
        return next((s for s in reversed(self.steps()) if self._is_sound(s)), None)

    def metrics(self, step: int) -> dict[str, float | None]:
        """What was measured at `step`; None stands for NaN and infinities."""
        self.wait()
        return self._check(step)['metrics']

    def restore(self, step: int, abstract_state: Any, partial: bool = False) -> Any:
        """The state of `step`, exact to the bit, in the structure of `abstract_state`.

        abstract_state: leaves are `jax.ShapeDtypeStruct`s or arrays; what has a sharding is put there,
            NumPy arrays and Python numbers come back as such.
        partial: let the checkpoint hold more, as when only `{'params': ...}` is wanted.
        Raises FileNotFoundError where there is no such step, ValueError where it is damaged, or naming
        every leaf whose dtype or shape differs or that only one side has.
        """
        self.wait()
        note = self._check(step)
        expected = _named(abstract_state)
        _compare(self._at(step), note['leaves'], expected, partial)
        saved = _load(self._at(step))
        leaves = [_place(saved[name], leaf) for name, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)

    def read(self, step: int, under: str) -> dict[str, np.ndarray]:
        """All leaves of `step` whose names begin with `under`/, by the rest of their names.

        For looking at a run without knowing its model. Errors as `restore`.
        """
        self.wait()
        self._check(step)
        leaves = _load(self._at(step)).items()
        return {name.removeprefix(f'{under}/'): x for name, x in leaves if name.startswith(f'{under}/')}

    def _at(self, step: int) -> Path:
        return self.folder / str(step)

    def _part(self, step: int) -> Path:
        return self.folder / f'{step}.part'

    def _check(self, step: int) -> dict[str, Any]:
        """The note in the seal of a sound step."""
        if not self._at(step).is_dir():
            raise FileNotFoundError(f'{self.folder}: found steps {self._steps()}, expected {step}')
        return _sealed(self._at(step), check=step not in self._sound)

    def _is_sound(self, step: int) -> bool:
        try:
            self._check(step)
        except (OSError, ValueError) as fault:
            warnings.warn(f'skipping a damaged checkpoint: {fault}', stacklevel=3)
            self._torn.add(step)
            return False
        self._sound.add(step)
        return True

    def _make_way(self, step: int) -> None:
        """Clears the leftovers of saves cut off, and moves a damaged folder of this step away.

        A sound one is an error.
        """
        _remove(self.folder, '*.part*')
        place = self._at(step)
        if not place.exists():
            return
        if step not in self._torn and self._is_sound(step):
            raise FileExistsError(f'{place}: step {step} is saved already, nothing was overwritten')
        place.rename(_unused(place.with_name(f'{step}.torn')))
        self._torn.discard(step)

    def _finish(self, step: int, written: Callable[[], None], leaves: dict[str, np.ndarray],
                note: dict[str, Any]) -> None:
        """Runs in the background: all processes wait for Orbax, the main one makes the step valid."""
        with self._reporting(step):
            with _hushed():
                written()
            if parallel.is_main_process():
                _seal(self._part(step), leaves, note)
                self._part(step).rename(self._at(step))
        if parallel.is_main_process():
            self._sound.add(step)
            if self._keep is not None:
                self._prune(self._keep)

    @contextlib.contextmanager
    def _reporting(self, step: int) -> Iterator[None]:
        """Names folder and step in any fault of a save, and removes what it left."""
        try:
            yield
        except Exception as fault:
            if parallel.is_main_process():
                _remove(self.folder, '*.part*')
            raise _failure(f'{self.folder}: could not save step {step}', fault,
                           f'the steps saved before are intact: {self._steps()}') from fault

    def _prune(self, keep: int) -> None:
        for step in self._steps()[:-keep]:
            # Renamed first: a removal that is cut off must not leave half a checkpoint under its name.
            self._at(step).rename(self.folder / f'{step}.part.old')
            _remove(self.folder, f'{step}.part.old')


def publish(folder: str | os.PathLike, variables: Variables, card: Mapping[str, Any],
            store: str = 'float32') -> dict[str, Any]:
    """Writes weights and card for others to use; returns the card as written.

    variables: nested dicts of arrays, {'params': ...} and what the model keeps beside them.
    card: JSON; 'params_sha256' (the fingerprint of what `load` gives) and 'stored_as' are added.
    store: what floats are stored as: 'float32', 'float16' or 'bfloat16'; `load` always gives float32.

    Weights that are there already are left as they are, so that a repeated run changes no file.
    With several processes, all call it, on one file system; the main one writes.
    Raises ValueError where a leaf is not finite, overflows `store` or is no array of a usual type.
    """
    if store not in STORES:
        raise ValueError(f'store: found {store!r}, expected one of {", ".join(STORES)}')
    for path, _ in jax.tree_util.tree_flatten_with_path(variables)[0]:
        if not all(isinstance(getattr(key, 'key', None), str) and '/' not in key.key for key in path):
            raise ValueError(f'variables{jax.tree_util.keystr(path)}: expected nested dicts, '
                             "names as keys, no '/' in them")
    folder = Path(folder).absolute()
    stored = {name: _storable(name, x, store) for name, x in _host(variables).items()}
    sha256 = fingerprint({name: _as_loaded(x) for name, x in stored.items()})
    card = {**card, 'params_sha256': sha256, 'stored_as': store}
    if _published(folder) != (sha256, store):
        _replace_params(folder, stored, {'params_sha256': sha256, 'stored_as': store})
    if parallel.is_main_process() and _card(folder) != plain(card):
        write_json(folder / 'card.json', card)
    meet()
    return plain(card)


def _card(folder: Path) -> Any:
    """The card that stands there readable, or None."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(folder / 'card.json')
    return None


def _published(folder: Path) -> tuple[str, str] | None:
    """Fingerprint and storage type of the weights that stand there sound, if any do."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        seal = _sealed(folder / 'params')
        return seal['params_sha256'], seal['stored_as']
    return None


def _replace_params(folder: Path, stored: Mapping[str, np.ndarray], note: Mapping[str, Any]) -> None:
    main, part = parallel.is_main_process(), folder / 'params.part'
    if main:
        _remove(folder, 'params.*')
    try:
        with _hushed():
            _begin(part, stored)()
        if main:
            _seal(part, stored, note)
    except Exception as fault:
        _remove(folder, 'params.*')
        raise _failure(f'{folder}: could not write params', fault, 'nothing was changed') from fault
    if main:
        if (folder / 'params').exists():
            (folder / 'params').rename(folder / 'params.old')
        part.rename(folder / 'params')
        _remove(folder, 'params.old')


def load(folder: str | os.PathLike) -> tuple[Variables, dict[str, Any]]:
    """Published weights and their card; floats as float32 NumPy arrays.

    Raises FileNotFoundError where card or params are missing, ValueError where a file is damaged or the
    weights are not those of the card; both name the file.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder}: no such folder; published weights are card.json and params/')
    card = read_json(folder / 'card.json')
    if not isinstance(card, dict) or 'params_sha256' not in card:
        raise ValueError(f"{folder / 'card.json'}: no field 'params_sha256', "
                         'so this is not the card of weights')
    _sealed(folder / 'params')
    leaves = {name: _as_loaded(x) for name, x in _load(folder / 'params').items()}
    found = fingerprint(leaves)
    if found != card['params_sha256']:
        raise ValueError(f'{folder / "params"}: found weights with fingerprint {found}, expected '
                         f"{card['params_sha256']}, the card's params_sha256; card and weights are of "
                         'different versions: fetch or publish both again')
    return _nested(leaves), card


def fingerprint(variables: Variables) -> str:
    """SHA-256, in hexadecimal, over the names, dtypes, shapes and bytes of all leaves, sorted by name."""
    sha256 = hashlib.sha256()
    for name, x in sorted(_host(variables).items()):
        sha256.update(f'{name}\0{x.dtype.name}\0{list(x.shape)}\0'.encode())
        sha256.update(x.tobytes())
    return sha256.hexdigest()


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all; makes the folder. NumPy scalars and arrays may be in it.

    Raises ValueError naming the file where the value has no JSON (NaN, objects), OSError likewise.
    """
    path = Path(path)
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_as_json) + '\n'
    except (TypeError, ValueError) as fault:
        raise ValueError(f'{path}: cannot be written as JSON: {fault}') from fault
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with open(handle, 'w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)      # mkstemp's 0600 would shut out those a run folder is shared with
        os.replace(part, path)
    except OSError as fault:
        raise OSError(fault.errno, f'{path}: could not be written: {fault.strerror}') from fault
    finally:
        Path(part).unlink(missing_ok=True)


def read_json(path: str | os.PathLike) -> Any:
    """Raises FileNotFoundError or ValueError naming the file, and where in it the fault is."""
    path = Path(path)
    try:
        return json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise FileNotFoundError(f'{path}: no such file') from None
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise ValueError(f'{path}: not valid JSON: {fault}') from fault


def _as_json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f'{type(value).__name__} {value!r} has no JSON')


def plain(value: Any) -> Any:
    """`value` as it will be read back: tuples as lists, NumPy numbers as numbers."""
    return json.loads(json.dumps(value, default=_as_json))


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by path, 'params/dense/kernel'."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}
    if len(leaves) != len(paths):
        raise ValueError(f'two leaves of one name among {sorted(leaves)}')
    return leaves


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, x in leaves.items():
        *path, last = name.split('/')
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = x
    return tree


def _host(tree: Any) -> dict[str, np.ndarray]:
    """Host copies of the leaves by path. Copies, as a donated buffer may change while a save runs."""
    arrays = {}
    for name, x in _named(tree).items():
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        arrays[name] = np.zeros(0, object) if is_key else np.array(parallel.fetch(x), order='C')
        if arrays[name].dtype.kind not in 'biufcV':      # V: bfloat16 and its kin
            raise ValueError(f'{name}: found {type(x).__name__}, expected an array or a number'
                             + ('; random keys are folded from the step, not stored' if is_key else ''))
    return arrays


def _storable(name: str, x: np.ndarray, store: str) -> np.ndarray:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if x.dtype.itemsize > 4:
        raise ValueError(f'{name}: found {x.dtype.name}, expected float32 or smaller')
    with np.errstate(over='ignore'):
        stored = x.astype(jnp.dtype(store))
    if not np.isfinite(stored.astype(np.float32)).all():
        raise ValueError(f'{name}: not finite when stored as {store}; the largest finite magnitude is '
                         f'{np.abs(x[np.isfinite(x)]).max(initial=0)}')
    return stored


def _as_loaded(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _compare(place: Path, found: Mapping[str, str], expected: Mapping[str, Any], partial: bool) -> None:
    """Raises ValueError naming every leaf in which the saved state differs from the expected one."""
    faults = []
    for name in sorted({*found, *expected}):
        if name not in expected:
            faults += [] if partial else [f'surplus  {name}: found {found[name]}']
        elif name not in found:
            faults.append(f'missing  {name}: expected {_kind(expected[name])}')
        elif found[name] != _kind(expected[name]):
            faults.append(f'differs  {name}: found {found[name]}, expected {_kind(expected[name])}')
    if faults:
        raise ValueError(f'{place}: not a state of this model and optimiser, {len(faults)} leaves differ:\n  '
                         + '\n  '.join(faults))


def _kind(leaf: Any) -> str:
    """'float32[3,4]'"""
    leaf = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
    return f'{leaf.dtype.name}[{",".join(map(str, leaf.shape))}]'


def _empty(kind: str) -> np.ndarray:
    dtype, shape = kind.rstrip(']').split('[')
    return np.zeros([int(n) for n in shape.split(',')], jnp.dtype(dtype))


def _place(x: np.ndarray, leaf: Any) -> Any:
    """`x` as the kind of thing `leaf` is, where `leaf` is."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        if leaf.sharding is None:
            return jnp.asarray(x)
        return jax.make_array_from_callback(x.shape, leaf.sharding, lambda index: x[index])
    if isinstance(leaf, np.ndarray):
        return x
    return x[()] if isinstance(leaf, np.generic) else type(leaf)(x.item())


def _context() -> ocp.Context:
    context = ocp.Context()
    context.array_options.saving.ocdbt_target_data_file_size = FILE_SIZE
    context.array_options.saving.storage_options.chunk_byte_size = FILE_SIZE // 3
    context.memory_options.deepcopy_host_arrays = False       # `_host` made copies already
    return context


def _begin(folder: Path, leaves: Mapping[str, np.ndarray]) -> Callable[[], None]:
    """Starts to write `folder`, an Orbax checkpoint of flat names; zero-size leaves live in the seal.

    What it returns waits for the end of it, and raises what went wrong.

    Called on the main thread of every process: Orbax compares paths by a collective operation, which must
    not get in between those of a training step.
    """
    with _context(), _hushed():
        return ocp.save_async(folder, {name: x for name, x in leaves.items() if x.size}).result


def _seal(folder: Path, leaves: Mapping[str, np.ndarray], note: Mapping[str, Any]) -> None:
    """Records what a finished folder holds, file by file."""
    for mark in folder.rglob('commit_success.txt'):       # holds the machine's path and nothing else
        mark.unlink()
    files = {p.relative_to(folder).as_posix(): _sha256(p) for p in sorted(folder.rglob('*')) if p.is_file()}
    kinds = {name: _kind(x) for name, x in leaves.items()}
    write_json(folder / SEAL, {**note, 'leaves': kinds, 'files': files})


def _load(folder: Path) -> dict[str, np.ndarray]:
    """The leaves of a folder whose seal was checked."""
    with _context():
        leaves = ocp.load(folder)
    kinds = _sealed(folder, check=False)['leaves']
    return leaves | {name: _empty(kind) for name, kind in kinds.items() if name not in leaves}


def _sealed(folder: Path, check: bool = True) -> dict[str, Any]:
    """The seal of `folder`; with `check`, raises ValueError naming the first file that is not as sealed."""
    seal = read_json(folder / SEAL)
    if not isinstance(seal, dict) or not {'leaves', 'files'} <= set(seal):
        raise ValueError(f"{folder / SEAL}: no fields 'leaves' and 'files', "
                         'so this is not the seal of a checkpoint')
    for name, sha256 in seal['files'].items() if check else ():
        if not (folder / name).is_file():
            raise ValueError(f'{folder / name}: damaged checkpoint: the file is missing')
        if _sha256(folder / name) != sha256:
            raise ValueError(f'{folder / name}: damaged checkpoint: not the bytes that were written')
    return seal


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _mark(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None where the folder is new. Raises ValueError where it is somebody else's."""
    if not (folder / 'run.json').exists():
        names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        if any(not name.startswith('.') for name in names):
            raise ValueError(f'{folder}: found {names[:5]} and no run.json, so this folder belongs to '
                             'something else; choose another workdir, nothing was changed')
        return None
    mark = read_json(folder / 'run.json')
    if not isinstance(mark, dict) or mark.get('format') != RUN_FORMAT:
        raise ValueError(f"{folder / 'run.json'}: found {mark}, expected the field 'format' "
                         f'to be {RUN_FORMAT!r}')
    return mark


def meet() -> None:
    """Returns when all processes are here, and see what the main one wrote before it came."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices('jmer checkpoint')


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _unused(path: Path) -> Path:
    """`path`, or `path` with a number where that is taken."""
    paths = (path.with_name(f'{path.name}{n or ""}') for n in itertools.count())
    return next(p for p in paths if not p.exists())


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        shutil.rmtree(path, ignore_errors=True)


def _failure(what: str, fault: Exception, after: str) -> OSError:
    """An OSError with the system's error number, where there is one in the pages that storage wraps it in."""
    code = getattr(fault, 'errno', None) or next(iter(re.findall(r"os_error_code='?(\d+)", str(fault))), None)
    if code is None:
        return OSError(f'{what}: {type(fault).__name__}: {str(fault)[:500]}; {after}')
    return OSError(int(code), f'{what}: {os.strerror(int(code))}; {after}')


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Drops what Orbax logs: of an error that it raises as well it logs a trace from every thread."""
    logger = logging.getLogger('absl')

    def keep(record):
        return 'orbax' not in record.pathname

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)

"""A checkpoint file as its authors distribute it, read into NumPy arrays by key.

Three formats: `.safetensors`, `.npz`, and what torch.save writes since torch 1.6 (`.pt`, `.pth`, `.bin`): a
zip of a pickle, which names the tensors, and of their bare bytes. A pickle is a program, so none is run. Its
instructions are read one by one, those that a state_dict is made of are carried out here, and the first that
goes beyond them ends the reading with its name. Python's own unpickler is not used even in a restricted form:
a single instruction of a hostile file makes it allocate without bound, and sets attributes of what it was handed.

Every size that a file claims is compared with the bytes that are there before anything is allocated. All
functions raise ValueError naming file, field, what was found and what was expected.
"""

import json
import math
import os
import pickletools
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

State = dict[str, np.ndarray]

EXPANSION = 100
"""How many times larger than the file the arrays of a compressed npz may be; weights compress to a half at best."""

LARGEST_PICKLE = LARGEST_HEADER = 64 << 20
"""Bytes of the part that only names tensors; a thousand tensors take a tenth of a megabyte."""

DAMAGES = (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, EOFError, struct.error,
           zipfile.BadZipFile, zlib.error)
"""What readers of the standard library and NumPy raise on bytes that are not what they should be."""


def read(path: str | os.PathLike, key: str = '') -> State:
    """The state_dict of a file: read-only arrays by the authors' keys, dtypes as stored.

    key: which mapping of tensors a training checkpoint keeps them under, such as 'state_dict'; where it has
    only one, it is found. 'module.' before every key, which torch's DataParallel adds, is taken off.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise ValueError(f'{path}: found the suffix {path.suffix!r}, expected one of {", ".join(READERS)}')
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    try:
        return _bare_keys(_state(READERS[path.suffix.lower()](path), key))
    except (*DAMAGES, OSError) as fault:
        if isinstance(fault, OSError) and fault.filename:      # the file could not be opened at all
            raise
        raise ValueError(f'{path}: {fault or type(fault).__name__}') from fault


def _state(tree: Any, key: str) -> State:
    """The one mapping of tensors in what a file holds, or the one called `key`."""
    if not key and _is_state(tree):
        return tree
    found = [name for name, value in tree.items() if _is_state(value)] if isinstance(tree, dict) else []
    if key in found:
        return tree[key]
    if key or len(found) != 1:
        names = f'{len(found)} ({", ".join(map(_shown, found))})' if found else 'none'
        expected = f'one called {_shown(key)}' if key else 'one; choose by --key' if found else 'one'
        raise ValueError(f'mappings of tensors by name: found {names}, expected {expected}')
    return tree[found[0]]


def _is_state(value: Any) -> bool:
    return (isinstance(value, dict) and bool(value)
            and all(isinstance(k, str) and isinstance(x, np.ndarray) for k, x in value.items()))


def _bare_keys(state: State) -> State:
    for key in state:
        if not key.isprintable() or len(key) > 1000:      # messages will show it on a terminal
            raise ValueError(f'found a tensor called {_shown(key)}, expected a printable name')
    if all(key.startswith('module.') for key in state):
        return {key.removeprefix('module.'): x for key, x in state.items()}
    return state


def _shown(name: Any) -> str:
    """A name out of a file, fit for a terminal."""
    return ascii(name) if len(str(name)) <= 100 else f'{str(name)[:100]!a}...'


# safetensors: the length of a JSON header, the header, and the bytes of all tensors side by side

SAFETENSORS = {
    'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': ml_dtypes.bfloat16, 'I64': '<i8', 'I32': '<i4', 'I16': '<i2',
    'I8': 'i1', 'U64': '<u8', 'U32': '<u4', 'U16': '<u2', 'U8': 'u1', 'BOOL': '?',
}


def _safetensors(path: Path) -> State:
    with path.open('rb') as file:
        header = _header(file, path.stat().st_size)
        data = file.read()
    header.pop('__metadata__', None)
    state = {key: _tensor(key, entry, data) for key, entry in header.items()}
    spans = sorted(tuple(entry['data_offsets']) for entry in header.values())
    ends = [0] + [end for _, end in spans]
    if [begin for begin, _ in spans] != ends[:-1] or ends[-1] != len(data):
        raise ValueError(f'data_offsets: found gaps or overlaps, expected tensors side by side in {len(data)} bytes')
    return state


def _header(file: BinaryIO, size: int) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), 'little')
    if size < 8 or length > min(size - 8, LARGEST_HEADER):
        raise ValueError(f'found a header of {length} bytes in a file of {size}; it is torn, or no safetensors file')
    header = json.loads(file.read(length), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError(f'header: found a {type(header).__name__}, expected tensors by name')
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError('found a name twice')
    return dict(pairs)


def _tensor(key: str, entry: Any, data: bytes) -> np.ndarray:
    if not isinstance(entry, dict) or not {'dtype', 'shape', 'data_offsets'} <= set(entry):
        raise ValueError(f'{_shown(key)}: expected dtype, shape and data_offsets')
    if entry['dtype'] not in SAFETENSORS:
        raise ValueError(f'{_shown(key)}: found dtype {_shown(entry["dtype"])}, '
                         f'expected one of {", ".join(SAFETENSORS)}')
    dtype, shape = np.dtype(SAFETENSORS[entry['dtype']]), _sizes(key, entry['shape'])
    begin, end = _sizes(key, entry['data_offsets'])
    if not begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f'{_shown(key)}: found data_offsets {begin} to {end} of {len(data)} bytes, '
                         f'expected {math.prod(shape) * dtype.itemsize} bytes for {entry["dtype"]} of shape {shape}')
    return np.frombuffer(memoryview(data)[begin:end], dtype).reshape(shape)


def _sizes(key: str, sizes: Any) -> tuple[int, ...]:
    """Numbers of things, as a tuple; a file may hold anything in their place, also what takes for ever to print."""
    if not isinstance(sizes, list | tuple) or len(sizes) > 32 or not all(type(n) is int for n in sizes):
        raise ValueError(f'{_shown(key)}: found something else than sizes, at most 32 integers')
    if min(sizes, default=0) < 0:
        raise ValueError(f'{_shown(key)}: found sizes {sizes}, expected none below zero')
    return tuple(sizes)


# npz: a zip of NumPy's own files


def _npz(path: Path) -> State:
    with _open_zip(path, EXPANSION) as archive:
        return _unique([(member.filename.removesuffix('.npy'), _npy(archive, member))
                        for member in archive.infolist()])


def _npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(member) as file:
        form = np.lib.format.read_magic(file)
        if form not in headers:
            raise ValueError(f'{_shown(member.filename)}: found npy format {form}, expected one of {list(headers)}')
        shape, by_column, dtype = headers[form](file)
        if dtype.kind not in 'biuf':
            raise ValueError(f'{_shown(member.filename)}: found dtype {dtype}, expected numbers'
                             + (' (an npz keeps no bfloat16: store float32)' if dtype.kind == 'V' else ''))
        there, claimed = member.file_size - file.tell(), math.prod(shape) * dtype.itemsize
        if there != claimed or min(shape, default=0) < 0:
            raise ValueError(f'{_shown(member.filename)}: found {there} bytes, expected {claimed} '
                             f'for {dtype} of shape {shape}')
        x = np.frombuffer(file.read(), dtype).reshape(shape, order='F' if by_column else 'C')
        return x.astype(dtype.newbyteorder('='), copy=False)


def _open_zip(path: Path, expansion: int) -> zipfile.ZipFile:
    """The zip, if its members claim no more than so many times the bytes of the file."""
    archive, size = zipfile.ZipFile(path), path.stat().st_size
    claimed = sum(member.file_size for member in archive.infolist())
    if claimed > expansion * size:
        archive.close()
        raise ValueError(f'found members of {claimed} bytes in a file of {size}, expected at most {expansion * size}')
    return archive


# torch: a zip of data.pkl, which names the tensors, and data/0, data/1, ..., the bytes of their storages

STORAGES = {
    'torch.DoubleStorage': 'f8', 'torch.FloatStorage': 'f4', 'torch.HalfStorage': 'f2',
    'torch.BFloat16Storage': ml_dtypes.bfloat16, 'torch.LongStorage': 'i8', 'torch.IntStorage': 'i4',
    'torch.ShortStorage': 'i2', 'torch.CharStorage': 'i1', 'torch.ByteStorage': 'u1', 'torch.BoolStorage': '?',
}


class _Name(NamedTuple):
    """An object of a module that a pickle names, never the object itself."""

    dotted: str


class _Storage(NamedTuple):
    """The numbers that tensors are views of."""

    numbers: np.ndarray


def _torch(path: Path) -> Any:
    """What torch.save was given: dicts, lists, tuples, numbers and text, with arrays for tensors."""
    if not zipfile.is_zipfile(path):
        raise ValueError('found no zip, which torch.save writes since torch 1.6; the file is torn, or of the older '
                         'format: save it again by torch.save(torch.load(old, weights_only=True), new)')
    with _open_zip(path, 1) as archive:
        pickles = [name for name in archive.namelist() if name.split('/')[1:] == ['data.pkl']]
        if len(pickles) != 1:
            raise ValueError(f'found {len(pickles)} members FOLDER/data.pkl, expected one, as torch.save writes it')
        if archive.getinfo(pickles[0]).file_size > LARGEST_PICKLE:
            raise ValueError(f'data.pkl: found more than {LARGEST_PICKLE} bytes')
        storages = _Storages(archive, pickles[0].removesuffix('data.pkl'))
        return _Pickle(storages.find).read(archive.read(pickles[0]))


class _Storages:
    """The storages of an archive, each read once."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        self._archive, self._root = archive, root
        self._read: dict[str, bytes] = {}
        order = archive.read(f'{root}byteorder') if f'{root}byteorder' in archive.namelist() else b'little'
        if order not in (b'little', b'big'):
            raise ValueError(f'byteorder: found {order[:20]!r}, expected little or big')
        self._swapped = order.decode() != sys.byteorder

    def find(self, told: Any) -> _Storage:
        """told: ('storage', kind, key, device, count), as torch writes it."""
        expected = (str, _Name, str, str, int)
        if not isinstance(told, tuple) or tuple(map(type, told)) != expected or told[0] != 'storage':
            raise ValueError('data.pkl: found a reference to something else than a storage')
        _, kind, key, _, count = told
        if kind.dotted not in STORAGES:
            raise ValueError(f'data.pkl: found a storage of {_shown(kind.dotted)}')
        dtype, name = np.dtype(STORAGES[kind.dotted]), f'{self._root}data/{key}'
        if name not in self._archive.NameToInfo:
            raise ValueError(f'found no member {_shown(name)}; the file is torn')
        there = self._archive.getinfo(name).file_size
        if count * dtype.itemsize != there:
            raise ValueError(f'{_shown(name)}: found {there} bytes, expected {count} times {dtype.itemsize}')
        if name not in self._read:
            self._read[name] = self._archive.read(name)
        return _Storage(_numbers(self._read[name], dtype, self._swapped))


def _numbers(data: bytes, dtype: np.dtype, swapped: bool) -> np.ndarray:
    if swapped:
        data = np.frombuffer(data, np.uint8).reshape(-1, dtype.itemsize)[:, ::-1].tobytes()
    return np.frombuffer(data, dtype)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """A tensor as a view of its storage, which it may not leave and may not exceed."""
    if not isinstance(storage, _Storage):
        raise ValueError('data.pkl: found a tensor without storage')
    (offset,), size, stride = _sizes('offset', (offset,)), _sizes('size', size), _sizes('stride', stride)
    if len(size) != len(stride):
        raise ValueError(f'data.pkl: found a tensor of shape {size} with strides {stride}')
    numbers, there = storage.numbers, len(storage.numbers)
    if math.prod(size) == 0:
        return numbers[:0].reshape(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= there or math.prod(size) > there:
        raise ValueError(f'data.pkl: found a tensor of shape {size}, strides {stride}, offset {offset}, '
                         f'which is more than its storage of {there} numbers')
    steps = [step * numbers.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, steps, writeable=False)


def _rebuild_parameter(tensor: Any, *_: Any) -> np.ndarray:
    if not isinstance(tensor, np.ndarray):
        raise ValueError('data.pkl: found a parameter without tensor')
    return tensor


def _empty_dict() -> dict:
    return {}


CALLS: dict[str, Callable[..., Any]] = {
    'collections.OrderedDict': _empty_dict,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_parameter': _rebuild_parameter,
    'torch.Size': lambda sizes: _sizes('torch.Size', sizes),
}
"""What a state_dict may call, and what is done instead."""

CONSTANTS: dict[str, Any] = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
EMPTY: dict[str, Callable[[], Any]] = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
ARGUMENTS = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'}
TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


class _Pickle:
    """Carries out the instructions of a state_dict's pickle on a stack of its own; refuses all others by name."""

    def __init__(self, find_storage: Callable[[Any], _Storage]):
        self._find_storage = find_storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self, pickle: bytes) -> Any:
        for instruction, argument, _ in pickletools.genops(pickle):
            if instruction.name == 'STOP':
                break
            try:
                self._step(instruction.name, argument)
            except (LookupError, TypeError) as fault:
                raise ValueError(f'data.pkl is damaged at {instruction.name}') from fault
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ARGUMENTS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            stack.append(self._above(len(stack) - TUPLES[name]))
        elif name in INSTRUCTIONS:
            INSTRUCTIONS[name](self, argument)
        elif name not in ('PROTO', 'FRAME'):
            raise ValueError(f'data.pkl: found the instruction {name}, which no state_dict needs')

    def _get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def _put(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def _above(self, height: int) -> tuple[Any, ...]:
        if not 0 <= height <= len(self._stack):
            raise IndexError
        taken = tuple(self._stack[height:])
        del self._stack[height:]
        return taken

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _tuple(self, _: None) -> None:
        self._stack.append(self._above(self._marks.pop()))

    def _append(self, _: None) -> None:
        self._extend(self._above(len(self._stack) - 1))

    def _appends(self, _: None) -> None:
        self._extend(self._above(self._marks.pop()))

    def _extend(self, values: tuple[Any, ...]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError
        self._stack[-1].extend(values)

    def _setitem(self, _: None) -> None:
        self._update(self._above(len(self._stack) - 2))

    def _setitems(self, _: None) -> None:
        self._update(self._above(self._marks.pop()))

    def _update(self, values: tuple[Any, ...]) -> None:
        if type(self._stack[-1]) is not dict:
            raise TypeError
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int | float | None):     # the hash of a nested tuple may take for ever
                raise ValueError(f'data.pkl: found a {type(key).__name__} as a key, expected text or a number')
            self._stack[-1][key] = value

    def _global(self, name: str) -> None:
        dotted = name.replace(' ', '.', 1)
        if dotted not in CALLS and dotted not in STORAGES:
            raise ValueError(f'data.pkl: found {_shown(dotted)}, which is no part of a state_dict and was not run; '
                             'where you trust the file, save it again from torch as model.state_dict() alone')
        self._stack.append(_Name(dotted))

    def _stack_global(self, _: None) -> None:
        self._global('.'.join(self._above(len(self._stack) - 2)))

    def _reduce(self, _: None) -> None:
        called, arguments = self._above(len(self._stack) - 2)
        if not isinstance(called, _Name) or called.dotted not in CALLS or type(arguments) is not tuple:
            raise ValueError('data.pkl: found a call of something that is no function')
        self._stack.append(CALLS[called.dotted](*arguments))

    def _build(self, _: None) -> None:
        """Attributes of an OrderedDict: torch's versions of modules, which say nothing of the numbers."""
        self._above(len(self._stack) - 1)
        if type(self._stack[-1]) is not dict:
            raise ValueError('data.pkl: found attributes of something else than an OrderedDict')

    def _binpersid(self, _: None) -> None:
        self._stack.append(self._find_storage(self._above(len(self._stack) - 1)[0]))


INSTRUCTIONS: dict[str, Callable[[_Pickle, Any], None]] = {
    'BINGET': _Pickle._get, 'LONG_BINGET': _Pickle._get,
    'BINPUT': _Pickle._put, 'LONG_BINPUT': _Pickle._put, 'MEMOIZE': _Pickle._put,
    'MARK': _Pickle._mark, 'TUPLE': _Pickle._tuple,
    'APPEND': _Pickle._append, 'APPENDS': _Pickle._appends,
    'SETITEM': _Pickle._setitem, 'SETITEMS': _Pickle._setitems,
    'GLOBAL': _Pickle._global, 'STACK_GLOBAL': _Pickle._stack_global,
    'REDUCE': _Pickle._reduce, 'BUILD': _Pickle._build, 'BINPERSID': _Pickle._binpersid,
}

READERS: dict[str, Callable[[Path], Any]] = {
    '.safetensors': _safetensors, '.npz': _npz, '.pt': _torch, '.pth': _torch, '.bin': _torch,
}

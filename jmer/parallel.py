"""Devices and processes: the only file that knows how many there are.

One axis, 'data': parameters are copied to every device, the rows of a batch are split over them. A step is
a pure function

    step(state, batch, key) -> (state, sums)

of the global state, the batch and a key, all of whose results are global; `collectives.total` is how it
makes them so. `compile_step` opens one of two doors to it:

    'jit'   the default. Arrays are global, the compiler inserts the communication. The result does not
            depend on the number of devices, dropout masks included.
    'pmap'  every device runs the step on its rows. The key is folded with the device's index, or all
            devices would draw the same dropout masks; so trajectories agree with 'jit' to rounding
            where nothing is drawn at random, and only in distribution with dropout.

Several processes (hosts, or several on one machine): `start_processes` in each before anything else
touches JAX, `shard` with each process's own rows, everything else unchanged.
"""

import ctypes
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jmer.collectives import AXIS, total

__all__ = ['AXIS', 'ROWS', 'Split', 'compile_predict', 'compile_step', 'fetch', 'is_main_process',
           'keep_freed_memory', 'mesh', 'peak_memory', 'replicate', 'shard', 'split_seeds', 'start_processes', 'total']

Tree = TypeVar('Tree')
Step = Callable[[Any, Any, jax.Array], tuple[Any, Any]]


def mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, 'data', over `devices`; None means every device of every process."""
    devices = jax.devices() if devices is None else list(devices)
    # Auto, not the default Explicit axes: under those shardings become part of types and nn.Dropout fails.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


class Split(NamedTuple):
    """Along which axis the devices share a state and its batches; None: each device has all of it.

    The default splits the rows of a batch. Several seeds trained at once stand on a leading axis, and either
    the rows of their batches are split, Split(None, 1), or the seeds themselves, Split(0, 0), which
    needs no communication.
    """

    state: int | None = None
    batch: int = 0


ROWS = Split()


def split_seeds(seeds: int, mesh: Mesh, via: str = 'jit') -> Split:
    """How so many seeds trained at once are shared: whole seeds where they divide evenly, rows otherwise."""
    whole = seeds > 1 and seeds % mesh.size == 0 and via == 'jit' and jax.process_count() == 1
    return Split(0, 0) if whole else Split(None, 1)


def shard(batch: Tree, mesh: Mesh, axis: int | None = 0) -> Tree:
    """This process's rows (host arrays) as global arrays, split over the devices along `axis`.

    With several processes each passes its own rows, equally many, and the global batch is their
    concatenation in the order of the processes. None copies to every device. Raises ValueError naming the
    leaf whose axis does not divide by the number of this process's devices: pad the batch, with masks False.
    """
    if axis is None:
        return replicate(batch, mesh)
    count = len(mesh.local_devices)
    rows = _sharding(mesh, axis)

    def put(path, x):
        x = np.asarray(x)
        if x.ndim <= axis or x.shape[axis] % count:
            raise ValueError(
                f'batch{jax.tree_util.keystr(path)}: found shape {x.shape}, expected axis {axis} to be '
                f'a multiple of {count}, the number of devices of this process; pad the batch')
        return jax.make_array_from_process_local_data(rows, x)

    return jax.tree_util.tree_map_with_path(put, batch)


def replicate(tree: Tree, mesh: Mesh, axis: int | None = None) -> Tree:
    """A copy of every leaf on every device; or, of the same leaves on every process, split along `axis`.

    Always a copy: the steps of `compile_step` give their state's memory away (donation), and what the
    caller holds must not go with it, nor may two leaves share one buffer.
    """
    copies = jax.tree.map(lambda x: np.array(x), fetch(tree))
    return jax.device_put(copies, _sharding(mesh, axis))


def compile_step(step: Step, mesh: Mesh, via: str = 'jit', split: Split = ROWS) -> Step:
    """`step` compiled for `mesh`; the state that goes in is donated, use the one that comes out.

    state: from `replicate` or from the last call. batch: from `shard`. key: the same on every process.
    What `step` returns must be global, that is totalled: under 'pmap' one device's copy is kept.
    Where seeds are split, keys and sums are, too: one for each seed.
    """
    if via == 'jit':
        state, batch = _sharding(mesh, split.state), _sharding(mesh, split.batch)
        return jax.jit(step, in_shardings=(state, batch, state), out_shardings=state, donate_argnums=0)
    if via == 'pmap':
        return _pmap(step, mesh, split)
    raise ValueError(f"via: found {via!r}, expected 'jit' or 'pmap'")


def compile_predict(predict: Callable[..., Any], mesh: Mesh, split: Split = ROWS) -> Callable[..., Any]:
    """`predict(variables, batch) -> tree`, compiled; nothing is donated, the results are replicated.

    Rows of a result are the global batch's, in order, on every process. The batch has no axis of seeds:
    its rows are split, unless the seeds are.
    """
    state = _sharding(mesh, split.state)
    rows = _sharding(mesh, None if split.state == 0 else 0)
    return jax.jit(predict, in_shardings=(state, rows), out_shardings=_sharding(mesh, None))


def _sharding(mesh: Mesh, axis: int | None) -> NamedSharding:
    """Split over the devices along an axis, or a copy on each."""
    return NamedSharding(mesh, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS))


def _pmap(step: Step, mesh: Mesh, split: Split) -> Step:
    if split.state is not None:
        raise ValueError(f"split: found {split}, expected rows to be split: 'pmap' does not split states")

    def on_device(state, batch, key):
        index = jax.lax.axis_index(AXIS)
        fold = jax.random.fold_in if key.ndim == 0 else jax.vmap(jax.random.fold_in, (0, None))
        return step(state, batch, fold(key, index))

    mapped = jax.pmap(on_device, axis_name=AXIS, devices=list(mesh.devices.flat),
                      in_axes=(None, 0, None), out_axes=(None, None), donate_argnums=0)

    def run(state, batch, key):
        return mapped(state, jax.tree.map(lambda x: _by_device(x, split.batch), batch), key)

    return run


def _by_device(x: jax.Array, axis: int) -> Any:
    """Rows [... b ...] as [devices ... b/devices ...], the layout `pmap` maps over: this process's devices."""
    if x.is_fully_addressable:
        parts = x.reshape(*x.shape[:axis], len(x.sharding.device_set), -1, *x.shape[axis + 1:])
        return jnp.moveaxis(parts, axis, 0)
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[axis].start)
    return np.stack([np.asarray(shard.data) for shard in shards])


def fetch(tree: Tree) -> Tree:
    """Every leaf as a NumPy array on the host, whole: replicated or split over processes alike.

    Leaves that are not JAX arrays pass unchanged. All processes have to call it.
    """
    def whole(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if x.is_fully_replicated:
            return x.addressable_data(0)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def start_processes(coordinator: str | None = None, count: int | None = None,
                    index: int | None = None) -> None:
    """Joins this process to the others; call it before anything else touches JAX.

    coordinator: 'host:port' of process 0, reachable from all. count: of processes. index: of this one.
    All None: found out from the cluster (Slurm, Open MPI, Cloud TPU). On CPU the processes talk by gloo.
    Raises ValueError where only some are given or they do not fit together.
    """
    if coordinator is None or count is None or index is None:
        if not coordinator is count is index is None:
            raise ValueError(f'coordinator, count, index: found {coordinator}, {count}, {index}, '
                             'expected all of them or none')
    elif not 0 <= index < count:
        raise ValueError(f'index: found {index}, expected 0 to {count - 1}, the count being {count}')
    jax.distributed.initialize(coordinator, count, index)


def keep_freed_memory() -> None:
    """Lets this process keep what it frees, for the next step of a training on a CPU to take.

    XLA asks for a step's temporary arrays anew in every step, and glibc by itself gives large ones back to the
    system, so that every 4 kB of them costs a page fault again. Call it first in a program, for threads that run
    already keep their own habits. Where the C library is another one, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is None:
        return
    # As malloc.h numbers them: the most arenas, mappings of their own for large blocks, when and how much to give back.
    for parameter, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1), (-2, 2**26)):
        mallopt(parameter, value)


def peak_memory() -> int:
    """Bytes: the most that any of this process's devices has held, or, on CPU, this whole process."""
    known = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats['peak_bytes_in_use'] for stats in known if 'peak_bytes_in_use' in stats]
    if peaks:
        return max(peaks)
    unit = 1 if sys.platform == 'darwin' else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def is_main_process() -> bool:
    """Whether this is the process that writes logs and prints: the first one."""
    return jax.process_index() == 0

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

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jmer.collectives import AXIS, total

__all__ = ['AXIS', 'compile_predict', 'compile_step', 'fetch', 'is_main_process', 'mesh', 'replicate',
           'shard', 'start_processes', 'total']

Tree = TypeVar('Tree')
Step = Callable[[Any, Any, jax.Array], tuple[Any, Any]]


def mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, 'data', over `devices`; None means every device of every process."""
    devices = jax.devices() if devices is None else list(devices)
    # Auto, not the default Explicit axes: under those shardings become part of types and nn.Dropout fails.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def shard(batch: Tree, mesh: Mesh) -> Tree:
    """This process's rows (host arrays, leading axis b) as global arrays split over the devices.

    With several processes each passes its own rows, equally many, and the global batch is their
    concatenation in the order of the processes. Raises ValueError naming the leaf whose leading axis does
    not divide by the number of this process's devices: pad the batch, with masks False.
    """
    count = len(mesh.local_devices)
    rows = NamedSharding(mesh, PartitionSpec(AXIS))

    def put(path, x):
        x = np.asarray(x)
        if x.ndim == 0 or x.shape[0] % count:
            raise ValueError(
                f'batch{jax.tree_util.keystr(path)}: found shape {x.shape}, expected a leading axis that '
                f'is a multiple of {count}, the number of devices of this process; pad the batch')
        return jax.make_array_from_process_local_data(rows, x)

    return jax.tree_util.tree_map_with_path(put, batch)


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every leaf on every device.

    Always a copy: the steps of `compile_step` give their state's memory away (donation), and what the
    caller holds must not go with it, nor may two leaves share one buffer.
    """
    copies = jax.tree.map(lambda x: np.array(x), fetch(tree))
    return jax.device_put(copies, NamedSharding(mesh, PartitionSpec()))


def compile_step(step: Step, mesh: Mesh, via: str = 'jit') -> Step:
    """`step` compiled for `mesh`; the state that goes in is donated, use the one that comes out.

    state: from `replicate` or from the last call. batch: from `shard`. key: the same on every process.
    What `step` returns must be global, that is totalled: under 'pmap' one device's copy is kept.
    """
    if via == 'jit':
        copy, rows = _shardings(mesh)
        return jax.jit(step, in_shardings=(copy, rows, copy), out_shardings=copy, donate_argnums=0)
    if via == 'pmap':
        return _pmap(step, mesh)
    raise ValueError(f"via: found {via!r}, expected 'jit' or 'pmap'")


def compile_predict(predict: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`predict(variables, batch) -> tree`, compiled; nothing is donated, the results are replicated.

    Rows of a result are the global batch's, in order, on every process.
    """
    copy, rows = _shardings(mesh)
    return jax.jit(predict, in_shardings=(copy, rows), out_shardings=copy)


def _shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """A copy on every device; rows split over the devices."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def _pmap(step: Step, mesh: Mesh) -> Step:
    def on_device(state, batch, key):
        return step(state, batch, jax.random.fold_in(key, jax.lax.axis_index(AXIS)))

    mapped = jax.pmap(on_device, axis_name=AXIS, devices=list(mesh.devices.flat),
                      in_axes=(None, 0, None), out_axes=(None, None), donate_argnums=0)

    def run(state, batch, key):
        return mapped(state, jax.tree.map(_by_device, batch), key)

    return run


def _by_device(x: jax.Array) -> Any:
    """Rows [b ...] as [devices b/devices ...], the layout `pmap` maps over: this process's devices."""
    if x.is_fully_addressable:
        return x.reshape(len(x.sharding.device_set), -1, *x.shape[1:])
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start)
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


def is_main_process() -> bool:
    """Whether this is the process that writes logs and prints: the first one."""
    return jax.process_index() == 0

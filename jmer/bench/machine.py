"""One thread of this machine: how to be held to it, what it can do at most, and one figure a process.

A process that times something is a new one, so that neither its memory nor its threads are anybody else's, and
a crash takes nothing with it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ONE_THREAD = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
"""XLA's flags, which it reads when it is loaded."""

SIDE = 4096
COPIED = 2**28


class Peak(NamedTuple):
    """What one thread reaches. flops: a second. bytes: read and written a second."""

    flops: float
    bytes: float


def hold_to_one_thread() -> None:
    """Call it before JAX is loaded; threads that wait in a loop would count as CPU time.

    The process also keeps freed memory, as that of `jmer train` does.
    """
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ['OMP_NUM_THREADS'] = '1'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {ONE_THREAD}'
    os.environ['JAX_PLATFORMS'] = 'cpu'

    from jmer import parallel

    parallel.keep_freed_memory()


def cpu_seconds(run: Callable[[], Any], limit: float, most: int = 10) -> list[float]:
    """CPU time of each of some runs: at least 2, then as many as `limit` seconds hold, `most` at most."""
    found: list[float] = []
    while len(found) < 2 or (sum(found) + found[-1] < limit and len(found) < most):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return found


def peak() -> Peak:
    """Measured here: the product of two matrices 4096 x 4096, and 1 GiB of float32 read, doubled and written.

    Each is XLA's own, the best of several, in float32 on the thread that this process is held to.
    """
    import jax
    import jax.numpy as jnp

    matrix, long = jnp.ones((SIDE, SIDE)), jnp.ones(COPIED)
    product, double = jax.jit(jnp.matmul), jax.jit(lambda x: 2 * x)
    runs: list[Callable[[], Any]] = [lambda: jax.block_until_ready(product(matrix, matrix)),
                                     lambda: jax.block_until_ready(double(long))]
    for run in runs:
        run()
    multiplied, copied = (min(cpu_seconds(run, 10.0, 5)) for run in runs)
    return Peak(2 * SIDE**3 / multiplied, 2 * long.nbytes / copied)


def tell(found: Mapping[str, Any], file: Path | None) -> None:
    """Writes figures as JSON, to the screen where no file is given; the other end of `apart`."""
    text = json.dumps(found, indent=1)
    if file:
        file.write_text(text)
    else:
        sys.stdout.write(text + '\n')


def apart(module: str, *arguments: str, minutes: float = 20.0) -> dict[str, Any]:
    """The figures that `python -m module arguments --json FILE` writes, run as a process of its own.

    Raises ValueError with the last line that it wrote where it fails or takes longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'found.json')
        command = [sys.executable, '-m', module, *arguments, '--json', str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * minutes)
        except subprocess.TimeoutExpired:
            raise ValueError(f'no result after {minutes:.0f} minutes') from None
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise ValueError(lines[-1] if lines else f'ended with status {done.returncode}')
        return json.loads(file.read_text())

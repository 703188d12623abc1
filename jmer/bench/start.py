"""How long a user waits: for the import, the first step, the first command, the input."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jmer.bench import Row

FIRST_STEP = """
import json, os, time
import jax, numpy as np
cache = os.environ['JMER_BENCH_CACHE']
jax.config.update('jax_compilation_cache_dir', cache)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
from jmer import losses, metrics, parallel, zoo
from jmer.train import optimizers
from jmer.stages import objective
from jmer.train.experiment import Optimizer
from jmer.train.step import init_state, make_step
from jmer.types import Batch, Label, Stream
streams = {n: Stream(np.ones((32, 50, d), np.float32), np.ones((32, 50), bool))
           for n, d in (('text', 300), ('audio', 74), ('vision', 35))}
there = np.ones(32, bool)
batch = Batch(streams, there, {'emotion': Label(np.zeros(32, np.int32), there)})
model = zoo.create('gmu', classes=8, streams=tuple(streams))
metric = metrics.for_target('class', 8)
start = time.perf_counter()
optimizer = optimizers.make(Optimizer(), 100)
loss = lambda model, out, batch: {'label': losses.cross_entropy(out.logits, batch.labels['emotion'])}
step = jax.jit(make_step(model, objective(loss), optimizer,
                         lambda out, batch: metric.sums(out.logits, batch.labels['emotion'])))
state = init_state(model, optimizer, batch, 0)
jax.block_until_ready(step(state, batch, jax.random.key(0)))
print(json.dumps(time.perf_counter() - start))
"""


def _python(*arguments: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False,
                          env={**os.environ, **environment})
    if done.returncode:
        raise ValueError(done.stderr.strip().splitlines()[-1])
    return done.stdout


def import_time(data: Path | None = None) -> list[Row]:
    """Seconds for `import jmer` in a fresh process, the best of three."""
    code = 'import time; t = time.perf_counter(); import jmer, sys; ' \
           'print(time.perf_counter() - t, "tensorflow" in sys.modules)'
    found = [_python('-c', code).split() for _ in range(3)]
    seconds = min(float(one[0]) for one in found)
    return [Row('import jmer', f'{seconds:.2f} s, TensorFlow imported: {found[0][1]}', 'under 1.5 s, False')]


def first_step(data: Path | None = None) -> list[Row]:
    """Seconds from model to the first finished step of `gmu`, without and with a compilation cache."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (json.loads(_python('-c', FIRST_STEP, JMER_BENCH_CACHE=cache)) for _ in range(2))
    return [Row('first step of gmu, cold', f'{cold:.1f} s', 'under 10 s'),
            Row('first step of gmu, warm', f'{warm:.1f} s', 'under 3 s')]


def first_command(data: Path | None = None) -> list[Row]:
    """Seconds for the training part of the README's first command, nothing cached."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        _python('-m', 'jmer.cli', 'train', 'toy/gmu', '--workdir', f'{folder}/run', JMER_CACHE=f'{folder}/cache')
        seconds = time.perf_counter() - start
    return [Row('jmer train toy/gmu', f'{seconds:.0f} s', 'under 60 s')]


def input_wait(data: Path | None = None) -> list[Row]:
    """Share of an epoch that training on RAVDESS waits for its batches, as the run's own log has it."""
    if data is None:
        raise ValueError('it needs --data, the folder of RAVDESS')
    with tempfile.TemporaryDirectory() as folder:
        _python('-m', 'jmer.cli', 'train', 'ravdess/gmu', '--data', str(data), '--workdir', folder,
                '--set', 'epochs=4')
        lines = [json.loads(line) for line in Path(folder, 'log.jsonl').read_text().splitlines()]
    wait = min(line['time/input_wait'] for line in lines[1:])
    step = min(line['time/ms_per_step'] for line in lines[1:])
    return [Row('input wait, ravdess/gmu', f'{100 * wait:.1f} % of {step:.0f} ms a step', 'under 2 %')]


def seeds(data: Path | None = None) -> list[Row]:
    """Cost of training several seeds in one program, see `jmer.bench.seeds`."""
    import jax

    from jmer.bench import seeds

    counts = (1, 4, 16) if jax.default_backend() == 'cpu' else (1, 4, 16, 32)
    return [Row(f'step of {count} seeds / of one, {name}', f'{ratio:.1f}',
                '32 seeds on a GPU: at most 4' if count == 32 else '')
            for name, found in seeds.ratios(counts).items() for count, ratio in found.items() if count > 1]


def mult_peer(data: Path | None = None) -> list[Row]:
    """CPU time of a training step of MulT in PyTorch, divided by ours; see `jmer.bench.mult_peer`."""
    with tempfile.TemporaryDirectory() as folder:
        _python('-m', 'jmer.bench.mult_peer', '--json', f'{folder}/found.json')
        found = json.loads(Path(folder, 'found.json').read_text())
    return [Row('MulT step, PyTorch / jmer', f'{found["ratio"]:.2f}', 'over 1.0, aim 1.5')]

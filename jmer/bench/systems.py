"""What a training step of every system costs at its authors' sizes, beside their own code: `jmer bench --systems`.

    python -m jmer.bench.systems NAME [--json FILE]

A step is the trainer's own: forward, loss, backward, Adam, the metrics of the batch and the check that all is
finite, dropout on, compiled as for training. One process for each system, held to one thread; CPU time, not the
clock, is compared, and the least of several steps, as in the table of the authors' code (`jmer.bench.authors`).

The share of the roofline is how long a step would take at the peak of this machine, divided by how long it took:
its operations (`jmer.cost`) at the speed of a large matrix product, or its arguments and results (the state and
the batch, read once and written once) at the speed of a stream through memory, whichever takes longer.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from jmer.bench import machine
from jmer.bench.authors import TIMINGS, Timing, model_of, named

SECONDS = 15.0
"""How long the timed steps of one system may take together."""


class Program(NamedTuple):
    """A compiled step and what it starts from. memory: bytes of its arguments, results and everything between."""

    run: Callable[..., Any]
    state: Any
    batch: Any
    flops: int
    moved: int
    memory: int
    compile_seconds: float


def batch_of(timing: Timing, dialogue: bool, seed: int = 0):
    """A random batch of the sizes of a measurement."""
    import numpy as np

    from jmer.types import Batch, Label, Stream

    rng = np.random.default_rng(seed)
    count = timing.batch
    turns = max(steps for steps, _ in timing.streams.values())
    items = _turns(rng, count, turns) if dialogue else np.ones(count, bool)
    streams = {}
    for name, (steps, width) in timing.streams.items():
        x = rng.normal(size=(count, steps, width)).astype(np.float32)
        if width == 1 and 'vocabulary' in timing.fields:
            x = rng.integers(0, timing.fields['vocabulary'], x.shape).astype(np.float32)
        streams[name] = Stream(x, items if dialogue else np.ones((count, steps), bool))
    labels = {'label': Label(_labels(rng, timing, items.shape), items)}
    speakers = rng.integers(0, 2, items.shape).astype(np.int32) if dialogue else None
    return Batch(streams, items, labels, speakers)


def _turns(rng, count: int, longest: int):
    """Which turns are there: all of the first dialogue, of the others 50 +- 17, scaled with the first one's 110."""
    import numpy as np

    lengths = np.clip(rng.normal(50 / 110, 17 / 110, count) * longest, 1, longest).astype(int)
    lengths[0] = longest
    return np.arange(longest)[None] < lengths[:, None]


def _labels(rng, timing: Timing, shape: tuple[int, ...]):
    import numpy as np

    if timing.kind == 'class':
        return rng.integers(0, timing.classes, shape).astype(np.int32)
    values = rng.normal(size=(*shape, timing.classes)).astype(np.float32)
    return (values > 0).astype(np.float32) if timing.kind == 'multilabel' else values


def model_for(name: str, timing: Timing):
    """Our model at these sizes, or the part of it that was measured."""
    from jmer import zoo
    from jmer.bench import parts

    if timing.part:
        return getattr(parts, timing.part)()
    return zoo.create(model_of(name), classes=timing.classes, **timing.fields)


def step_of(name: str, timing: Timing):
    """The trainer's step: (model, optimizer, step)."""
    import optax

    from jmer import losses, metrics, zoo
    from jmer.losses import target
    from jmer.stages import objective
    from jmer.train.step import make_step

    model, optimizer = model_for(name, timing), optax.adam(1e-4)
    metric, supervised = metrics.for_target(timing.kind, timing.classes), losses.supervised(timing.kind)
    loss = getattr(zoo.module(model_of(name)), 'loss', None) or (
        lambda model, out, batch: {'label': supervised(out.logits, target(batch.labels))})
    step = make_step(model, objective(loss), optimizer,
                     lambda out, batch: metric.sums(out.logits, target(batch.labels)))
    return model, optimizer, step


def compiled(name: str, timing: Timing) -> Program:
    """The step of a system, compiled, and its costs; nothing has been run but the initialisation."""
    import jax

    from jmer import cost, zoo
    from jmer.train.step import init_state

    batch = batch_of(timing, zoo.family(model_of(name)) == 'dialogue')
    model, optimizer, step = step_of(name, timing)
    state, batch, key = init_state(model, optimizer, batch, 0), jax.device_put(batch), jax.random.key(0)
    start = time.process_time()
    program = jax.jit(step, donate_argnums=0).lower(state, batch, key).compile()
    seconds = time.process_time() - start
    sizes = program.memory_analysis()
    assert sizes is not None
    moved = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    memory = moved + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    flops = cost.flops(step, state, batch, key, branch=min if timing.complete else max)
    return Program(program, state, batch, flops, moved, memory, seconds)


def measure(name: str, timing: Timing, seconds: float = SECONDS) -> dict[str, Any]:
    """The figures of one system, in this process: CPU seconds, operations, bytes, parameters."""
    import jax

    from jmer import parallel

    program = compiled(name, timing)
    state, key, finite = program.state, jax.random.key(1), True

    def run() -> None:
        nonlocal state, finite
        state, sums = jax.block_until_ready(program.run(state, program.batch, key))
        finite = finite and bool(sums['finite'])

    run()
    times = machine.cpu_seconds(run, seconds)
    if not finite:
        raise ValueError('a loss or a gradient is not finite')
    return {'seconds': min(times), 'median_seconds': statistics.median(times), 'steps': len(times),
            'flops': program.flops, 'moved': program.moved, 'memory': program.memory,
            'process_memory': parallel.peak_memory(), 'compile_seconds': program.compile_seconds,
            'parameters': sum(x.size for x in jax.tree.leaves(state.params))}


def roofline(found: Mapping[str, Any], peak: machine.Peak) -> float:
    """The share of the roofline, see above."""
    return max(found['flops'] / peak.flops, found['moved'] / peak.bytes) / found['seconds']


def geometric_mean(ratios: Sequence[float]) -> float:
    """NaN of nothing."""
    return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else math.nan


def run(names: Sequence[str], console: Console) -> dict[str, Any]:
    """Measures these systems, all if none are named, prints a table, and gives all figures by name.

    One that fails is reported with what it said, and does not stop the others.
    """
    names = named(names)
    limits = machine.apart('jmer.bench.systems', '--peak')
    peak = machine.Peak(limits['flops'], limits['bytes'])
    figures: dict[str, Any] = {'peak': limits, 'systems': {}}
    for name in names:
        try:
            found = machine.apart('jmer.bench.systems', name)
            found |= _compared(found, TIMINGS[name], peak)
        except ValueError as fault:
            found = {'fault': str(fault)}
        figures['systems'][name] = found
        console.print(_progress(name, found), style='dim', highlight=False)
    figures['geometric_mean'] = _means(figures['systems'])
    console.print(table(figures))
    return figures


def _compared(found: Mapping[str, Any], timing: Timing, peak: machine.Peak) -> dict[str, Any]:
    ratio = timing.seconds / found['seconds'] if timing.seconds else None
    return {'authors_seconds': timing.seconds, 'ratio': ratio, 'roofline': roofline(found, peak), 'note': timing.note}


def _progress(name: str, found: Mapping[str, Any]) -> str:
    return f'{name}: {found["fault"]}' if 'fault' in found else f'{name}: {1000 * found["seconds"]:.0f} ms'


def _means(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The geometric mean of the ratios of each part of the zoo that has any."""
    from jmer import zoo

    ratios: dict[str, list[float]] = {'utterance and speech': [], 'conversation': []}
    for name, found in systems.items():
        if found.get('ratio'):
            ratios['conversation' if zoo.family(model_of(name)) == 'dialogue' else 'utterance and speech'].append(
                found['ratio'])
    return {part: geometric_mean(some) for part, some in ratios.items() if some}


def table(figures: Mapping[str, Any]) -> Table:
    """The figures as a table; the peak of the machine and the means are its caption."""
    peak = figures['peak']
    means = ', '.join(f'{part} {mean:.2f}' for part, mean in figures['geometric_mean'].items())
    shown = Table('system', 'authors ms', 'jmer ms', 'median', 'ratio', 'GFLOP', 'MB', '% of roofline', 'note',
                  title='CPU time of a training step, one thread',
                  caption=f'ratio, geometric mean: {means}. Peak here: {peak["flops"] / 1e9:.0f} GFLOP/s in a product '
                          f'of matrices, {peak["bytes"] / 1e9:.1f} GB/s through memory. '
                          'Operations count with the padding, which some systems leave out.')
    for name, found in figures['systems'].items():
        shown.add_row(name, *_cells(found))
    return shown


def _cells(found: Mapping[str, Any]) -> Iterator[str]:
    if 'fault' in found:
        yield from ('', '', '', '', '', '', '', found['fault'])
        return
    theirs, ratio = found['authors_seconds'], found['ratio']
    yield f'{1000 * theirs:.0f}' if theirs else '-'
    yield f'{1000 * found["seconds"]:.0f}'
    yield f'{1000 * found["median_seconds"]:.0f}'
    yield f'{ratio:.2f}' if ratio else '-'
    yield f'{found["flops"] / 1e9:.1f}'
    yield f'{found["memory"] / 1e6:.0f}'
    yield f'{100 * found["roofline"]:.0f}'
    yield found['note']


def main(argv: list[str] | None = None) -> None:
    """Measures one system, or the peak of the machine, in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('name', nargs='?', choices=TIMINGS, metavar='NAME')
    parser.add_argument('--peak', action='store_true', help='measure the machine instead')
    parser.add_argument('--json', type=Path, help='write the figures to this file, not to the screen')
    options = parser.parse_args(argv)
    if (options.name is None) != options.peak:
        parser.error('one of NAME and --peak')
    machine.hold_to_one_thread()
    found = machine.peak()._asdict() if options.peak else measure(options.name, TIMINGS[options.name])
    machine.tell(found, options.json)


if __name__ == '__main__':
    main()

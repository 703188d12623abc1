"""What many seeds at once cost: a training step of N of them, divided by that of one."""

import time

import jax
import numpy as np

from jmer import losses, metrics, parallel, zoo
from jmer.stages import objective
from jmer.train import optimizers
from jmer.train.experiment import Optimizer
from jmer.train.step import init_states, make_step
from jmer.types import Batch, Label, Stream

STREAMS = {'text': 300, 'audio': 74, 'vision': 35}
MODELS = {'gmu': {'hidden': 128}, 'mult': {'width': 30, 'layers': 2}}


def ratios(counts: tuple[int, ...] = (1, 4, 16), steps: int = 6) -> dict[str, dict[int, float]]:
    """Seconds a step of so many seeds divided by those of one, by model; batches of 32 items of 20 steps."""
    return {name: _of_model(name, fields, counts, steps) for name, fields in MODELS.items()}


def _of_model(name: str, fields: dict, counts: tuple[int, ...], steps: int) -> dict[int, float]:
    found = {count: _seconds(name, fields, count, steps) for count in counts}
    return {count: seconds / found[counts[0]] for count, seconds in found.items()}


def _seconds(name: str, fields: dict, count: int, steps: int) -> float:
    """The fastest of some steps."""
    model = zoo.create(name, classes=6, streams=tuple(STREAMS), **fields)
    batch, mesh = _batch(), parallel.mesh(jax.devices()[:1])
    optimizer, split = optimizers.make(Optimizer(), 100), parallel.split_seeds(count, mesh)
    metric = metrics.for_target('class', 6)
    step = parallel.compile_step(jax.vmap(make_step(
        model, objective(_loss), optimizer, lambda out, batch: metric.sums(out.logits, batch.labels['emotion']))),
        mesh, split=split)
    state = parallel.replicate(init_states(model, optimizer, batch, range(count)), mesh, split.state)
    batches = parallel.shard(jax.tree.map(lambda x: np.stack([x] * count), batch), mesh, split.batch)
    keys = jax.vmap(jax.random.key)(np.arange(count))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        state, sums = step(state, batches, keys)
        jax.block_until_ready(sums)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _batch() -> Batch:
    rng, there = np.random.default_rng(0), np.ones(32, bool)
    streams = {name: Stream(rng.normal(size=(32, 20, width)).astype(np.float32), np.ones((32, 20), bool))
               for name, width in STREAMS.items()}
    return Batch(streams, there, {'emotion': Label(rng.integers(0, 6, 32).astype(np.int32), there)})


def _loss(model, out, batch):
    return {'label': losses.cross_entropy(out.logits, batch.labels['emotion'])}

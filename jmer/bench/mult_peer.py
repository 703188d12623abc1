"""How long a training step of MulT takes here and in PyTorch: CPU time of one thread, and its ratio.

    python -m jmer.bench.mult_peer [--rounds 20] [--json FILE]

The peer is the MulT of MMSA 2.2.1 (`pip install jmer[peers]; pip install --no-deps MMSA==2.2.1`), fed with
features, at the sizes of aligned MOSEI: batch 32, 50 steps of text 300, audio 74 and vision 35, width
30, 5 heads, 5 layers, every dropout of the authors on. A step is forward, loss, backward and Adam. The
two take turns in one process that is held to one core (where the system can do that), so that other load
falls on both, and CPU time, not the clock, is compared. The projections have kernel 1 and neither adds
positions, as MMSA's does not.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

# One thread for everybody; both libraries read this when they are loaded.
ONE_THREAD = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
BATCH, STEPS = 32, 50
WIDTHS = {'text': 300, 'audio': 74, 'vision': 35}


def jmer_step() -> Callable[[], None]:
    """One training step of jmer's MulT, compiled; its parameters live in the closure."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from jmer.models.utterance import mult
    from jmer.types import Batch, Stream

    draw = np.random.default_rng(0)
    present = jnp.ones((BATCH, STEPS), bool)
    batch = Batch(
        {name: Stream(jnp.asarray(draw.normal(size=(BATCH, STEPS, d)), jnp.float32), present)
         for name, d in WIDTHS.items()}, jnp.ones(BATCH, bool), {})
    target = jnp.asarray(draw.normal(size=(BATCH, 1)), jnp.float32)
    model, adam = mult.Model(1, positions=False), optax.adam(1e-3)

    def loss(params, batch, key):
        out: Any = model.apply(params, batch, train=True, rngs={'dropout': key})
        return jnp.abs(out.logits - target).mean()

    def step(params, state, batch, key, i):
        grads = jax.grad(loss)(params, batch, jax.random.fold_in(key, i))
        updates, state = adam.update(grads, state)
        return optax.apply_updates(params, updates), state, i + 1

    key = jax.random.key(0)
    params = jax.jit(lambda key: model.init(key, batch, train=False))(key)
    step = jax.jit(step, donate_argnums=(0, 1))
    state = params, adam.init(params), jnp.int32(0)

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state[0], state[1], batch, key, state[2]))

    return run


def torch_step() -> Callable[[], None]:
    """One training step of MMSA's MulT."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = _peer_class()(types.SimpleNamespace(
        use_bert=False, dst_feature_dim_nheads=[30, 5], feature_dims=list(WIDTHS.values()), nlevels=5,
        conv1d_kernel_size_l=1, conv1d_kernel_size_a=1, conv1d_kernel_size_v=1, attn_mask=True,
        attn_dropout=0.1, attn_dropout_a=0.0, attn_dropout_v=0.0, relu_dropout=0.1, res_dropout=0.1,
        embed_dropout=0.25, text_dropout=0.25, output_dropout=0.0, num_classes=1,
        train_mode='regression')).train()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    inputs = [torch.randn(BATCH, STEPS, d) for d in WIDTHS.values()]
    target = torch.randn(BATCH, 1)

    def run() -> None:
        adam.zero_grad()
        (model(*inputs)['M'] - target).abs().mean().backward()
        adam.step()

    return run


def _peer_class() -> type:
    """MMSA's model class, without what the package as a whole imports (BERT, pandas, tuning)."""
    spec = importlib.util.find_spec('MMSA')
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit('the peer is missing: pip install --no-deps MMSA==2.2.1')
    root = spec.submodule_search_locations[0]
    for name in ('MMSA', 'MMSA.models', 'MMSA.models.subNets', 'MMSA.models.singleTask'):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(root, *name.split('.')[1:])]
        sys.modules[name] = package
    sys.modules['MMSA.models.subNets'].BertTextEncoder = None      # type: ignore[attr-defined]
    return importlib.import_module('MMSA.models.singleTask.MULT').MULT


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each step in every round, the steps taking turns."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, run in steps.items():
            start = time.process_time()
            run()
            found[name].append(1000 * (time.process_time() - start))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--json', help='also write the figures to this file')
    options = parser.parse_args(argv)
    if hasattr(os, 'sched_setaffinity'):      # idle threads that spin would count as CPU time
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ['OMP_NUM_THREADS'] = '1'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {ONE_THREAD}'
    os.environ['JAX_PLATFORMS'] = 'cpu'

    steps, first = {'torch': torch_step(), 'jmer': jmer_step()}, {}
    for name, run in steps.items():
        start = time.process_time()
        run()
        first[name] = time.process_time() - start
    measure(steps, 2)
    times = measure(steps, options.rounds)
    median = {name: statistics.median(found) for name, found in times.items()}
    ratio = statistics.median(t / j for t, j in zip(times['torch'], times['jmer'], strict=True))
    for name in steps:
        print(f'{name:6s} {median[name]:7.1f} ms of CPU a step (best {min(times[name]):.1f}), '
              f'first step {first[name]:.1f} s')
    print(f'ratio  {ratio:7.2f} torch / jmer, median of {options.rounds} rounds')
    if options.json:
        with open(options.json, 'w') as file:
            json.dump({'median_ms': median, 'first_step_s': first, 'ratio': ratio}, file, indent=1)


if __name__ == '__main__':
    main()

"""One step on one device, on eight, by either door, in one process or two: the same trajectory."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import collectives, parallel

ROOT = Path(__file__).parent.parent


def step(state, batch, key):
    """Plain SGD on a masked, batch-normalised regression; everything a trainer has to make global."""
    del key
    x, y, present = batch

    def local_loss(params):
        count = collectives.total(present.sum())
        hidden = x @ params['w']
        mean = collectives.total((hidden * present[:, None]).sum(0)) / count
        square = collectives.total((hidden**2 * present[:, None]).sum(0)) / count
        hidden = (hidden - mean[None]) / jnp.sqrt(square - mean**2 + 1e-3)[None]
        error = ((jnp.tanh(hidden) @ params['v'] - y) ** 2).sum(-1)
        return (error * present).sum() / count

    loss, gradients = jax.value_and_grad(local_loss)(state['params'])
    loss, gradients = collectives.total((loss, gradients))
    params = jax.tree.map(lambda p, g: p - 0.1 * g, state['params'], gradients)
    return {'step': state['step'] + 1, 'params': params}, {'loss': loss, 'rows': collectives.total(present.sum())}


def start():
    rng = np.random.default_rng(0)
    params = {'w': rng.normal(size=(5, 7)).astype('f4'), 'v': rng.normal(size=(7, 2)).astype('f4')}
    return {'step': np.int32(0), 'params': params}


def batches(count=8, rows=16):
    """Batches whose padding is uneven: some devices hold no real row, some hold nothing else."""
    rng = np.random.default_rng(1)
    for i in range(count):
        present = np.arange(rows) < rows - i if i < 6 else rng.random(rows) < 0.4
        x = rng.normal(size=(rows, 5)).astype('f4')
        y = rng.normal(size=(rows, 2)).astype('f4')
        x[~present], y[~present] = 1e3, -1e3      # what padding holds must not matter
        yield x, y, present


def train(devices, via, step=step, **options):
    mesh = parallel.mesh(jax.devices()[:devices])
    run = parallel.compile_step(step, mesh, via)
    state, losses = parallel.replicate(start(), mesh), []
    for batch in batches(**options):
        state, sums = run(state, parallel.shard(batch, mesh), jax.random.key(0))
        losses.append(parallel.fetch(sums)['loss'])
    return parallel.fetch(state), np.array(losses)


def difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.mark.parametrize('devices, via', [(8, 'jit'), (8, 'pmap'), (1, 'pmap'), (2, 'pmap')])
def test_trajectory_does_not_depend_on_devices_or_door(devices, via):
    expected, expected_losses = train(1, 'jit')
    state, losses = train(devices, via)
    assert state['step'] == expected['step'] == 8
    assert difference(expected['params'], start()['params']) > 0.1     # it did train
    assert difference(state['params'], expected['params']) < 1e-6
    np.testing.assert_allclose(losses, expected_losses, atol=1e-6)



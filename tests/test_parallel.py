"""One step on one device, on eight, by either door, in one process or two: the same trajectory.

Run as a script this file is one of several processes: `test_parallel.py HOST:PORT COUNT INDEX VIA FOLDER`.
"""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import checkpoint, collectives, parallel


def step(state, batch, key):
    """Plain SGD on a masked regression with batch statistics: all that a trainer has to make global."""
    del key
    x, y, present = batch
    count = collectives.total(present.sum())

    def local_loss(params):
        hidden = x @ params['w']
        mean = collectives.total((hidden * present[:, None]).sum(0)) / count
        square = collectives.total((hidden**2 * present[:, None]).sum(0)) / count
        hidden = (hidden - mean[None]) / jnp.sqrt(square - mean**2 + 1e-3)[None]
        error = ((jnp.tanh(hidden) @ params['v'] - y) ** 2).sum(-1)
        return jnp.where(present, error, 0).sum() / count

    loss, gradients = collectives.total(jax.value_and_grad(local_loss)(state['params']))
    params = jax.tree.map(lambda p, g: p - 0.1 * g, state['params'], gradients)
    return {'step': state['step'] + 1, 'params': params}, {'loss': loss, 'rows': count}


def start():
    rng = np.random.default_rng(0)
    params = {'w': rng.normal(size=(5, 7)).astype('f4'), 'v': rng.normal(size=(7, 2)).astype('f4')}
    return {'step': np.int32(0), 'params': params}


def batches(count=8, rows=16, padding=1.0):
    """Batches padded unevenly: some devices hold nothing but padding, some none."""
    rng = np.random.default_rng(1)
    for i in range(count):
        present = np.arange(rows) < rows - i if i < 6 else rng.random(rows) < 0.4
        x = rng.normal(size=(rows, 5)).astype('f4')
        y = rng.normal(size=(rows, 2)).astype('f4')
        x[~present], y[~present] = padding, -padding
        yield x, y, present


def train(mesh, via, data, state=None):
    run = parallel.compile_step(step, mesh, via)
    state, losses = parallel.replicate(start() if state is None else state, mesh), []
    for batch in data:
        state, sums = run(state, parallel.shard(batch, mesh), jax.random.key(0))
        losses.append(parallel.fetch(sums)['loss'])
    return parallel.fetch(state), np.array(losses)


def some(devices):
    return parallel.mesh(jax.devices()[:devices])


def difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.fixture(scope='module')
def one_device():
    return train(some(1), 'jit', batches())


@pytest.mark.parametrize('devices, via', [(8, 'jit'), (8, 'pmap'), (1, 'pmap'), (2, 'pmap')])
def test_trajectory_depends_neither_on_devices_nor_on_the_door(one_device, devices, via):
    expected, expected_losses = one_device
    state, losses = train(some(devices), via, batches())
    assert state['step'] == expected['step'] == 8
    assert difference(expected['params'], start()['params']) > 0.1      # it did train
    assert difference(state['params'], expected['params']) < 1e-6
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6, atol=0)


@pytest.mark.parametrize('via', ['jit', 'pmap'])
def test_padding_across_devices_does_not_bias_the_loss(via):
    """The loss is the mean over real rows, computed here by NumPy, however the padding is spread."""
    state = start()
    (x, y, present), = batches(count=1)
    present = np.arange(16) % 5 == 1                     # 3 real rows, on 3 of 8 devices
    h = x[present].astype('f8') @ state['params']['w']
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-3)
    expected = ((np.tanh(h) @ state['params']['v'] - y[present]) ** 2).sum(-1).mean()
    for at in (slice(None), slice(None, None, -1), np.argsort(~present, kind='stable')):
        _, (loss,) = train(some(8), via, [(x[at], y[at], present[at])])
        assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize('via', ['jit', 'pmap'])
def test_what_padding_holds_is_invisible(via):
    state, _ = train(some(8), via, batches(padding=1.0))
    other, _ = train(some(8), via, batches(padding=77.0))
    assert difference(state, other) == 0


def test_total_outside_and_inside_a_named_axis():
    x = jnp.arange(6.0).reshape(3, 2)
    assert not collectives.bound()
    np.testing.assert_array_equal(collectives.total(x), x)
    np.testing.assert_array_equal(jax.jit(collectives.total)(x), x)
    np.testing.assert_array_equal(jax.vmap(collectives.total)(x), x)
    inside = jax.vmap(collectives.total, axis_name=collectives.AXIS)(x)
    np.testing.assert_array_equal(inside, jnp.broadcast_to(x.sum(0), (3, 2)))
    with jax.set_mesh(some(8)):                          # a mesh in scope does not bind its axis
        np.testing.assert_array_equal(jax.jit(collectives.total)(x), x)


def drop(state, batch, key):
    """Counts what dropout keeps, row by row."""
    return state, jax.random.bernoulli(key, 0.5, (batch.shape[0], 4)) * batch


def test_jit_draws_the_same_masks_on_any_number_of_devices():
    batch = np.ones((16, 1), 'f4')
    kept = []
    for devices in (1, 8):
        mesh = some(devices)
        run = parallel.compile_step(drop, mesh)
        _, rows = run(parallel.replicate({}, mesh), parallel.shard(batch, mesh), jax.random.key(3))
        kept.append(parallel.fetch(rows))
    np.testing.assert_array_equal(*kept)
    assert 0 < kept[0].mean() < 1


def test_pmap_draws_other_masks_on_every_device():
    mesh = some(8)

    def step(state, batch, key):
        mask = jax.random.bernoulli(key, 0.5, (64,))
        all_masks = jax.lax.all_gather(mask, collectives.AXIS)
        return state, all_masks

    run = parallel.compile_step(step, mesh, 'pmap')
    batch = parallel.shard(np.ones((8, 1), 'f4'), mesh)
    _, masks = run(parallel.replicate({}, mesh), batch, jax.random.key(0))
    assert len({bytes(m) for m in np.asarray(masks)}) == 8


@pytest.mark.parametrize('devices', [1, 8])
def test_donation_takes_nothing_from_the_caller(devices):
    mesh = some(devices)
    ours = {'a': jnp.ones(1 << 16), 'b': np.ones(1 << 16, 'f4')}
    ours['c'] = ours['a']                                # one buffer twice must not be donated twice

    def step(state, batch, key):
        return jax.tree.map(lambda x: x + 1, state), batch.sum()

    state, batch = parallel.replicate(ours, mesh), parallel.shard(np.ones(8, 'f4'), mesh)
    after, _ = parallel.compile_step(step, mesh)(state, batch, jax.random.key(0))
    assert state['a'].is_deleted()
    for x in ours.values():
        assert (np.asarray(x) == 1).all()
    for x in parallel.fetch(after).values():
        assert (x == 2).all()


def test_predict_keeps_the_order_of_rows():
    mesh = some(8)
    x = np.arange(32, dtype='f4').reshape(16, 2)
    predict = parallel.compile_predict(lambda variables, batch: {'y': batch['x'] * variables}, mesh)
    found = parallel.fetch(predict(parallel.replicate(np.float32(2), mesh), parallel.shard({'x': x}, mesh)))
    np.testing.assert_array_equal(found['y'], 2 * x)


def test_rows_that_do_not_divide_are_refused_by_name():
    with pytest.raises(ValueError, match=r"batch\['streams'\]\['audio'\].*\(12, 3\).*multiple of 8"):
        parallel.shard({'streams': {'audio': np.zeros((12, 3))}}, some(8))
    with pytest.raises(ValueError, match='expected axis 0 to be a multiple of'):
        parallel.shard((np.float32(1),), some(8))


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="'pmapp'"):
        parallel.compile_step(step, some(1), 'pmapp')
    with pytest.raises(ValueError, match='all of them or none'):
        parallel.start_processes('localhost:1', 2)
    with pytest.raises(ValueError, match='expected 0 to 1'):
        parallel.start_processes('localhost:1', 2, 2)


@pytest.mark.parametrize('via', ['jit', 'pmap'])
def test_two_processes_train_as_one(one_device, tmp_path, via):
    """Two local processes, four devices each; they also save, restore and go on."""
    with socket.socket() as s:
        s.bind(('localhost', 0))
        address = f'localhost:{s.getsockname()[1]}'
    processes = [subprocess.Popen([sys.executable, __file__, address, '2', str(i), via, str(tmp_path)],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  cwd=Path(__file__).parent.parent) for i in range(2)]
    try:
        outputs = [p.communicate(timeout=120)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], '\n'.join(outputs)
    expected, _ = one_device
    for i in range(2):
        found = np.load(tmp_path / f'{i}.npz')
        assert found['step'] == 8
        assert difference({k: found[k] for k in 'wv'}, expected['params']) < 1e-6
    state = checkpoint.Run(tmp_path).restore(8, start())
    assert difference(state['params'], expected['params']) < 1e-6


def main(address, count, index, via, folder):
    jax.config.update('jax_num_cpu_devices', 4)
    parallel.start_processes(address, int(count), int(index))
    assert jax.device_count() == 4 * int(count) and parallel.is_main_process() == (index == '0')
    rows = slice(8 * int(index), 8 * int(index) + 8)
    data = [tuple(x[rows] for x in batch) for batch in batches()]
    mesh = parallel.mesh()
    with checkpoint.Run(folder, write=True) as run:
        state, losses = train(mesh, via, data[:4])
        run.save(4, state, {'loss': losses[-1]})
        run.wait()
        state = run.restore(run.latest(), parallel.replicate(start(), mesh))
        state, losses = train(mesh, via, data[4:], state)
        run.save(8, parallel.replicate(state, mesh), {'loss': losses[-1]})
    split = parallel.shard(np.arange(16)[rows], mesh)
    np.testing.assert_array_equal(parallel.fetch(split), np.arange(16))
    np.savez(Path(folder) / f'{index}.npz', step=state['step'], **state['params'])


FREED = '''
import resource
import numpy as np
from jmer import parallel

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
parallel.keep_freed_memory()
faults()
print(given_back, faults())
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='of the C library of Linux')
def test_freed_memory_is_kept():
    """Eight arrays one after the other take new pages from the system each, or all the same ones."""
    done = subprocess.run([sys.executable, '-c', FREED], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept < given_back / 4


if __name__ == '__main__':
    main(*sys.argv[1:])

"""States come back exact to the bit, damage is seen, nothing is lost; published weights are what they say.

Run as a script this file saves for ever, until it is killed: `test_checkpoint.py FOLDER`.
"""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmer import checkpoint, parallel
from jmer.checkpoint import Run


class State(NamedTuple):
    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    stopping: Any


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    params = {'dense': {'kernel': jnp.asarray(rng.normal(size=(16, 8)), 'float32'),
                        'bias': jnp.asarray(rng.normal(size=8), 'bfloat16')},
              'none': np.zeros((0, 3), 'float32')}
    # Values that casts and text would change: a NaN with payload, negative zero, the smallest number.
    odd = np.array([0x7fc12345, 0x80000000, 1], 'uint32').view('float32')
    return State(jnp.int32(7), params, {'mean': odd, 'seen': np.array([True, False])},
                 optax.adam(1e-3).init(params), (np.float64(0.1), np.float32(0.1), 3, 0.1, True, None))


def bits(tree):
    """Types, dtypes, shapes and bytes of all leaves: equal only if nothing at all differs."""
    return jax.tree.map(lambda x: (type(x), np.asarray(x).dtype, np.shape(x), np.asarray(x).tobytes()), tree)


def numbers(step):
    """A state that says by its values which step it is."""
    return {'step': np.int64(step), 'w': np.full((4, 3), step, 'float32')}


def saved(folder, count=3, **options):
    """A run of `count` steps in `folder`, closed."""
    with Run(folder, write=True, **options) as run:
        for step in range(1, count + 1):
            run.save(step, numbers(step), {'uar': step / 10})
    return folder / 'checkpoints'


def test_a_state_comes_back_exact_to_the_bit(tmp_path):
    state = make_state()
    with Run(tmp_path, write=True) as run:
        run.save(7, state, {'uar': 0.5, 'loss': float('nan')})
        assert run.latest() == 7
        assert bits(run.restore(7, state)) == bits(state)
        assert run.metrics(7) == {'uar': 0.5, 'loss': None}
    again = Run(tmp_path)
    assert bits(again.restore(7, state)) == bits(state)
    assert bits(again.restore(7, {'params': state.params}, partial=True)) == bits({'params': state.params})


def test_an_abstract_state_is_enough(tmp_path):
    state = make_state()._replace(stopping=())
    with Run(tmp_path, write=True) as run:
        run.save(1, state, {'uar': 0.5})
        found = run.restore(1, jax.eval_shape(lambda: state))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(found))
    host = jax.tree.map(np.asarray, (found, state))
    assert bits(host[0]) == bits(host[1])


@pytest.mark.parametrize('before, after', [(1, 8), (8, 1), (8, 2)])
def test_states_move_between_numbers_of_devices(tmp_path, before, after):
    state = make_state()._replace(stopping=())
    old, new = (parallel.mesh(jax.devices()[:n]) for n in (before, after))
    with Run(tmp_path, write=True) as run:
        run.save(1, parallel.replicate(state, old), {'uar': 1.0})
        target = parallel.replicate(jax.tree.map(jnp.zeros_like, state), new)
        found = run.restore(1, target)
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, target)
    assert [x.tobytes() for x in jax.tree.leaves(parallel.fetch(found))] == [
        np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def test_rows_split_over_devices_are_saved_whole(tmp_path):
    rows = np.arange(16.0, dtype='float32').reshape(16, 1)
    split = parallel.shard({'memory': rows}, parallel.mesh())
    with Run(tmp_path, write=True) as run:
        run.save(1, split, {'uar': 1.0})
        found = run.restore(1, split)['memory']
    assert found.sharding == split['memory'].sharding
    np.testing.assert_array_equal(found, rows)


def test_what_is_saved_is_the_state_at_that_moment(tmp_path):
    """The state is donated and a host array overwritten while the save is still under way."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    device, host = jnp.zeros((500, 1000)), np.zeros(1_000_000)
    with Run(tmp_path, write=True) as run:
        run.save(1, {'device': device, 'host': host}, {'uar': 1.0})
        host += 1
        for _ in range(3):
            device = step(device)
        assert float(device.min()) == 3
        found = run.restore(1, {'device': device, 'host': host})
    assert not found['device'].any() and not found['host'].any()


@pytest.mark.parametrize('keep, kept', [(1, [6]), (2, [5, 6]), (None, [1, 2, 3, 4, 5, 6])])
def test_the_newest_are_kept(tmp_path, keep, kept):
    with Run(tmp_path, write=True, keep=keep) as run:
        for step in range(1, 7):
            run.save(step, numbers(step), {'uar': 0.5})
        assert (run.latest(), run.steps()) == (6, kept)
        assert run.restore(kept[0], numbers(0))['step'] == kept[0]


def test_a_state_of_something_else_is_refused_leaf_by_leaf(tmp_path):
    with Run(tmp_path, write=True) as run:
        state = {'a': np.zeros((3, 4), 'float32'), 'b': np.zeros(2, 'float32'), 'c': 1, 'd': 0}
        run.save(1, state, {'uar': 1.0})
        wrong = {'a': jnp.zeros((4, 3)), 'b': jnp.zeros(2, 'bfloat16'), 'c': 1, 'e': [np.int32(0)]}
        with pytest.raises(ValueError) as fault:
            run.restore(1, wrong)
        with pytest.raises(ValueError, match='3 leaves differ'):
            run.restore(1, wrong, partial=True)
    for line in ('a: found float32[3,4], expected float32[4,3]', 'b: found float32[2], expected bfloat16[2]',
                 'surplus  d: found int64[]', 'missing  e/0: expected int32[]', '4 leaves', 'checkpoints/1'):
        assert line in str(fault.value)
    assert ' c:' not in str(fault.value)


def files_of(folder):
    return sorted(p for p in folder.rglob('*') if p.is_file())


def delete(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)


@pytest.mark.parametrize('damage', [delete, truncate, flip])
def test_a_damaged_newest_checkpoint_gives_way_to_the_last_good_one(tmp_path, damage):
    folder = saved(tmp_path / 'run', 2)
    files = [p for p in files_of(folder / '2') if damage is delete or p.stat().st_size]
    names = [p.relative_to(folder / '2') for p in files]
    assert len(names) > 5
    for name in names:
        if name.name == 'seal.json' and damage is flip:
            continue                                    # the seal is text; its own test is below
        copy = tmp_path / 'copy'
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / 'run', copy)
        damage(copy / 'checkpoints' / '2' / name)
        run = Run(copy)
        with pytest.raises((ValueError, FileNotFoundError), match=name.name):
            run.restore(2, numbers(0))
        with pytest.warns(UserWarning, match=name.name):
            assert run.latest() == 1
        assert run.restore(1, numbers(0))['step'] == 1


def test_a_seal_of_something_else_is_damage(tmp_path):
    folder = saved(tmp_path, 2)
    (folder / '2' / 'seal.json').write_text('{"step": 2}')
    run = Run(tmp_path)
    with pytest.raises(ValueError, match=r'seal\.json'):
        run.restore(2, numbers(0))
    with pytest.warns(UserWarning, match=r'seal\.json'):
        assert run.latest() == 1
    assert run.steps() == [1]


def test_training_goes_on_over_a_damaged_checkpoint_without_touching_it(tmp_path):
    folder = saved(tmp_path, 2)
    torn = next(p for p in files_of(folder / '2') if p.name == '_METADATA')
    truncate(torn)
    left = torn.read_bytes()
    with Run(tmp_path, write=True, keep=1) as run:
        with pytest.warns(UserWarning, match='_METADATA'):
            assert run.latest() == 1
        run.save(2, numbers(2), {'uar': 0.2})
        assert run.latest() == 2
        assert run.restore(2, numbers(0))['step'] == 2
    assert (folder / '2.torn' / torn.relative_to(folder / '2')).read_bytes() == left


def test_nothing_is_overwritten(tmp_path):
    folder = saved(tmp_path, 2)
    before = {p: p.read_bytes() for p in files_of(folder)}
    with Run(tmp_path, write=True) as run, pytest.raises(FileExistsError, match='step 2'):
        run.save(2, numbers(9), {'uar': 0.9})
    assert {p: p.read_bytes() for p in files_of(folder)} == before


def test_folders_of_others_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'run\.json'):
        Run(tmp_path)
    assert not list(tmp_path.iterdir())                 # reading makes nothing
    foreign = tmp_path / 'checkpoints' / '100'
    foreign.mkdir(parents=True)
    for write in (False, True):
        with pytest.raises(ValueError, match=r"\['100'\] and no run.json"):
            Run(tmp_path, write)
    saved(tmp_path / 'mine', 1)
    (tmp_path / 'mine' / 'checkpoints' / 'run.json').write_text('{"format": "something"}')
    with pytest.raises(ValueError, match=r"'something'.*'format'"):
        Run(tmp_path / 'mine')


def test_misuse_is_named(tmp_path):
    saved(tmp_path, 1)
    run = Run(tmp_path)
    with pytest.raises(ValueError, match='opened for reading'):
        run.save(2, numbers(2), {'uar': 1.0})
    with pytest.raises(FileNotFoundError, match=r'found steps \[1\], expected 5'):
        run.restore(5, numbers(0))
    with Run(tmp_path, write=True) as run:
        with pytest.raises(ValueError, match=r'keys/0.*folded'):
            run.save(2, {'keys': [jax.random.key(0)]}, {'uar': 1.0})
        with pytest.raises(ValueError, match='name: found str'):
            run.save(2, {'name': 'x'}, {'uar': 1.0})
        assert run.steps() == [1]
    with pytest.raises(ValueError, match='at least 1'):
        Run(tmp_path, keep=0)


def test_a_full_disk_is_named_and_loses_nothing(tmp_path):
    """A limit on the size of files stands for the full disk: the system's call fails in the same place."""
    big = {'w': np.random.default_rng(0).normal(size=(1000, 500))}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Run(tmp_path, write=True) as run:
        run.save(1, numbers(1), {'uar': 0.1})
        run.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            run.save(2, big, {'uar': 0.2})
            with pytest.raises(OSError, match=rf'{tmp_path}.*could not save step 2.*intact: \[1\]') as fault:
                run.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert fault.value.errno == errno.EFBIG
        assert (run.latest(), run.restore(1, numbers(0))['step']) == (1, 1)
        run.save(2, big, {'uar': 0.2})                  # there is room again: the same run goes on
        assert run.latest() == 2
        assert bits(run.restore(2, big)) == bits(big)
    assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'run.json', '1', '2'}


def test_no_space_is_said_in_the_systems_words(tmp_path, monkeypatch):
    """The text that Orbax and TensorStore raise on a full tmpfs, as recorded there."""
    def fail(*_):
        raise ValueError('RESOURCE_EXHAUSTED: Error writing "w/c/0/0" in OCDBT database at local file "x": '
                         'Failed to write 510835 bytes to file 17: '
                         "No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoint, '_begin', fail)
    with Run(tmp_path, write=True) as run, pytest.raises(OSError, match='step 3: No space left on') as fault:
        run.save(3, numbers(3), {'uar': 1.0})
    assert fault.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match='could not write params: No space left on device; nothing was changed'):
        checkpoint.publish(tmp_path / 'w', {'params': {'w': np.ones(3, 'float32')}}, {})


def test_kill_9_while_saving_leaves_a_run_to_resume(tmp_path):
    process = subprocess.Popen([sys.executable, __file__, str(tmp_path)], cwd=Path(__file__).parent.parent)
    folder = tmp_path / 'checkpoints'
    try:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None:
            names = [p.name for p in folder.iterdir()] if folder.exists() else []
            if '2' in names and any('.part' in name for name in names):
                break
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Run(tmp_path, write=True) as run:
        latest = run.latest()                   # a warning of a torn checkpoint would be an error
        assert latest is not None and latest >= 2
        for step in run.steps():
            found = run.restore(step, big_numbers(0))
            assert found['step'] == step and (found['w'] == step).all()
        run.save(latest + 9, big_numbers(latest + 9), {'uar': 1.0})
        assert run.latest() == latest + 9
    assert not [p for p in folder.iterdir() if '.part' in p.name]


def big_numbers(step):
    return {'step': step, 'w': np.full((1000, 2000), step, 'float32')}


def save_for_ever(folder):
    with Run(folder, write=True) as run:
        for step in range(1, 10_000):
            run.save(step, big_numbers(step), {'uar': 1.0})


# Published weights.

def make_variables(seed=0, size=8):
    rng = np.random.default_rng(seed)
    layers = {f'layer{i}': {'kernel': rng.normal(size=(size, size)).astype('float32'),
                            'bias': jnp.asarray(rng.normal(size=size), 'float32')} for i in range(3)}
    return {'params': layers,
            'batch_stats': {'norm': {'count': np.int32(3), 'mean': np.zeros(4, 'float32')}}}


def snapshot(folder):
    return {p.relative_to(folder): (p.stat().st_mtime_ns, p.read_bytes()) for p in files_of(folder)}


@pytest.mark.parametrize('store, error', [('float32', 0), ('float16', 2e-3), ('bfloat16', 1e-2)])
def test_weights_are_published_and_loaded(tmp_path, store, error):
    variables = make_variables()
    card = checkpoint.publish(tmp_path / 'w', variables, {'model': 'gmu', 'names': ('happy', 'sad')}, store)
    found, found_card = checkpoint.load(tmp_path / 'w')
    assert found_card == card
    assert card['names'] == ['happy', 'sad'] and card['stored_as'] == store
    assert card['params_sha256'] == checkpoint.fingerprint(found)
    assert (card['params_sha256'] == checkpoint.fingerprint(variables)) == (store == 'float32')
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True):
        assert isinstance(x, np.ndarray) and x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=error, atol=0)


def test_published_files_are_few_small_and_know_no_path(tmp_path):
    checkpoint.publish(tmp_path / 'w', make_variables(size=1500), {})      # 27 MB
    files = files_of(tmp_path / 'w')
    assert len(files) < 25
    assert max(p.stat().st_size for p in files) < 5_000_000
    assert sum(p.stat().st_size for p in files) > 20_000_000
    for path in files:
        assert str(tmp_path).encode() not in path.read_bytes(), path
    assert {p.name for p in (tmp_path / 'w').iterdir()} == {'card.json', 'params'}


def test_equal_weights_are_not_written_again(tmp_path):
    folder, variables = tmp_path / 'w', make_variables()
    checkpoint.publish(folder, variables, {'a': 1})
    before = snapshot(folder)
    checkpoint.publish(folder, variables, {'a': 1})
    assert snapshot(folder) == before
    checkpoint.publish(folder, variables, {'a': 2})
    after = snapshot(folder)
    assert before.keys() == after.keys()
    assert {p for p in before if before[p] != after[p]} == {Path('card.json')}
    for changed, store in ((make_variables(1), 'float32'), (make_variables(1), 'bfloat16')):
        checkpoint.publish(folder, changed, {'a': 2}, store)
        expected = {name: {k: np.asarray(x).astype(store).astype('float32') for k, x in layer.items()}
                    for name, layer in changed['params'].items()}
        assert bits(checkpoint.load(folder)[0]['params']) == bits(expected)
    assert {p.name for p in folder.iterdir()} == {'card.json', 'params'}


def test_damaged_weights_are_published_anew(tmp_path):
    folder, variables = tmp_path / 'w', make_variables()
    checkpoint.publish(folder, variables, {})
    flip(max(files_of(folder / 'params'), key=lambda p: p.stat().st_size))
    checkpoint.publish(folder, variables, {})
    assert checkpoint.fingerprint(checkpoint.load(folder)[0]) == checkpoint.fingerprint(variables)


def test_every_fault_of_published_weights_names_its_file(tmp_path):
    good, other, bad = tmp_path / 'good', tmp_path / 'other', tmp_path / 'bad'
    checkpoint.publish(good, make_variables(0), {'model': 'gmu'})
    checkpoint.publish(other, make_variables(1), {'model': 'gmu'})

    def refused(error, match):
        with pytest.raises(error, match=match):
            checkpoint.load(bad)
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)

    refused(FileNotFoundError, 'bad: no such folder')
    (bad / 'card.json').unlink()
    refused(FileNotFoundError, r'bad/card\.json')
    (bad / 'card.json').write_text('{"model": ')
    refused(ValueError, r'bad/card\.json: not valid JSON.*line 1')
    (bad / 'card.json').write_text('{"model": "gmu"}')
    refused(ValueError, r"bad/card\.json: no field 'params_sha256'")
    shutil.rmtree(bad / 'params')
    refused(FileNotFoundError, r'bad/params/seal\.json')
    for name in [p.relative_to(good) for p in files_of(good / 'params')]:
        (bad / name).unlink()
        refused((ValueError, FileNotFoundError), name.name)
        if (bad / name).stat().st_size and name.name != 'seal.json':
            flip(bad / name)
            refused(ValueError, f'{name.name}: damaged')
    shutil.rmtree(bad / 'params')
    shutil.copytree(other / 'params', bad / 'params')
    refused(ValueError, 'bad/params: found weights with fingerprint .* different versions')
    assert checkpoint.load(bad)[1]['model'] == 'gmu'


@pytest.mark.parametrize('leaf, store, match', [
    (np.array([1.0, np.nan], 'float32'), 'float32', 'params/w: not finite'),
    (np.array([1e5], 'float32'), 'float16', 'params/w: not finite when stored as float16.*100000'),
    (np.zeros(2, 'float64'), 'float32', 'params/w: found float64'),
    (np.zeros(2, 'float32'), 'int8', "store: found 'int8', expected one of float32, float16, bfloat16"),
    ('text', 'float32', 'params/w: found str'),
    ([np.zeros(2, 'float32')], 'float32', 'nested dicts'),
    ({'a/b': np.zeros(2, 'float32')}, 'float32', 'nested dicts'),
])
def test_weights_nobody_could_use_are_not_published(tmp_path, leaf, store, match):
    with pytest.raises(ValueError, match=match):
        checkpoint.publish(tmp_path / 'w', {'params': {'w': leaf}}, {}, store)
    assert not (tmp_path / 'w').exists()


def test_fingerprint_sees_names_dtypes_shapes_and_bytes():
    base = {'params': {'a': np.arange(6, dtype='float32').reshape(2, 3), 'b': np.zeros(2, 'int32')}}
    same = {'params': {'b': jnp.zeros(2, 'int32'), 'a': jnp.arange(6, dtype='float32').reshape(2, 3)}}
    assert checkpoint.fingerprint(base) == checkpoint.fingerprint(same)
    transposed = np.asfortranarray(base['params']['a'])
    same = {'params': base['params'] | {'a': transposed}}
    assert checkpoint.fingerprint(base) == checkpoint.fingerprint(same)
    others = [{'a': base['params']['a'].reshape(3, 2)}, {'b': np.zeros(2, 'float32')},
              {'b': np.zeros(3, 'int32')}, {'c': np.zeros(2, 'int32')}, {'b': np.array([0, 1], 'int32')}]
    prints = {checkpoint.fingerprint({'params': base['params'] | other}) for other in others}
    assert len(prints | {checkpoint.fingerprint(base)}) == len(others) + 1
    # Cards in the world carry fingerprints: the recipe may never change.
    assert checkpoint.fingerprint(base) == '379fd687bfa0cbef4baf63577ebc2b00971085a36abb781528334ff018e68291'


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'card.json'
    checkpoint.write_json(path, {'a': np.float32(0.5), 'b': np.arange(2), 'ä': (1, None)})
    assert checkpoint.read_json(path) == {'a': 0.5, 'b': [0, 1], 'ä': [1, None]}
    for value in (float('nan'), np.float32('inf'), object()):
        with pytest.raises(ValueError, match=r'card\.json: cannot be written as JSON'):
            checkpoint.write_json(path, {'a': value})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r'card\.json: could not be written: No space left') as fault:
        checkpoint.write_json(path, {'a': 2})
    assert fault.value.errno == errno.ENOSPC
    assert json.loads(path.read_text())['a'] == 0.5
    assert list(path.parent.iterdir()) == [path]


def test_json_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.json'):
        checkpoint.read_json(tmp_path / 'none.json')
    for content in (b'{"a": 1,}', b'\xff\xfe', b''):
        (tmp_path / 'bad.json').write_bytes(content)
        with pytest.raises(ValueError, match=r'bad\.json: not valid JSON'):
            checkpoint.read_json(tmp_path / 'bad.json')


if __name__ == '__main__':
    save_for_ever(sys.argv[1])

"""Kill -9 in the middle, the same command again: the run that was never interrupted, to the bit."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jmer import checkpoint, cli
from jmer.train.log import read

ROOT = Path(__file__).parents[2]
EPOCHS = 12
SETTINGS = (
    'model.hidden=8',
    'data.buckets=1',
    'data.batch_size=256',
    'data.drop_modalities=0.1',
    f'epochs={EPOCHS}',
)
ENVIRONMENT = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JMER_CACHE': str(ROOT / '.jax_cache'),
    'OMP_NUM_THREADS': '1',
}


def command(workdir):
    return ['train', 'toy/gmu', '--set', *SETTINGS, '--workdir', str(workdir), '--devices', '1']


def start(workdir):
    return subprocess.Popen(
        [sys.executable, '-m', 'jmer.cli', *command(workdir)],
        env=ENVIRONMENT,
        cwd=workdir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill(workdir, evaluations):
    """Starts the run and ends it by SIGKILL when its log holds so many evaluations."""
    process = start(workdir)
    try:
        deadline = time.monotonic() + 200
        while len(read(workdir / 'log.jsonl')) < evaluations and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output


def describe(workdir):
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert cli.main(['describe', str(workdir)]) == 0
    return json.loads(told.getvalue())


def untimed(workdir):
    return [
        {k: v for k, v in line.items() if not k.startswith(('time/', 'memory/'))}
        for line in read(workdir / 'log.jsonl')
    ]


@pytest.mark.slow
def test_kill_9_and_resume_is_exact_to_the_bit(tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    finish(start(whole))
    kill(killed, evaluations=4)
    one, cut = describe(whole), describe(killed)
    assert not cut['finished'] and 0 < cut['step'] < one['step'], 'it was cut off in the middle'
    assert f'resuming at step {cut["step"]}' in finish(start(killed))
    other = describe(killed)
    for name in ('step', 'seeds', 'state_sha256'):
        assert one[name] == other[name], name
    assert untimed(whole) == untimed(killed) and len(untimed(whole)) == EPOCHS
    cards = [checkpoint.read_json(run / 'weights' / 'card.json') for run in (whole, killed)]
    assert cards[0] == cards[1]
    assert not list(killed.glob('checkpoints/*part*')), 'nothing is left of a save that was cut off'

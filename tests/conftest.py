"""Settings that have to be made before JAX starts: eight simulated devices, quick compilation, a cache."""

import os
from pathlib import Path

import pytest

# Tests compile much and compute little; what they start inherits it.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_compilation_cache_dir', str(Path(__file__).parent.parent / '.jax_cache'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
    parser.addoption('--forbid-skips', action='store_true', help='a skipped test is a failure')


def pytest_collection_modifyitems(items):
    """Tests that share compiled functions stay in one process: those of a file, or of a model in the contract."""
    for item in items:
        model = item.callspec.params.get('name') if hasattr(item, 'callspec') else None
        shared = f'model {model}' if item.path.name == 'test_models.py' and model else item.path.name
        item.add_marker(pytest.mark.xdist_group(shared))


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin('terminalreporter')
    skipped = reporter.stats.get('skipped', []) if reporter else []
    if skipped and session.config.getoption('--forbid-skips'):
        session.exitstatus = 1

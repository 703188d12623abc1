"""Settings that have to be made before JAX starts: eight simulated devices, quick compilation, a cache."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

# Tests compile much and compute little; what they start inherits it.
# A flag that is not known any more would end the process.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0' + (
    ' --xla_cpu_use_fusion_emitters=false' if version('jaxlib').startswith('0.10.') else ''))

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_compilation_cache_dir', str(Path(__file__).parent.parent / '.jax_cache'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def shared_by(item):
    """Tests that share compiled functions: those of a file, or of a model in the contract."""
    model = item.callspec.params.get('name') if hasattr(item, 'callspec') else None
    return f'model {model}' if item.path.name == 'test_models.py' and model else str(item.path)


def pytest_collection_modifyitems(items):
    """They run one after the other in one process."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(shared_by(item)))
    items.sort(key=shared_by)


def pytest_runtest_teardown(item, nextitem):
    """Their programs are forgotten when they are done: of all models together they fill a machine's memory."""
    if nextitem is None or shared_by(nextitem) != shared_by(item):
        jax.clear_caches()

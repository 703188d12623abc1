"""Who may import whom, and what importing jmer costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'jmer'

BASE = {'types', 'author', 'collectives'}
ALLOWED = {
    'types': set(),
    'author': {'types'},
    'collectives': set(),
    'shipped': set(),
    'layers': {'types', 'collectives'},
    'losses': {'types'},
    'stages': {'types', 'losses'},
    'own_labels': {'types', 'layers', 'losses', 'stages'},
    'metrics': {'types'},
    'models': BASE | {'layers', 'losses', 'stages', 'own_labels'},
    'data': {'types'},
    'zoo': {'models', 'layers'},
    'parallel': {'collectives'},
    'checkpoint': {'types', 'parallel'},
    'author_files': set(),
    'importing': {'types', 'author_files', 'checkpoint', 'zoo', 'train'},
    'pretrained': {'types', 'checkpoint', 'shipped', 'zoo'},
    'significance': {'types', 'metrics'},
    'calibration': {'types', 'metrics'},
    'cost': set(),
    'train': BASE | {'zoo', 'losses', 'stages', 'metrics', 'data', 'parallel', 'checkpoint', 'pretrained', 'shipped',
                     'calibration', 'cost'},
    'results': BASE | {'zoo', 'metrics', 'data', 'parallel', 'checkpoint', 'pretrained', 'shipped', 'calibration',
                       'significance', 'train'},
    '__init__': {'types', 'zoo', 'pretrained', 'train'},
}
"""What each part of jmer may import of jmer; `cli` and `bench` may import everything."""


def parts_imported(path):
    """First names under jmer that a file imports, and the full dotted ones."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f'{node.module}.{alias.name}' for alias in node.names} if node.module == 'jmer' else {node.module}
    return {name for name in found if name.split('.')[0] == 'jmer' and name != 'jmer'}


def part_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix('.py')


FILES = [path for path in PACKAGE.rglob('*.py') if part_of(path) not in ('cli', 'bench', '_shipped')]


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_layers(path):
    part = part_of(path)
    allowed = ALLOWED[part] | {part}
    wrong = {name for name in parts_imported(path) if name.split('.')[1] not in allowed}
    assert not wrong, f'{part} may import {sorted(allowed)}'


def test_no_model_imports_a_model():
    for path in (PACKAGE / 'models').rglob('*.py'):
        assert not {name for name in parts_imported(path) if name.startswith('jmer.models')}, path


def outside(name):
    """Files that import a package from outside jmer, at any depth."""
    pattern = (f'import {name}', f'from {name}')
    return {str(path.relative_to(PACKAGE)) for path in FILES
            if any(line.strip().startswith(pattern) for line in path.read_text().splitlines())}


def test_one_place_for_every_heavy_package():
    assert outside('orbax') == {'checkpoint.py'}
    assert all(name.startswith('data/') for name in outside('tensorflow'))
    assert not [path for path in FILES if 'import experiments' in path.read_text()]


def test_importing_jmer_is_light():
    code = ('import sys, jmer, jmer.data.load, jmer.data.check, jmer.data.transforms\n'
            'heavy = {"tensorflow", "tensorflow_datasets", "orbax.checkpoint", "matplotlib", "torch"}\n'
            'sys.exit(", ".join(heavy & set(sys.modules)) or None)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

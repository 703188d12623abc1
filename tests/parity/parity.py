"""Numbers recorded from the authors' own code, and how near ours must come to them.

The fixtures lie in the directory that JMER_PARITY names (default: ../shared/parity beside the
repository). A parity test runs over `names('mult')`, loads each with `load(name)`, compares every array
through the asserts below and ends with `fixture.assert_all_compared()`, so that no recorded array can be
forgotten. Without the fixtures the tests are skipped and say so; where JMER_PARITY is set, they fail.
"""

import fnmatch
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(os.environ.get('JMER_PARITY', Path(__file__).parents[3] / 'shared' / 'parity'))
TARGETS = (
    'output', 'output_train', 'loss', 'buffer_after',
    'grad', 'grad_l2', 'grad_input', 'solo', 'solo_grad',
)


class Fixture:
    """One file: `f['output/preds']` is an array, `f.section('param')` all arrays of a section by name.

    hparams: the hyper-parameters. meta: everything else the JSON strings say (empty dicts where absent).
    """

    def __init__(self, name: str, arrays: Mapping[str, np.ndarray]):
        self.name, self._arrays = name, arrays
        self.hparams: dict[str, Any] = self._json('hparams') or self._json('hparams_json')
        self.meta: dict[str, Any] = self._json('meta')
        self.solo_meta: dict[str, Any] = self._json('solo_meta')
        self._compared: set[str] = set()

    def _json(self, key: str) -> dict[str, Any]:
        return json.loads(str(self._arrays[key])) if key in self._arrays else {}

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def section(self, name: str) -> dict[str, np.ndarray]:
        start = f'{name}/'
        return {k.removeprefix(start): v for k, v in self._arrays.items() if k.startswith(start)}

    def compared(self, *patterns: str) -> None:
        """Marks arrays that are no targets (shell patterns); say beside the call why they are not."""
        for pattern in patterns:
            self._compared.update(fnmatch.filter(self._arrays, pattern))

    def assert_all_compared(self) -> None:
        targets = {k for k in self._arrays if '/' in k and k.split('/')[0] in TARGETS}
        left = sorted(targets - self._compared)
        assert not left, f'{self.name}: recorded but never compared: {left}'

    def largest_gradient(self, section: str = 'grad') -> float:
        """The largest gradient entry in the file, of all tensors of a section and of the inputs."""
        arrays = [*self.section(section).values()]
        if section == 'grad':
            arrays += [v for v in self.section('grad_input').values() if v.dtype.kind == 'f']
        return max((float(np.abs(v).max()) for v in arrays if v.size), default=0.0)


def names(system: str) -> list[str]:
    """The fixtures of a system: `<system>.npz` and its variants `<system>_*.npz`.

    The system itself where there is none, so that `load` can skip it and say why.
    """
    stems = {p.stem for p in ROOT.glob('*.npz')}
    return sorted(s for s in stems if s == system or s.startswith(f'{system}_')) or [system]


def load(name: str) -> Fixture:
    """The fixture of this name. Where there is none the test is skipped, or fails if JMER_PARITY is set."""
    path = ROOT / f'{name}.npz'
    if not path.is_file():
        give_up = pytest.fail if 'JMER_PARITY' in os.environ else pytest.skip
        give_up(f'no parity fixture {path} (set JMER_PARITY to the directory of the fixtures)')
    with np.load(path, allow_pickle=False) as file:
        return Fixture(name, dict(file))


def _assert_within(fixture: Fixture, key: str, found: Any, tolerance: float) -> None:
    expected, found, where = fixture[key], np.asarray(found), f'{fixture.name} {key}'
    fixture.compared(key)
    assert found.shape == expected.shape, f'{where}: shape {found.shape}, recorded {expected.shape}'
    gap = float(np.abs(found - expected).max()) if expected.size else 0.0
    assert gap <= tolerance, f'{where}: off by {gap:.3g}, allowed {tolerance:.3g}'    # so that NaN fails


def assert_close_output(fixture: Fixture, key: str, found: Any, atol: float | None = None) -> None:
    """Within 1e-5 of the largest output, or five times the authors' own float32 error where that is more.

    key: of the recorded array, such as 'output/preds' or 'solo/log_prob/0'. atol: another tolerance, for
    the few exceptions.
    """
    gaps = fixture.meta.get('f32_vs_f64_max_abs', {})
    gaps = gaps if isinstance(gaps, dict) else {}
    gaps |= {name: largest for name, (largest, _) in fixture.meta.get('gap_f32_f64', {}).items()}
    own = gaps.get(key.split('/', 1)[1], 0.0)
    usual = max(1e-5 * float(np.abs(fixture[key]).max(initial=0)), 5 * own)
    _assert_within(fixture, key, found, usual if atol is None else atol)


def assert_close_loss(fixture: Fixture, key: str, found: Any, atol: float | None = None) -> None:
    """Within 1e-5, relative."""
    usual = 1e-5 * float(np.abs(fixture[key]).max())
    _assert_within(fixture, key, found, usual if atol is None else atol)


def assert_close_gradient(fixture: Fixture, key: str, found: Any) -> None:
    """Within 1e-4 of the largest gradient of that tensor, or 1e-6 of the largest in the file.

    Some gradients are zero in truth (a key bias under a softmax, a bias before BatchNorm); the file then
    holds rounding noise, which the second bound allows for.
    """
    section = 'solo_grad' if key.startswith('solo_grad') else 'grad'
    own = 1e-4 * float(np.abs(fixture[key]).max(initial=0))
    _assert_within(fixture, key, found, max(own, 1e-6 * fixture.largest_gradient(section)))


def assert_close_gradients(fixture: Fixture, found: Mapping[str, Any], section: str = 'grad') -> None:
    """Every recorded gradient, and norm of a gradient, of the authors' tensors.

    found: our gradients by the authors' names, with respect to the authors' tensors.
    """
    for name in fixture.section(section):
        assert_close_gradient(fixture, f'{section}/{name}', found[name])
    for name in fixture.section(f'{section}_l2'):
        norm = np.linalg.norm(np.ravel(found[name]))
        assert_close_gradient(fixture, f'{section}_l2/{name}', norm)

"""Reading an author's checkpoint by the names of its tensors, all faults in one message.

Every model file has `params_from_author(state, model)`: the authors' state_dict (a mapping of arrays)
in, jmer's variables out. It takes each tensor through a `Reader`, which checks shapes and, at the end,
names everything that was missing, misshapen or left over. Only operations that JAX can trace are used,
so a gradient with respect to the *authors'* tensors is `jax.grad` through the conversion.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmer.types import Params


class Reader:
    """Takes tensors out of `state` by name and remembers what it saw; call `close()` at the end.

    state: the authors' state_dict, arrays by key.
    model: name used in the error message, such as 'gmu'.
    """

    def __init__(self, state: Mapping[str, Any], model: str):
        self._state, self._model = state, model
        self._taken: set[str] = set()
        self._faults: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._state

    def take(self, key: str, *shape: int | None) -> Any:
        """The tensor called `key`, which must have this shape; None stands for any size."""
        expected = tuple('any' if n is None else n for n in shape)
        stand_in = np.zeros([n or 1 for n in shape], np.float32)   # lets the reading go on to the next fault
        if key not in self._state:
            self._faults.append(f'missing    {key}: expected shape {expected}')
            return stand_in
        self._taken.add(key)
        value = self._state[key]
        found = np.shape(value)
        if len(found) != len(shape) or any(n not in (None, m) for n, m in zip(shape, found, strict=True)):
            self._faults.append(f'misshapen  {key}: found {found}, expected {expected}')
            return stand_in
        return value

    def width(self, key: str, axis: int) -> int | None:
        """The size of one axis of a tensor, or None where there is no such tensor or axis."""
        shape = np.shape(self._state[key]) if key in self._state else ()
        return shape[axis] if -len(shape) <= axis < len(shape) else None

    def dense(self, prefix: str, inputs: int | None, outputs: int, bias: bool = True) -> Params:
        """`torch.nn.Linear` ([out, in]) as the parameters of `nn.Dense`."""
        kernel = self.take(f'{prefix}.weight', outputs, inputs).T
        return {'kernel': kernel} | ({'bias': self.take(f'{prefix}.bias', outputs)} if bias else {})

    def layer_norm(self, prefix: str, width: int | None) -> Params:
        """`torch.nn.LayerNorm` as the parameters of `nn.LayerNorm`."""
        return {'scale': self.take(f'{prefix}.weight', width), 'bias': self.take(f'{prefix}.bias', width)}

    def batch_norm(self, prefix: str, width: int | None) -> tuple[Params, Params]:
        """`torch.nn.BatchNorm1d` as the parameters and the statistics of `layers.norm.BatchNorm`."""
        self.skip(f'{prefix}.num_batches_tracked')
        statistics = {
            'mean': self.take(f'{prefix}.running_mean', width),
            'var': self.take(f'{prefix}.running_var', width),
        }
        return self.layer_norm(prefix, width), statistics

    def lstm(self, prefix: str, inputs: int | None, width: int, suffix: str) -> Params:
        """One direction of one layer of `torch.nn.LSTM` as the parameters of `layers.recurrent.LSTM`.

        The authors' two bias vectors only ever act as their sum, which is what is kept.
        """
        return {
            'input_kernel': self.take(f'{prefix}.weight_ih_{suffix}', 4 * width, inputs).T,
            'hidden_kernel': self.take(f'{prefix}.weight_hh_{suffix}', 4 * width, width).T,
            'bias': self.take(f'{prefix}.bias_ih_{suffix}', 4 * width)
            + self.take(f'{prefix}.bias_hh_{suffix}', 4 * width),
        }

    def skip(self, *patterns: str) -> None:
        """Marks tensors that the authors store and never use (shell patterns)."""
        for pattern in patterns:
            self._taken.update(fnmatch.filter(self._state, pattern))

    def close(self) -> None:
        """Raises ValueError if anything was missing, misshapen, or not taken."""
        faults = self._faults + [f'surplus    {k}: found {np.shape(self._state[k])}'
                                 for k in sorted(set(self._state) - self._taken)]
        if faults:
            raise ValueError(f'this is not a checkpoint of {self._model}, {len(faults)} keys differ:\n  '
                             + '\n  '.join(faults))


def stack(layers: Sequence[Params]) -> Params:
    """Parameters of equal layers, stacked on a new leading axis, as `nn.scan` keeps them."""
    import jax

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

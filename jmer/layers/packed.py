"""Sequences laid out for a recurrent layer: without gaps, one behind another, steps in front of rows.

A recurrent layer takes as long as it has rows and steps, present or not. So the present steps of a sequence are
moved together; the turns of every speaker can follow one another in one row, which costs no more than the dialogue;
and on a CPU, where a step takes as long as it has rows, a long sequence shares its row with a short one, and steps
behind the longest row are not run. Shapes stay what they are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Bool, Float, Int

from jmer.layers.masked import on_one_cpu
from jmer.types import Array

LEAST_WORK = 2048
"""With fewer numbers in a state, a step takes as long with half of its rows."""


class Packed(NamedTuple):
    """Where the steps of sequences [b t] stand in n rows of s steps.

    number: which step stands here, in one group or one group for each sequence. place: where each step stands,
    likewise. there: whether one does. first, last: whether a sequence begins or ends with it. mask: of the sequences.
    steps: length of the longest row.
    """

    number: Int[Array, 'g m']
    place: Int[Array, 'g k']
    there: Bool[Array, 's n']
    first: Bool[Array, 's n']
    last: Bool[Array, 's n']
    mask: Bool[Array, 'b t']
    steps: Int[Array, '']

    def rows(self, x: Float[Array, 'b t d']) -> Float[Array, 's n d']:
        """The sequences in this order; what stands where nothing is there is of no account."""
        x = _moved(x.reshape(len(self.number), -1, x.shape[-1]), self.number, self.place, self._there(), self._mask())
        return _steps_first(x, self.there.shape)

    def sequences(self, x: Float[Array, 's n d']) -> Float[Array, 'b t d']:
        """The way back; zeros at absent steps."""
        groups = _rows_first(x, len(self.number))
        return _moved(groups, self.place, self.number, self._mask(), self._there()).reshape(*self.mask.shape, -1)

    def _there(self):
        return _rows_first(self.there[..., None], len(self.number))[..., 0]

    def _mask(self):
        return self.mask.reshape(len(self.number), -1)


def pack(mask: Bool[Array, 'b t'], parts: Int[Array, 'b t'] | None = None, width: int = 0) -> Packed:
    """The order that a mask makes. parts: steps of one number form a sequence of their own. width: of the states."""
    mask = jnp.asarray(mask)
    batch, length = mask.shape
    place, first, last = _alone(mask) if parts is None else _apart(mask, jnp.asarray(parts))
    if not shares(batch, width):
        shape, groups, number = (length, batch), batch, place
        longest = jnp.sum(mask, -1)
    else:
        shape, groups = (2 * length, -(-batch // 2)), 1
        row, offset, longest = _paired(jnp.sum(mask, -1))
        number = (place + offset[:, None]) * shape[1] + row[:, None]
    place = number.reshape(groups, -1)
    size = shape[0] * shape[1] // groups
    there, first, last = (_steps_first(_scattered(place, mask, values, size)[..., None], shape)[..., 0]
                          for values in (mask, first, last))
    number = _scattered(place, mask, jnp.broadcast_to(jnp.arange(place.shape[1]), place.shape), size)
    return Packed(number, place, there, first, last, mask, _most(longest) if on_one_cpu() else jnp.asarray(shape[0]))


def shares(rows: int, width: int) -> bool:
    """Whether two sequences share a row: where half of the rows take half of the time."""
    return on_one_cpu() and rows * width >= LEAST_WORK


def _alone(mask):
    """Every step's place in its row, and whether it is the first or the last."""
    place = jnp.cumsum(mask, -1) - 1
    return place, mask & (place == 0), mask & (place == place[:, -1:])


def _apart(mask, parts):
    """The same of the parts, the lowest number in front."""
    both = mask[:, :, None] & mask[:, None, :]
    own = both & (parts[:, :, None] == parts[:, None, :])
    earlier = jnp.tril(jnp.ones(both.shape[1:], bool), -1)[None]
    before, after = own & earlier, own & earlier.swapaxes(1, 2)
    lower = both & (parts[:, :, None] > parts[:, None, :])
    return jnp.sum(before | lower, -1), mask & ~before.any(-1), mask & ~after.any(-1)


def _paired(lengths):
    """The row of every sequence, where in it it begins, and the lengths of the rows: the longest with the shortest."""
    batch = len(lengths)
    rank = jnp.argsort(jnp.argsort(-lengths))
    row = jnp.minimum(rank, batch - 1 - rank)
    total = jnp.zeros(-(-batch // 2), lengths.dtype).at[row].add(lengths)
    return row, jnp.where(rank > row, total[row] - lengths, 0), total


def _scattered(place, mask, values, size):
    """Values of the present steps at their places, zero elsewhere."""
    place, mask, values = (a.reshape(len(place), -1) for a in (place, mask, values))
    zeros = jnp.zeros(size, values.dtype)
    return jax.vmap(lambda place, value: zeros.at[place].set(value, mode='drop'))(
        jnp.where(mask, place, size), values)


def _steps_first(x, shape):
    """[g m d] to [s n d]: one group has the steps in front already."""
    return x.reshape(*shape, x.shape[-1]) if len(x) == 1 else x.swapaxes(0, 1)


def _rows_first(x, groups):
    return x.reshape(1, -1, x.shape[-1]) if groups == 1 else x.swapaxes(0, 1)


@jax.custom_vjp
def _moved(x, source, target, there, origin):
    """x[source] where there is something, zero elsewhere; `target` and `origin` lead back."""
    picked = jax.vmap(lambda x, source: x.at[source].get(mode='clip'))(x, source)
    return jnp.where(there[..., None], picked, 0)


def _moved_backward(saved, dy):
    return _moved(dy, *saved), None, None, None, None


_moved.defvjp(lambda x, source, target, there, origin:
              (_moved(x, source, target, there, origin), (target, source, origin, there)), _moved_backward)


@custom_vmap
def _most(lengths):
    """The largest; of a batch of seeds one for all, so that a loop may end there."""
    return jnp.max(lengths)


@_most.def_vmap
def _most_of_all(size, batched, lengths):
    return _most(lengths), False

"""The one word a step needs to be the same on one device and on many: `total`.

A training step is written once, over a batch that may be the whole global batch or one device's share of it:

- under `jit` with sharded arrays a sum over the batch axis *is* the global sum, the compiler sees to it;
- under `pmap` (or `shard_map`, or `vmap` with the axis named) a device sees its own rows only, and sums
  have to be added over the devices by hand.

`total` does the second where it is needed and nothing where it is not. It belongs around every sum over the
batch that has to be global: the count that divides a loss, the gradients, the statistics of batch
normalisation, the metric sums.

One trap: differentiate the loss of the *local* rows (divided by the global count) and total the gradients
afterwards. A loss that was totalled before it is differentiated gives gradients that are too large by the
number of devices, and Adam hides it.
"""

from typing import TypeVar

import jax

AXIS = 'data'
"""The name of the only axis devices are laid out on: rows of the batch are split over it."""

T = TypeVar('T')


def total(tree: T) -> T:
    """Sums every leaf of `tree` over the devices where axis 'data' is bound; the identity elsewhere.

    Shapes and dtypes stay as they are, except that bool leaves are counted as integers under `pmap`.
    """
    return jax.lax.psum(tree, AXIS) if bound() else tree


def bound() -> bool:
    """Whether this code is being traced once per device, with axis 'data' bound.

    JAX offers no public query for it. Asking for the device's index is the documented operation that
    fails with NameError where the name is unbound; the unused index is dropped by the compiler.
    """
    try:
        jax.lax.axis_index(AXIS)
    except NameError:
        return False
    return True

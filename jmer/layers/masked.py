"""Dense layers that leave padding out.

A batch of dialogues, padded to the longest, is often more padding than turns. On a CPU, where a product of matrices
takes as long as it has rows, the present steps are laid side by side in front of the others, and only such a front
is multiplied. How many steps are present is known when the program runs and not when it is compiled: it holds a
product for each of a few lengths, of which one is run, and shapes stay what they are.

Elsewhere all rows are multiplied: a branch costs an accelerator more than a product, and to lay steps of several
devices side by side, each would have to see them all.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import sequential_vmap
from jaxtyping import Bool, Float, Int

from jmer.layers.dense import kernel_gradient, on_rows, product
from jmer.types import Array

FRONTS = 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7
"""Shares of all rows: the lengths of a front, close together where most batches of dialogues lie."""
LEAST_ROWS, LEAST_WIDTH = 512, 128
"""Of fewer rows, or where the harmonic mean of the widths is less than twice this, moving rows costs too much."""
DENSE = 'dense'
"""What `multiply` gives, to those who choose what is kept for the backward pass."""


class Rows(NamedTuple):
    """All n steps of a batch in a row, the present ones in front.

    number: which step each is. there: whether it is present. place: where in that order each step is.
    """

    number: Int[Array, 'n']
    there: Bool[Array, 'n']
    place: Int[Array, 'n']


def rows_of(mask: Bool[Array, '*b t']) -> Rows:
    """The order of the steps that this mask makes."""
    present = mask.reshape(-1)
    before, count = jnp.cumsum(present), jnp.sum(present)
    steps = jnp.arange(len(present))
    place = jnp.where(present, before - 1, count + steps - before)
    number = jnp.zeros_like(steps).at[place].set(steps, unique_indices=True)
    return Rows(number, steps < count, place)


# Seeds are trained by `jax.vmap`, under which a choice of branches is a choice between results that are all computed.
# One seed after the other, it stays a branch.
@jax.custom_vjp
@sequential_vmap
def product_of_present(x: Float[Array, 'n d'], kernel: Float[Array, 'd e'], rows: Rows) -> Float[Array, 'n e']:
    """x @ kernel where something is present, zero elsewhere."""
    return _of_present(lambda x: x @ kernel, x, rows)


def _product_forward(x, kernel, rows):
    return product_of_present(x, kernel, rows), (x, kernel, rows)


def _product_backward(saved, dy):
    x, kernel, rows = saved
    # Each by itself: where x is data, nobody asks for its gradient, and that product is left out.
    return _input_gradient(kernel, dy, rows).astype(x.dtype), _kernel_gradient(x, dy, rows).astype(kernel.dtype), None


@sequential_vmap
def _input_gradient(kernel, dy, rows):
    return _of_present(lambda dy: dy @ kernel.T, dy, rows)


@sequential_vmap
def _kernel_gradient(x, dy, rows):
    return _in_front(rows, lambda number, there: kernel_gradient(_pick(x, number, there), dy[number]),
                     lambda: kernel_gradient(_cleared(x, rows), dy))


product_of_present.defvjp(_product_forward, _product_backward)


def _of_present(function: Callable[[Array], Array], x: Array, rows: Rows) -> Array:
    """What a function makes of the rows that are there, zero elsewhere."""
    def packed(number, there):
        return jnp.asarray(function(_pick(x, number, there))).at[rows.place].get(mode='fill', fill_value=0)

    return _in_front(rows, packed, lambda: function(_cleared(x, rows)))


def _in_front(rows: Rows, packed: Callable[[Array, Array], Array], full: Callable[[], Array]) -> Array:
    """`packed(number, there)` of the shortest front that holds all present steps, or `full()`, which moves nothing."""
    sizes = [math.ceil(share * len(rows.place)) for share in FRONTS]
    branches = [functools.partial(packed, rows.number[:size], rows.there[:size]) for size in sizes]
    return jax.lax.switch(jnp.sum(rows.there.sum() > jnp.array(sizes)), [*branches, full])


def _pick(x, number, there):
    return jnp.where(there[:, None], x[number], 0)


def _cleared(x, rows):
    return jnp.where((rows.place < rows.there.sum())[:, None], x, 0)


def on_one_cpu() -> bool:
    """Whether this program computes on one CPU and nowhere else."""
    return jax.device_count() == 1 and jax.default_backend() == 'cpu'


def skips(rows: int, inputs: int, width: int) -> bool:
    """Whether a product of these sizes is worth the search for rows that are not there: on one CPU."""
    worth = rows >= LEAST_ROWS and inputs * width >= LEAST_WIDTH * (inputs + width)
    return worth and on_one_cpu()


def multiply(
    x: Float[Array, '*b t d'], kernel: Float[Array, 'd e'], mask: Bool[Array, '*b t']
) -> Float[Array, '*b t e']:
    """x @ kernel at the present steps, zero elsewhere."""
    mask = jnp.asarray(mask)
    if skips(mask.size, *kernel.shape):
        y = on_rows(lambda x: product_of_present(x, kernel, rows_of(mask)), x)
    else:
        y = on_rows(lambda x: product(x, kernel), jnp.where(mask[..., None], x, 0))
    return checkpoint_name(y, DENSE)


class MaskedDense(nn.Module):
    """`Dense` of the present steps; elsewhere it gives its bias. Attributes: width; use_bias."""

    width: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, '*b t d'], mask: Bool[Array, '*b t']) -> Float[Array, '*b t {self.width}']:
        kernel = self.param('kernel', nn.initializers.lecun_normal(), (x.shape[-1], self.width))
        y = multiply(x, kernel, mask)
        if self.use_bias:
            y += self.param('bias', nn.initializers.zeros, (self.width,)).reshape((1,) * mask.ndim + (-1,))
        return y

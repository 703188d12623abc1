"""Recurrent layers over masked sequences.

The input projection of all steps is one matrix product in front of the scan, and an absent step leaves
the state as it was, or is moved out of the way (`layers.packed`). So a reversed layer reaches the last present
step with its initial state: the result on a padded sequence equals the one on the sequence alone, wherever the
absent steps stand.

`recur` is a scan whose backward pass makes the gradient of every weight in one product over all steps;
the derived one adds an array of the weight's size to another in every step.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer.layers.dense import kernel_gradient
from jmer.layers.dropout import Dropout
from jmer.layers.masked import multiply
from jmer.layers.packed import Packed, pack
from jmer.layers.pooling import pool
from jmer.types import Array

Linear = Callable[[str, Array], Array]
Step = Callable[[Linear, Any, Any, Any, dict[str, Array]], tuple[Any, Any]]
Weights = dict[str, dict[str, Array]]


def recur(
    step: Step,
    weights: Weights,
    start: Any,
    xs: Any,
    given: Any = (),
    memory: dict[str, Array] | None = None,
    recall: dict[str, Array] | None = None,
    *,
    reverse: bool = False,
) -> Any:
    """The outputs y of `carry, y = step(linear, carry, x, given, memory)`, stacked over the steps.

    step: a function of its arguments alone; what it reads of arrays comes through them.
    weights: by name, {'kernel'} or {'kernel', 'bias'}; `linear(name, v)` is v @ kernel + bias, and a step
        calls it at most once for each name.
    xs, given: what each step sees of the sequence, steps in front; only xs has a gradient.
    memory: where a step must see earlier outputs: for some names of the dict y an array of zeros
        [b steps ...], in which a step finds what was put out so far. It may use no other row, so it needs
        a mask among `given`. Unlike a carry, the memory is kept once and not once in every step.
    recall: for some names of the memory the number of a step, [steps b]: then a step finds the output [b ...]
        of that one alone, which costs less.
    """
    return _recur(step, reverse, weights, start, xs, given, memory or {}, recall or {})


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recur(step, reverse, weights, start, xs, given, memory, recall):
    return _recur_forward(step, reverse, weights, start, xs, given, memory, recall)[0]


def _recur_forward(step, reverse, weights, start, xs, given, memory, recall):
    def forward(state, inputs):
        carry, memory, (last, rows) = state
        t, x, given, recall = inputs
        # Written in the step after, in front of all that reads it: so the memory is never copied.
        memory = {name: array.at[:, last].set(rows[name]) for name, array in memory.items()}
        made: dict[str, Array] = {}

        def linear(name, value):
            y = value @ weights[name]['kernel']
            if 'bias' in weights[name]:
                y = y + weights[name]['bias'].reshape((1,) * (y.ndim - 1) + (-1,))
            return made.setdefault(name, y)

        after, y = step(linear, carry, x, given, _recalled(memory, recall))
        return (after, memory, (t, {name: y[name] for name in memory})), (y, carry, made)

    inputs = _numbered(xs, given, recall)
    first = inputs[0][-1 if reverse else 0], {name: array[:, 0] for name, array in memory.items()}
    _, (ys, carries, made) = jax.lax.scan(forward, (start, memory, first), inputs, reverse=reverse)
    return ys, (weights, inputs, {name: ys[name].swapaxes(0, 1) for name in memory}, carries, made)


def _recur_backward(step, reverse, saved, dys):
    weights, inputs, memory, carries, made = saved
    # Out here, for a small product with a transposed matrix is slow.
    back = {name: weight['kernel'].T for name, weight in weights.items()}

    def backward(state, saved):
        dcarry, dmemory, drows = state
        (t, x, given, recall), carry, made, dy = saved
        if memory:
            dy = dy | {name: dy[name] + row for name, row in drows.items()}

        def again(carry, x, memory, made):
            read = {}

            def linear(name, value):
                read[name] = value
                return _replay(back[name], value, made[name])

            return step(linear, carry, x, given, memory), read

        _, pull, read = jax.vjp(again, carry, x, _recalled(memory, recall), made, has_aux=True)
        dcarry, dx, more, dmade = pull((dcarry, dy))
        dmemory = {name: rows.at[jnp.arange(len(rows)), recall[name]].add(more[name]) if name in recall
                   else rows + more[name] for name, rows in dmemory.items()}
        # Read here for the next turn of the loop, again so that nothing is copied.
        following = jnp.clip(t + (1 if reverse else -1), 0, len(inputs[0]) - 1)
        return (dcarry, dmemory, {name: rows[:, following] for name, rows in dmemory.items()}), (dx, read, dmade)

    dcarry = jax.tree.map(lambda c: jnp.zeros(c.shape[1:], c.dtype), carries)
    dmemory = jax.tree.map(jnp.zeros_like, memory)
    drows = {name: rows[:, 0] for name, rows in dmemory.items()}
    (dstart, _, _), (dxs, read, dmade) = jax.lax.scan(
        backward, (dcarry, dmemory, drows), (inputs, carries, made, dys), reverse=not reverse)
    dweights = {name: _weight_gradient(weight, read[name], dmade[name]) for name, weight in weights.items()}
    return dweights, dstart, dxs, None, None, None


_recur.defvjp(_recur_forward, _recur_backward)


def _numbered(xs, given, recall):
    steps = jax.tree.leaves((xs, given))[0].shape[0]
    return jnp.arange(steps), xs, given, recall


def _recalled(memory, recall):
    return {name: rows[jnp.arange(len(rows)), recall[name]] if name in recall else rows
            for name, rows in memory.items()}


@jax.custom_vjp
def _replay(back, value, made):
    """`made`, known to be value @ back.T + bias; its own cotangent is that of the bias, row by row."""
    return made


_replay.defvjp(lambda back, value, made: (made, back), lambda back, dy: (None, dy @ back, dy))


def _weight_gradient(weight, read, dmade):
    rows = _rows(dmade)
    of = {'kernel': lambda: kernel_gradient(_rows(read), rows), 'bias': lambda: rows.sum(0)}
    return {name: of[name]().astype(value.dtype) for name, value in weight.items()}


def torch_uniform(width: int):
    """PyTorch's initialiser of recurrent layers: uniform in +-1/sqrt(width)."""
    bound = width**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class LSTM(nn.Module):
    """One layer, one direction of an LSTM (Hochreiter & Schmidhuber, 1997); gates i, f, g, o as PyTorch.

    Outputs are zero where the mask is False.

    Attributes:
        width: size of the hidden state.
        reverse: run from the last step to the first.
        learned_start: the first state and cell are parameters instead of zeros.
    """

    width: int
    reverse: bool = False
    learned_start: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, 's n d'], mask: Bool[Array, 'b t'] | Packed) -> Float[Array, 's n {self.width}']:
        """x: [b t d] with a mask, or as it was packed; the output likewise."""
        init = torch_uniform(self.width)
        input_kernel = self.param('input_kernel', init, (x.shape[-1], 4 * self.width))
        hidden_kernel = self.param('hidden_kernel', init, (self.width, 4 * self.width))
        bias = self.param('bias', init, (4 * self.width,))
        if self.learned_start:
            start = self.param('start', nn.initializers.normal(1.0), (2, self.width))
            return self._from(start, x, mask, input_kernel, hidden_kernel, bias)
        order = mask if isinstance(mask, Packed) else pack(mask, width=self.width)
        rows = x if order is mask else order.rows(x)
        gates = multiply(rows, input_kernel, order.there) + bias.reshape(1, 1, -1)
        keep = ~(order.last if self.reverse else order.first)[..., None]
        y = _lstm(self.reverse, gates, hidden_kernel, keep.astype(gates.dtype), order.steps)
        return y if order is mask else order.sequences(y)

    # A learned start has a gradient; there is no packing for it.
    def _from(self, start, x, mask, input_kernel, hidden_kernel, bias):
        present = mask[..., None]
        gates = multiply(x, input_kernel, mask) + bias.reshape(1, 1, -1)
        hidden, cell = jnp.broadcast_to(start[:, None], (2, len(x), self.width))
        return recur(_lstm_step, {'hidden': {'kernel': hidden_kernel}}, (hidden, cell), gates.swapaxes(0, 1),
                     present.swapaxes(0, 1), reverse=self.reverse).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lstm(reverse, gates, kernel, keep, steps):
    """States [s n w] of rows of sequences, from the gates' inputs [s n 4w]; 0 in `keep` [s n 1] starts a new one.

    Only the first `steps` steps are run. Beside the states, only the gates and the cells are kept for the way back.
    """
    return _lstm_forward(reverse, gates, kernel, keep, steps)[0]


def _lstm_forward(reverse, gates, kernel, keep, steps):
    width = len(kernel)
    # One tanh for all gates: sigmoid(x) = (1 + tanh(x / 2)) / 2.
    scale = jnp.where(jnp.arange(4 * width) // width == 2, 1, 0.5).astype(gates.dtype)[None]

    def step(at, state, saved):
        hidden, cell = (part * _one(keep, at) for part in state)
        active = jnp.tanh((_one(gates, at) + hidden @ kernel) * scale) * scale + (1 - scale)
        i, f, g, o = jnp.split(active, 4, axis=-1)
        after = f * cell + i * g
        hidden = o * jnp.tanh(after)
        made = hidden, active, cell
        return (hidden, after), tuple(_put(rows, own, at) for rows, own in zip(saved, made, strict=True))

    zero = jnp.zeros((gates.shape[1], width), gates.dtype)
    saved = tuple(jnp.zeros((*gates.shape[:2], n * width), gates.dtype) for n in (1, 4, 1))
    y, active, cells = _run(step, steps, reverse, (zero, zero), saved)
    return y, (kernel, keep, steps, y, active, cells)


def _lstm_backward(reverse, saved, dy):
    kernel, keep, steps, y, active, cells = saved
    back = kernel.T     # out here, for a small product with a transposed matrix is slow

    def step(at, state, dgates):
        dhidden, dcell = state
        i, f, g, o = jnp.split(_one(active, at), 4, axis=-1)
        cell = _one(cells, at)
        squashed = jnp.tanh(f * cell + i * g)
        dhidden = dhidden + _one(dy, at)
        dcell = dcell + dhidden * o * (1 - squashed * squashed)
        own = jnp.concatenate([dcell * g * i * (1 - i), dcell * cell * f * (1 - f), dcell * i * (1 - g * g),
                               dhidden * squashed * o * (1 - o)], -1)
        kept = _one(keep, at)
        return ((own @ back) * kept, dcell * f * kept), _put(dgates, own, at)

    zero = jnp.zeros_like(y[0])
    dgates = _run(step, steps, not reverse, (zero, zero), jnp.zeros_like(active))
    before = jnp.concatenate([y[1:], zero[None]] if reverse else [zero[None], y[:-1]]) * keep
    return dgates, kernel_gradient(_rows(before), _rows(dgates)), None, None


_lstm.defvjp(_lstm_forward, _lstm_backward)


def _run(step, steps, reverse, state, saved):
    """`state, saved = step(at, state, saved)` at each of these steps; what was saved."""
    def body(k, both):
        return step(steps - 1 - k if reverse else k, *both)

    # No more steps than there is room for: `jmer.cost` reads it here.
    most = len(jax.tree.leaves(saved)[0])
    return jax.lax.fori_loop(0, jax.lax.min(steps, most), body, (state, saved))[1]


def _one(rows, at):
    return jax.lax.dynamic_index_in_dim(rows, at, keepdims=False)


def _put(rows, own, at):
    return jax.lax.dynamic_update_index_in_dim(rows, own, at, 0)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def lstm_cell(gates: Float[Array, '*b g'], cell: Float[Array, '*b d']) -> tuple[Array, Array]:
    """The new hidden state and cell, from the gates i, f, g, o [.. 4 d] and the old cell."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(cell), cell


def _lstm_step(linear, carry, gates, present, memory):
    hidden, cell = carry
    new_hidden, new_cell = lstm_cell(gates + linear('hidden', hidden), cell)
    carry = jnp.where(present, new_hidden, hidden), jnp.where(present, new_cell, cell)
    return carry, jnp.where(present, new_hidden, 0.0)


class GRU(nn.Module):
    """One layer, one direction of a GRU (Cho et al., EMNLP 2014); gates r, z, n as PyTorch.

    Outputs are zero where the mask is False.

    Attributes:
        width: size of the hidden state.
        reverse: run from the last step to the first.
    """

    width: int
    reverse: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']
    ) -> Float[Array, 'b t {self.width}']:
        params = gru_params(self, x.shape[-1], self.width)
        present = mask[..., None]
        gates = multiply(x, params['input_kernel'], mask) + params['bias'].reshape(1, 1, -1)
        zero = jnp.zeros((x.shape[0], self.width), gates.dtype)
        return recur(_gru_step, {'hidden': gru_hidden(params)}, zero, gates.swapaxes(0, 1),
                     present.swapaxes(0, 1), reverse=self.reverse).swapaxes(0, 1)


def gru_params(module: nn.Module, inputs: int, width: int, prefix: str = '') -> dict[str, Array]:
    """The parameters of a GRU, as PyTorch initialises them, made by a compact module under `prefix`.

    PyTorch's two biases of the gates r and z act as a sum, which is `bias`; those of the candidate act
    apart, the second as `candidate_bias`.
    """
    shapes = {'input_kernel': (inputs, 3 * width), 'hidden_kernel': (width, 3 * width),
              'bias': (3 * width,), 'candidate_bias': (width,)}
    return {name: module.param(prefix + name, torch_uniform(width), shape) for name, shape in shapes.items()}


def gru_hidden(params: dict[str, Array]) -> dict[str, Array]:
    """The weights of a GRU that `recur` needs."""
    candidate = params['candidate_bias']
    bias = jnp.concatenate([jnp.zeros(2 * len(candidate), candidate.dtype), candidate])
    return {'kernel': params['hidden_kernel'], 'bias': bias}


def gru_cell(
    of_input: Float[Array, '*b g'], of_hidden: Float[Array, '*b g'], hidden: Float[Array, '*b d']
) -> Float[Array, '*b d']:
    """The new hidden state, from both linear maps [.. 3 d] and the old state."""
    r_input, z_input, n_input = jnp.split(of_input, 3, axis=-1)
    r_hidden, z_hidden, n_hidden = jnp.split(of_hidden, 3, axis=-1)
    new = jnp.tanh(n_input + nn.sigmoid(r_input + r_hidden) * n_hidden)
    return new + nn.sigmoid(z_input + z_hidden) * (hidden - new)


def _gru_step(linear, hidden, gates, present, memory):
    new = gru_cell(gates, linear('hidden', hidden), hidden)
    return jnp.where(present, new, hidden), jnp.where(present, new, 0.0)


class BiGRU(nn.Module):
    """Stacked bidirectional GRU, forward and backward states concatenated.

    Attributes:
        width: size of the hidden state of one direction.
        layers: number of layers.
        dropout: rate between layers (not after the last).
        causal: no backward direction; the output is then `width` wide.
    """

    width: int
    layers: int = 1
    dropout: float = 0.0
    causal: bool = False
    direction: ClassVar[Any] = GRU

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], *, train: bool
    ) -> Float[Array, 'b t e']:
        return self._stack(x, mask, train)

    def _stack(self, x, mask, train):
        for k in range(self.layers):
            if k:
                x = Dropout(self.dropout, name=f'dropout_{k}')(x, train=train)
            forward = self.direction(self.width, name=f'forward_{k}')(x, mask)
            if self.causal:
                x = forward
                continue
            backward = self.direction(self.width, reverse=True, name=f'backward_{k}')(x, mask)
            x = jnp.concatenate([forward, backward], -1)
        return x


class BiLSTM(BiGRU):
    """The same of LSTMs. parts: steps of one number are read as if the others were not there."""

    direction: ClassVar[Any] = LSTM

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], parts: Int[Array, 'b t'] | None = None,
        *, train: bool
    ) -> Float[Array, 'b t e']:
        order = pack(mask, parts, self.width)
        return order.sequences(self._stack(order.rows(x), order, train))


def last_states(
    x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']
) -> tuple[Float[Array, 'b w'], Float[Array, 'b w']]:
    """Where either direction ends: forward at the last present step, backward at the first; w = d / 2.

    x: what a bidirectional layer gave, [forward | backward].
    """
    forward, backward = jnp.split(x, 2, axis=-1)
    return pool(forward, mask, 'last'), pool(backward[:, ::-1], mask[:, ::-1], 'last')

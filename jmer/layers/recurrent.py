"""Recurrent layers over masked sequences.

The input projection of all steps is one matrix product in front of the scan, and an absent step leaves
the state as it was. So a reversed layer reaches the last present step with its initial state: the result
on a padded sequence equals the one on the sequence alone, wherever the absent steps stand.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.types import Array


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
    """

    width: int
    reverse: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']
    ) -> Float[Array, 'b t {self.width}']:
        init = torch_uniform(self.width)
        input_kernel = self.param('input_kernel', init, (x.shape[-1], 4 * self.width))
        hidden_kernel = self.param('hidden_kernel', init, (self.width, 4 * self.width))
        bias = self.param('bias', init, (4 * self.width,))
        present = mask[..., None]
        gates = jnp.where(present, x, 0.0) @ input_kernel + bias.reshape(1, 1, -1)

        def step(carry, inputs):
            hidden, cell = carry
            gates, present = inputs
            i, f, g, o = jnp.split(gates + hidden @ hidden_kernel, 4, axis=-1)
            new_cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            new_hidden = nn.sigmoid(o) * jnp.tanh(new_cell)
            carry = jnp.where(present, new_hidden, hidden), jnp.where(present, new_cell, cell)
            return carry, jnp.where(present, new_hidden, 0.0)

        zero = jnp.zeros((x.shape[0], self.width), gates.dtype)
        inputs = gates.swapaxes(0, 1), present.swapaxes(0, 1)
        return jax.lax.scan(step, (zero, zero), inputs, reverse=self.reverse)[1].swapaxes(0, 1)


class BiLSTM(nn.Module):
    """Stacked bidirectional LSTM, forward and backward states concatenated.

    Attributes:
        width: size of the hidden state of one direction.
        layers: number of layers.
        dropout: rate between layers (not after the last).
    """

    width: int
    layers: int = 1
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], *, train: bool
    ) -> Float[Array, 'b t {2*self.width}']:
        for k in range(self.layers):
            if k:
                x = nn.Dropout(self.dropout, name=f'dropout_{k}')(x, deterministic=not train)
            forward = LSTM(self.width, name=f'forward_{k}')(x, mask)
            backward = LSTM(self.width, reverse=True, name=f'backward_{k}')(x, mask)
            x = jnp.concatenate([forward, backward], -1)
        return x

"""What the parity tests of speech systems share: a batch of one stream, and outputs, loss and gradients."""

import jax
import numpy as np
import optax

from jmer.types import Batch, Label, Stream

QUICK = {'xla_backend_optimization_level': 0}       # compiled to run once


def clips(x, label, mask=None) -> Batch:
    """Clips [b t d] with one label each; all steps are present unless a mask says otherwise."""
    there = np.ones(len(x), bool)
    mask = np.ones(x.shape[:2], bool) if mask is None else mask
    return Batch({'audio': Stream(x, mask)}, there, {'emotion': Label(label, there)})


def cross_entropy(out, batch):
    """The mean over the batch."""
    label = batch.labels['emotion'].value
    return optax.softmax_cross_entropy_with_integer_labels(out.logits, label).mean()


def floats(state):
    """The tensors that have a gradient: without counters and indices."""
    return {k: v for k, v in state.items() if v.dtype == np.float32}


def forward(variables, model, batch, *, train=False):
    """Output and changed statistics."""
    def run(variables, batch):
        return model.apply(variables, batch, train=train, mutable=['batch_stats'])

    with jax.default_matmul_precision('highest'):
        out, changed = jax.jit(run, compiler_options=QUICK)(variables, batch)
    return out, changed.get('batch_stats', {})


def differentiate(convert, model, state, batch, loss=cross_entropy):
    """Output and loss without dropout, and gradients by the authors' names.

    The conversion stays outside of jit: its many transpositions would only be compiled.
    """
    variables, to_author = jax.vjp(lambda state: convert(state, model), floats(state))

    def run(variables, batch):
        out = model.apply(variables, batch, train=False)
        return loss(out, batch), out

    with jax.default_matmul_precision('highest'):
        gradient = jax.jit(jax.value_and_grad(run, has_aux=True), compiler_options=QUICK)
        (total, out), grads = gradient(variables, batch)
        return out, total, to_author(grads)[0]

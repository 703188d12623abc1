"""One run of a fusion system through the authors' tensors, every recorded array compared."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jmer.types import Batch, Label, Stream

from . import parity

QUICK = {'xla_backend_optimization_level': 0}       # compiled to run once


def floats(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What can be differentiated: counters of batch normalisation, labels and indices cannot."""
    return {k: v for k, v in arrays.items() if v.dtype.kind == 'f'}


def sequence(x, mask=None) -> Stream:
    """A stream of [b t d], all present where no mask is given."""
    return Stream(x, jnp.ones(x.shape[:2], bool) if mask is None else mask)


def batch_of(labels=None, **streams: Stream) -> Batch:
    """A batch of present items, unlabelled or with the target 'label'."""
    there = jnp.ones(len(next(iter(streams.values())).x), bool)
    return Batch(streams, there, {} if labels is None else {'label': Label(labels, there)})


def task_loss(logits, labels):
    """Mean absolute error of one output, else cross entropy; over two outputs a label in a vector of labels."""
    if labels.dtype.kind == 'f':
        return jnp.abs(logits - labels.reshape(logits.shape)).mean()
    return cross_entropy(logits, labels)


def cross_entropy(logits, labels):
    """The mean over all labels; the outputs of an item are split evenly over its labels."""
    logits = logits.reshape(labels.size, -1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.ravel()).mean()


def total(term):
    """A term as the trainer sums it."""
    return jnp.sum(term.value * term.weight) / jnp.sum(term.weight)


def assert_equals(
    fixture: parity.Fixture,
    convert: Callable,
    forward: Callable,
    named: Callable,
    losses: Callable,
    norms: Mapping[str, str] | None = None,
    atol: float | None = None,
) -> None:
    """Compares outputs, losses, statistics and gradients; every one that is recorded.

    convert: the authors' tensors to variables.
    forward: (variables, inputs, train) -> (output, changed collections), the inputs by the fixture's names.
    named: output -> arrays by the fixture's names; may hold more than was recorded.
    losses: (output, inputs) -> losses by the fixture's names, with 'total'.
    norms: the authors' prefix of each BatchNorm, by the path of ours ('net_audio/norm').
    """
    inputs = fixture.section('input')
    free = {k: v for k, v in floats(inputs).items() if f'grad_input/{k}' in fixture and 'mask' not in k
            and not k.startswith('labels')}
    variables, to_author = jax.vjp(convert, floats(fixture.section('param')))

    def objective(variables, free):
        out, changed = forward(variables, inputs | free, True)
        terms = losses(out, inputs | free)
        return terms['total'], (named(out), changed, terms)

    with jax.default_matmul_precision('highest'):
        out = jax.jit(lambda variables, free: named(forward(variables, inputs | free, False)[0]),
                      compiler_options=QUICK)(variables, free)
        gradient = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True), compiler_options=QUICK)
        (_, (trained, changed, terms)), (gradients, free_gradients) = gradient(variables, free)
        gradients, = to_author(gradients)

    for section, found in (('output', out), ('output_train', trained)):
        for key in fixture.section(section):
            parity.assert_close_output(fixture, f'{section}/{key}', found[key], atol)
    for key in fixture.section('loss'):
        parity.assert_close_loss(fixture, f'loss/{key}', terms[key])
    statistics = _flat(changed.get('batch_stats', {})) if norms else {}
    for ours, theirs in (norms or {}).items():
        for kind in ('mean', 'var'):
            parity.assert_close_output(fixture, f'buffer_after/{theirs}.running_{kind}', statistics[f'{ours}/{kind}'])
    fixture.compared('buffer_after/*.num_batches_tracked')     # a counter that we do not keep
    parity.assert_close_gradients(fixture, gradients)
    for key, found in free_gradients.items():
        parity.assert_close_gradient(fixture, f'grad_input/{key}', found)
    fixture.compared('grad_input/labels', 'grad_input/*mask')  # no gradients that a model has
    fixture.assert_all_compared()


def _flat(tree):
    return {'/'.join(key.key for key in path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}

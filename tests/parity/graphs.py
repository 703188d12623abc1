"""The order of comparisons that the graph systems share, and graphs as their authors keep them.

Outputs and losses of every dialogue *alone* are expected of the dialogues together in one padded batch, which
asks for more than parity; the longest one is also run alone, for the gradients.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jmer.losses import Term, cross_entropy
from jmer.types import Batch, Output

from . import parity
from .dialogues import QUICK, batch_of, class_weights, worth


def weighted_cross_entropy(fixture: parity.Fixture) -> Callable[..., dict[str, Term]]:
    """The loss of most systems, in the form of a model's own."""
    weights = class_weights(fixture)
    return lambda model, out, batch: {
        'label': cross_entropy(out.logits, batch.labels['emotion'], class_weights=weights)}


def total(terms: Mapping[str, Term]) -> Any:
    """What the trainer makes of the terms of a loss."""
    return sum(worth(term) for term in terms.values())


def only(batch: Batch, row: Any) -> Batch:
    """The batch in which one dialogue alone is labelled."""
    here = (jnp.arange(len(batch.present)) == row)[:, None]
    return batch._replace(labels={k: v._replace(mask=v.mask & here) for k, v in batch.labels.items()})


def compare(
    fixture: parity.Fixture,
    module: Any,
    model: nn.Module,
    named: Callable[[Output, int, int], Mapping[str, Any]],
    loss: Callable[..., dict[str, Term]] | None = None,
    tolerances: Mapping[str, float] | None = None,
    batches: Callable[..., Batch] = batch_of,
) -> None:
    """Compares all `solo/...` and, where the authors' code is blind to padding, the outputs in their batch.

    named: our arrays of a dialogue by the fixture's names: (output, row, turns) -> arrays; those that the
    fixture does not have are passed over. loss: as a model's own. tolerances: absolute ones, by name, for the
    few exceptions. batches: as `batch_of`.
    """
    loss, tolerances = loss or weighted_cross_entropy(fixture), tolerances or {}
    lengths = [int(n) for n in fixture['input/lengths']]
    longest, blind = fixture.solo_meta['longest'], fixture.solo_meta['padding_exact']
    everyone = batches(fixture)
    # The conversion stays outside of jit: its transpositions would only be compiled.
    variables, to_author = jax.vjp(lambda s: module.params_from_author(s, model), fixture.section('param'))

    def losses(variables, batch):
        out = model.apply(variables, batch, train=False)
        each = [total(loss(model, out, only(batch, row))) for row in range(len(lengths))]
        return out, jnp.stack(each)

    def objective(variables, batch):
        out = model.apply(variables, batch, train=False)
        return total(loss(model, out, batch)), out

    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICK)
    with jax.default_matmul_precision('highest'):
        out, each = jax.jit(losses, compiler_options=QUICK)(variables, everyone)
        (value, alone), grads = gradient(variables, batches(fixture, [longest]))
        for row, turns in enumerate(lengths):
            _compare_dialogue(fixture, named(out, row, turns), row, tolerances)
            parity.assert_close_loss(fixture, f'solo/loss/{row}', each[row])
        _compare_dialogue(fixture, named(alone, 0, lengths[longest]), longest, tolerances)
        parity.assert_close_loss(fixture, f'solo/loss/{longest}', value)
        parity.assert_close_gradients(fixture, to_author(grads)[0], 'solo_grad')
        if blind:
            (value, out), grads = gradient(variables, everyone)
            _compare_flat(fixture, [named(out, row, turns) for row, turns in enumerate(lengths)])
            parity.assert_close_loss(fixture, 'output/loss', value)
            parity.assert_close_gradients(fixture, to_author(grads)[0])
    if not blind:
        fixture.compared('output/*', 'grad/*')      # of the padded batch, in which padding leaks


def _compare_dialogue(fixture, arrays, row, tolerances):
    for name, found in arrays.items():
        if f'solo/{name}/{row}' in fixture:
            parity.assert_close_output(fixture, f'solo/{name}/{row}', found, tolerances.get(name))


def _compare_flat(fixture, arrays):
    """The outputs of the authors' batch: one dialogue behind the other, or padded with whatever."""
    for name in arrays[0]:
        key = f'output/{name}'
        if key in fixture:
            found = np.concatenate([a[name] for a in arrays])
            if fixture[key].ndim > found.ndim:
                found = fixture[key].copy()
                for row, a in enumerate(arrays):
                    found[row, :len(a[name])] = a[name]
            parity.assert_close_output(fixture, key, found)


def edges_of(graph, *values):
    """A graph [t s] as the authors keep it, [2 e] of sources and targets in order; and arrays [t s] along it."""
    edges = np.argwhere(np.asarray(graph).T).T
    return edges, *(np.asarray(v)[edges[1], edges[0]] for v in values)

"""Conversation fixtures as batches of dialogues, and the loop that every conversation system shares.

A fixture holds a padded batch of dialogues, time first, and what the authors' code says of every dialogue
alone (`solo/...`). Ours is compared with that three times: the longest dialogue alone and unpadded, every
other one alone and padded to its length, and all of them in one batch.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jmer import losses
from jmer.types import Batch, Label, Stream
from tests.parity import parity

QUICK = {'xla_backend_optimization_level': 0}       # compiled to run once
STREAMS = {'text': 'text', 'audio': 'audio', 'vision': 'visual'}


def batch_of(fixture, rows=None, turns=None, streams: Mapping[str, str] = STREAMS) -> Batch:
    """Some dialogues of a fixture (all), cut to or padded to so many turns (the longest).

    streams: our name of a stream to theirs; what the fixture does not have is left out.
    """
    inputs = fixture.section('input')
    rows = list(range(len(inputs['lengths']))) if rows is None else rows
    turns = int(inputs['lengths'].max()) if turns is None else turns
    mask = np.arange(turns)[None] < inputs['lengths'][rows, None]
    found = {ours: Stream(inputs[theirs].swapaxes(0, 1)[rows, :turns], mask)
             for ours, theirs in streams.items() if theirs in inputs}
    label = Label(np.where(mask, inputs['label'][rows, :turns], 0).astype(np.int32), mask)
    return Batch(found, mask, {'emotion': label}, inputs['speakers'][rows, :turns].astype(np.int32))


def class_weights(fixture):
    weights = fixture.hparams.get('class_weights')
    return tuple(map(float, weights)) if weights else None


def worth(term: losses.Term):
    """What the trainer makes of a term."""
    return jnp.sum(term.value * term.weight) / jnp.maximum(jnp.sum(term.weight), 1e-9)


def compare(
    fixture,
    run: Callable,
    named: Callable,
    batches: Callable | None = None,
    loss_atol: Mapping[str, float] | None = None,
    exact: bool = False,
    section: str = 'solo',
) -> None:
    """Compares outputs and losses of every dialogue, alone and in company.

    run: (batch) -> (outputs, losses), two dicts of arrays; it is compiled once for each size of batch.
    named: (outputs, row, turns) -> our outputs for one dialogue by the fixture's names.
    batches: (rows) -> Batch, where `batch_of` will not do. Losses are compared alone only.
    loss_atol: absolute tolerances of some losses.
    section: of the fixture, with dialogues alone.
    exact: padding changes nothing in the authors' code: the losses of the padded batch are compared too.
    """

    def compare_losses(values, key):
        for name, value in values.items():
            if (found := key.format(name)) in fixture:
                parity.assert_close_loss(fixture, found, np.reshape(value, fixture[found].shape),
                                         (loss_atol or {}).get(name))

    batches = batches or (lambda rows: batch_of(fixture, rows))
    lengths = fixture['input/lengths']
    run = jax.jit(run, compiler_options=QUICK)
    together, values = run(batches(list(range(len(lengths)))))
    if exact:
        compare_losses(values, 'output/{}')
    for i, turns in enumerate(map(int, lengths)):
        alone, values = run(batches([i]))
        for outputs, row in ((alone, 0), (together, i)):
            for name, found in named(outputs, row, turns).items():
                parity.assert_close_output(fixture, f'{section}/{name}/{i}', found)
        compare_losses(values, f'{section}/{{}}/{i}')


def compare_gradients(fixture, loss: Callable, convert: Callable, section: str = 'solo_grad', batch=None) -> dict:
    """Compares gradients of loss(variables, batch), by default of the longest dialogue alone.

    convert: the authors' state_dict to our variables; kept out of the compiled part, which it would only swell.
    Gives the gradients by the authors' names.
    """
    batch = batch_of(fixture, [fixture.solo_meta['longest']]) if batch is None else batch
    variables, to_author = jax.vjp(convert, fixture.section('param'))
    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(variables, batch)
    found, = to_author(gradient)
    parity.assert_close_gradients(fixture, found, section)
    return found

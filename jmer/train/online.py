"""Conversations turn by turn: what a causal model says of a turn when nothing later has been said yet."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jmer import zoo
from jmer.train.evaluate import predict
from jmer.types import Array, Batch, Variables

Run = Callable[[Variables, Batch], Float[Array, 'b u c']]


class History(NamedTuple):
    """What has been said so far.

    batch: dialogues of a fixed number of turns, of which the first `said` have been said. said: [].
    """

    batch: Batch
    said: Int[Array, '']


Step = Callable[[History | None, Batch], tuple[History, Float[Array, 'b c']]]


def online(model: nn.Module, variables: Variables, turns: int = 110) -> Step:
    """A pure function (history, turn) -> (history, scores), for conversations while they are going on.

        step, history = jmer.online(model, variables), None
        for turn in turns:
            history, scores = step(history, turn)

    turn: a batch of dialogues of one turn, streams [b 1 d] or [b 1 t d], always of the same shapes. scores: the
    logits of that turn, [b c], those that `predict` gives it in the whole dialogue. turns: how many there can be;
    every step reads that many, compiled once, for the first turn. Raises ValueError for a model that is not
    causal, and for what `predict` refuses.
    """
    check_causal(model)
    return stepwise(lambda variables, batch: predict(model, variables, batch).logits, model, variables, turns)


def check_causal(model: nn.Module) -> None:
    """Raises ValueError for a model whose turns read what is said later."""
    name = zoo.name_of(model)
    if not hasattr(model, 'causal'):
        causal = [other for other in zoo.list_models('dialogue') if hasattr(zoo.module(other).Model, 'causal')]
        raise ValueError(f'{name}: found no field causal, expected a model that can do without the turns to come: '
                         f'{", ".join(causal)}')
    if not model.causal:
        raise ValueError(f'{name}: field causal: found False, so that turns read those to come; expected a model '
                         'trained with causal=True')


def stepwise(run: Run, model: nn.Module, variables: Variables, turns: int) -> Step:
    """The step of `online`, from a function that scores all turns of dialogues."""
    advance = jax.jit(partial(_advance, run))

    def step(history: History | None, turn: Batch) -> tuple[History, Any]:
        turn = turn._replace(labels={}, items=None)
        history = _empty(turn, turns) if history is None else history
        if not isinstance(history.said, jax.core.Tracer):
            _check(model, history, turn)
        return advance(variables, history, turn)

    return step


def _advance(run: Run, variables: Variables, history: History, turn: Batch) -> tuple[History, Any]:
    batch = jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, history.said, 1),
                         history.batch, jax.tree.map(jnp.asarray, turn))
    scores = jax.lax.dynamic_index_in_dim(run(variables, batch), history.said, 1, keepdims=False)
    return History(batch, history.said + 1), scores


def _empty(turn: Batch, turns: int) -> History:
    """A history of which nothing has been said yet."""
    if np.shape(turn.present)[1:] != (1,):
        raise ValueError(f'turn: found present of shape {np.shape(turn.present)}, expected one turn, [b 1]')
    return History(jax.tree.map(lambda x: jnp.zeros((len(x), turns, *x.shape[2:]), x.dtype), turn),
                   jnp.zeros((), jnp.int32))


def _check(model: nn.Module, history: History, turn: Batch) -> None:
    """Raises ValueError where a turn does not fit what has been said before."""
    turns = history.batch.present.shape[1]
    if history.said >= turns:
        raise ValueError(f'turns: found turn {int(history.said) + 1}, expected at most {turns}')
    if turn.speakers is not None:
        zoo.check_speakers(model, int(np.max(np.where(turn.present, turn.speakers, -1))) + 1)
    expected, found = (_shapes(batch) for batch in (history.batch, turn))
    if found != expected:
        raise ValueError(f'turn: found {found}, expected as before {expected}')


def _shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    """The shapes of one turn of the streams, by name."""
    return {name: (stream.x.shape[0], *stream.x.shape[2:]) for name, stream in sorted(batch.streams.items())}

"""What the trainer minimises: for most systems one loss from the first step to the last, for some, several stages.

A model's file that says nothing is trained on its `loss`, or on the experiment's. Beyond that it may define

    stages(model) -> tuple[Stage, ...]                       what is minimised when, and what moves
    teacher(model) -> nn.Module                              a second module, trained or asked along the way
    memory(model, labels, batch_size) -> tree                what is remembered from one step to the next

and the one trainer runs them: all of it is part of the state that a run goes on with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jmer.losses import Term
from jmer.types import Array, Batch, Output, Params

Loss = Callable[[nn.Module, Output, Batch], dict[str, Term]]
TEACHER = 'teacher'
"""Where the variables of a teacher stand, in every collection beside the model's own."""


class Learner(NamedTuple):
    """What an objective can ask and knows.

    forward: (batch, **fields) -> Output: the model in training, some of its fields changed if given.
    teach: (batch, *, train) -> Output: the teacher, in training or as it is.
    memory: what is remembered so far. epoch: of the run, from 1. key: for what is drawn at random.
    """

    forward: Callable[..., Output]
    teach: Callable[..., Output]
    memory: Any
    epoch: Array
    key: jax.Array


class Result(NamedTuple):
    """What an objective gives: the output that the batch is measured by, the loss's terms, and the new memory."""

    out: Output
    terms: dict[str, Term]
    memory: Any


Objective = Callable[[Any, Learner, Batch], Result]


class Stage(NamedTuple):
    """A part of training.

    name: for the log. objective: what is minimised.
    share: of the run's epochs; stages follow one another. 0 in all of them: they take turns, an epoch each.
    moves: whether the parameter of a name such as 'encoders/dense/kernel' moves, if not all do.
    enter: the parameters with which the stage begins, of those with which the one before has ended.
    """

    name: str
    objective: Objective
    share: float = 0.0
    moves: Callable[[str], bool] | None = None
    enter: Callable[[Params], Params] | None = None


def objective(loss: Loss) -> Objective:
    """The objective of a model that has but a loss."""
    def of_batch(model: nn.Module, learner: Learner, batch: Batch) -> Result:
        out = learner.forward(batch)
        return Result(out, loss(model, out, batch), learner.memory)

    return of_batch


def of_teacher(name: str) -> bool:
    """Whether the parameter of this name is the teacher's: what moves while it learns."""
    return name.startswith(f'{TEACHER}/')


def of_model(name: str) -> bool:
    """Whether the parameter of this name is the model's own: what moves when the teacher has learnt."""
    return not of_teacher(name)


def plan(stages: tuple[Stage, ...], epochs: int) -> list[int]:
    """Which stage every epoch belongs to. Raises ValueError where there are too few epochs for all."""
    if not any(stage.share for stage in stages):
        count = epochs // len(stages) * len(stages)
        found = [k % len(stages) for k in range(count)]
    else:
        ends = [round(epochs * sum(stage.share for stage in stages[:k + 1])) for k in range(len(stages) - 1)]
        found = [sum(epoch >= end for end in ends) for epoch in range(epochs)]
    if set(found) != set(range(len(stages))) or len(found) < epochs:
        raise ValueError(f'epochs: found {epochs}, expected enough for each of the stages '
                         f'{", ".join(stage.name for stage in stages)}'
                         + (f', a multiple of {len(stages)}' if len(found) < epochs else ''))
    return found

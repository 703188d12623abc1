"""The course of a training: its stages, which of them every epoch belongs to, and the step of each."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

from jmer import losses, parallel, stages, zoo
from jmer.data import transforms
from jmer.data.corpus import Item, Target
from jmer.data.pipeline import Pipeline, class_counts
from jmer.train import optimizers
from jmer.train.evaluate import metric_of
from jmer.train.experiment import Experiment
from jmer.train.step import Perturbation, make_step
from jmer.types import Batch


class Course(NamedTuple):
    """What is done in every epoch, and with what the first begins.

    plan: the stage of every epoch. steps: that of one seed, by stage. optimizer: of the first stage; its state
    holds those of the others. memory: see `jmer.stages`.
    """

    stages: tuple[stages.Stage, ...]
    plan: list[int]
    steps: tuple[parallel.Step, ...]
    optimizer: optax.GradientTransformation
    teacher: nn.Module | None
    memory: Any


def course_of(experiment: Experiment, target: Target, items: Sequence[Item], batches: Pipeline) -> Course:
    """The course of an experiment on these training items, whose batches are `batches`."""
    model, file = experiment.model, zoo.module(zoo.name_of(experiment.model))
    whole = (stages.Stage('all', stages.objective(loss_of(experiment, target))),)
    todo = _balanced(file.stages(model) if hasattr(file, 'stages') else whole, experiment, target, items)
    plan = stages.plan(todo, experiment.epochs)
    each = [optimizers.make(experiment.optimizer, batches.steps_per_epoch * plan.count(k), stage.moves)
            for k, stage in enumerate(todo)]
    teacher = file.teacher(model) if hasattr(file, 'teacher') else None
    memory = file.memory(model, batches.labels(), batches.batch_size) if hasattr(file, 'memory') else ()
    steps = tuple(_step(experiment, target, stage, optimizers.in_turn(each, k), teacher, batches.steps_per_epoch)
                  for k, stage in enumerate(todo))
    return Course(todo, plan, steps, optimizers.in_turn(each, 0), teacher, memory)


def _balanced(
    todo: tuple[stages.Stage, ...], experiment: Experiment, target: Target, items: Sequence[Item]
) -> tuple[stages.Stage, ...]:
    """The stages, in whose losses items weigh by how rare their class is, if the experiment says so."""
    if not experiment.loss.balance:
        return todo
    weights = losses.class_balance(class_counts(items, target), experiment.loss.balance)

    def balanced(objective: stages.Objective) -> stages.Objective:
        def of_batch(model: nn.Module, learner: stages.Learner, batch: Batch) -> stages.Result:
            result = objective(model, learner, batch)
            return result._replace(terms=losses.reweighted(result.terms, batch.labels[target.name], weights))

        return of_batch

    return tuple(stage._replace(objective=balanced(stage.objective)) for stage in todo)


def _step(
    experiment: Experiment, target: Target, stage: stages.Stage, optimizer: optax.GradientTransformation,
    teacher: nn.Module | None, steps_per_epoch: int,
) -> parallel.Step:
    """The step of one seed in one stage."""
    metric, settings = metric_of(target), experiment.optimizer
    return make_step(
        experiment.model, stage.objective, optimizer,
        lambda out, batch: metric.sums(out.logits, batch.labels[target.name]),
        augment_of(experiment, target), experiment.accumulate, experiment.compute_dtype,
        Perturbation(settings.perturb, settings.perturb_by) if settings.perturb else None, teacher, steps_per_epoch)


def loss_of(experiment: Experiment, target: Target) -> Callable:
    """The loss of the model's own file, or the one the experiment names for this kind of target."""
    own = getattr(zoo.module(zoo.name_of(experiment.model)), 'loss', None)
    if own is not None:
        return own
    settings = experiment.loss
    usual = losses.supervised(target.kind, settings.name or None,
                              class_weights=settings.class_weights or None,
                              label_smoothing=settings.label_smoothing,
                              gamma=settings.gamma if settings.name == 'focal' else None)
    return lambda model, out, batch: {'label': usual(out.logits, batch.labels[target.name])}


def augment_of(experiment: Experiment, target: Target) -> Callable[[Batch, jax.Array], Batch]:
    """What the experiment does to training batches at random."""
    data = experiment.data

    def augment(batch, key):
        drop_key, noise_key, frame_key, label_key = jax.random.split(key, 4)
        if data.noise:
            batch = transforms.add_noise(batch, noise_key, data.noise)
        if data.drop_modalities:
            batch = transforms.drop_modalities(batch, drop_key, data.drop_modalities)
        if data.frame_drop:
            batch = transforms.drop_frames(batch, frame_key, data.frame_drop)
        if data.label_noise:
            batch = transforms.flip_labels(batch, label_key, data.label_noise, target.name, len(target.names))
        return transforms.stand_in(batch, data.stand_ins)

    return augment

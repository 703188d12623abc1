"""The one trainer: restore, step, log, evaluate, save; then, once, the test.

The loop sees training and validation items only. The epoch is chosen on validation, written down as the
best checkpoint, and only then are the test items looked at, with that checkpoint.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from jmer import checkpoint, losses, metrics, parallel, zoo
from jmer.data import transforms
from jmer.data.corpus import Corpus, Item, Target
from jmer.data.pipeline import Pipeline, pipeline
from jmer.data.splits import Splits, split
from jmer.train import inputs, optimizers, preflight
from jmer.train.evaluate import LOWER, make_predict, metric_of, no_nan, sweep
from jmer.train.experiment import Experiment, to_json
from jmer.train.log import Log
from jmer.train.step import TrainState, init_state, make_step
from jmer.train.watch import Watch
from jmer.types import Batch, Variables


class Progress(NamedTuple):
    """What the choice of an epoch has to remember: the best value so far, evaluations since then."""

    best: float
    waited: int


def train(
    experiment: Experiment,
    corpus: Corpus,
    workdir: Path,
    *,
    via: str = 'jit',
    mesh: jax.sharding.Mesh | None = None,
    console: Console | None = None,
    command: str = '',
) -> dict[str, Any]:
    """Runs an experiment in `workdir`, or goes on with the one that is there; returns its card.

    via: 'jit' or 'pmap'. mesh: devices, all if None. console: where to report. command: for the card.
    The chosen weights lie in `<workdir>/weights` when it is done. Raises ValueError, and changes nothing,
    where the folder belongs to another experiment or other data; FloatingPointError, naming the step and
    leaving the last checkpoint as it is, where the loss is not finite.
    """
    console = console or Console(quiet=True)
    mesh = mesh or parallel.mesh()
    workdir = Path(workdir)
    target = corpus.spec.target(experiment.data.target)
    preflight.check(experiment, corpus, target, mesh)
    loss = loss_of(experiment, target)
    splits = Splits(*(inputs.shape(side, experiment.data) for side in split(corpus, experiment.data.protocol)))
    moments = inputs.fit(splits.train, experiment.data)
    make = _pipelines(experiment, corpus, moments, mesh)

    training = make(splits.train, experiment.data.buckets)
    choosing = make(splits.validation, 1) if splits.validation else None
    run = parallel.compile_predict(make_predict(experiment.model, target, experiment.data), mesh)
    by_step = experiment.monitor == 'step' or choosing is None
    metric = 'step' if by_step else f'validation/{experiment.monitor}'
    higher = by_step or experiment.monitor not in LOWER
    optimizer = optimizers.make(experiment.optimizer, training.steps_per_epoch * experiment.epochs)
    example = jax.tree.map(lambda x: x[:1], training.stream(experiment.seed, 0))
    fresh = init_state(experiment.model, optimizer, example, experiment.seed)
    # Last of all, so that an experiment that cannot run leaves no mark on the folder.
    preflight.claim(workdir, {**to_json(experiment), 'data_sha256': inputs.fingerprint(
        corpus, experiment.data.streams, target.name)})
    with checkpoint.Run(workdir, metric, higher) as saved:
        state = _fit(experiment, target, loss, optimizer, fresh, training, choosing, run, saved, workdir, via, mesh,
                     console)
        best = saved.best()
        assert best is not None
        chosen = {'params': state.params, 'model_state': state.model_state}
        variables = _variables(saved.restore(best, {'state': chosen}, partial=True)['state'])
    card = _card(experiment, corpus, splits, moments, variables, {'step': best, 'by': metric}, command)
    for name, side in (('validation', splits.validation), ('test', splits.test)):
        if side:
            sums, _ = sweep(run, parallel.replicate(variables, mesh), make(side, 1), mesh)
            card['metrics'][name] = {'n': _count(side, target.name)} | no_nan(metric_of(target).compute(sums))
    return checkpoint.publish(workdir / 'weights', variables, card)


def _card(experiment, corpus, splits, moments, variables, selected, command) -> dict[str, Any]:
    """All that the weights' users need to know of them, but for the metrics."""
    training = {key: value for key, value in to_json(experiment).items() if key not in ('model', 'data', 'seed')}
    return {
        'jmer': version('jmer'),
        **zoo.describe(experiment.model),
        'parameters': sum(x.size for x in jax.tree.leaves(variables['params'])),
        **inputs.spec_to_json(corpus.spec, experiment.data, moments),
        'data': dataclasses.asdict(experiment.data),
        'training': training,
        'seed': experiment.seed,
        'command': command,
        'paper': zoo.about(zoo.name_of(experiment.model)),
        'selected': selected,
        'groups': {name: sorted({item.group for item in side}) for name, side in splits._asdict().items()},
        'metrics': {},
    }


def _fit(experiment, target, loss, optimizer, fresh, training, choosing, run, saved, workdir, via, mesh,
         console) -> TrainState:
    """Trains to the end, or to the end of patience; the state after the last step."""
    metric = metric_of(target)
    step = parallel.compile_step(make_step(
        experiment.model, loss, optimizer,
        lambda out, batch: metric.sums(out.logits, batch.labels[target.name]),
        augment_of(experiment), experiment.accumulate, experiment.compute_dtype), mesh, via)
    state = parallel.replicate(fresh, mesh)
    progress = Progress(-np.inf if saved.higher else np.inf, 0)
    latest = saved.latest()
    if latest is not None:
        restored = saved.restore(latest, {'state': state, 'progress': progress})
        state, progress = restored['state'], restored['progress']
        console.print(f'resuming at step {latest}')
    key = jax.random.key(experiment.seed)
    rate = optimizers.schedule(experiment.optimizer, training.steps_per_epoch * experiment.epochs)
    first = int(state.step) // training.steps_per_epoch
    with Log(workdir, int(state.step), experiment.epochs, first, console) as log:
        pending: list[Any] = []
        watch = Watch()
        for epoch in range(first + 1, experiment.epochs + 1):
            if experiment.patience and progress.waited >= experiment.patience:
                break
            start = (epoch - 1) * training.steps_per_epoch
            stop = epoch * training.steps_per_epoch
            for batch in watch.ahead(training, experiment.seed, start, stop, partial(_busy, pending)):
                state, sums = step(state, parallel.shard(batch, mesh), key)
                pending.append(sums)
            log.epoch(epoch)
            if epoch % experiment.evaluate_every and epoch < experiment.epochs:
                continue
            done = epoch * training.steps_per_epoch
            figures = training_figures(parallel.fetch(pending), metric, done)
            figures |= watch.figures(len(pending)) | {'rate': float(rate(done - 1))}
            if choosing:
                measured = metric.compute(sweep(run, _variables(state._asdict()), choosing, mesh)[0])
                figures |= {f'validation/{name}': value for name, value in measured.items()}
            ranked = {**figures, 'step': float(done)}
            progress = _progress(progress, ranked[saved.metric], saved.higher)
            if parallel.is_main_process():
                log.evaluation(done, epoch, figures, _headline(figures, saved.metric, progress))
            saved.save(done, {'state': state, 'progress': progress}, ranked)
            pending, watch = [], Watch()
    return state


def training_figures(sums: list[Any], metric: Any, last_step: int) -> dict[str, float]:
    """Means over the steps behind the last evaluation. Raises FloatingPointError at the first bad step."""
    for k, one in enumerate(sums):
        if not one['finite']:
            raise FloatingPointError(
                f'the loss, gradients or batch statistics of step {last_step - len(sums) + k + 1} are not '
                'finite; the state was left as it was before that step, and the checkpoints are those of earlier '
                'evaluations')
    terms = {name: sum(float(one['loss'][name][0]) for one in sums)
             / max(sum(float(one['loss'][name][1]) for one in sums), 1e-9) for name in sums[0]['loss']}
    measured = metric.compute(metrics.total([one['metrics'] for one in sums]))
    norm = float(np.mean([one['gradient_norm'] for one in sums]))
    parts = {f'train/loss_{name}': value for name, value in terms.items()} if len(terms) > 1 else {}
    return ({'train/loss': sum(terms.values()), 'train/gradient_norm': norm} | parts
            | {f'train/{name}': value for name, value in measured.items()})


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


def augment_of(experiment: Experiment) -> Callable[[Batch, jax.Array], Batch]:
    """What the experiment does to training batches at random."""
    data = experiment.data

    def augment(batch, key):
        drop_key, noise_key = jax.random.split(key)
        if data.noise:
            batch = transforms.add_noise(batch, noise_key, data.noise)
        if data.drop_modalities:
            batch = transforms.drop_modalities(batch, drop_key, data.drop_modalities)
        return transforms.stand_in(batch, data.stand_ins)

    return augment


def _pipelines(experiment: Experiment, corpus: Corpus, moments: Mapping, mesh) -> Callable[..., Pipeline]:
    data = experiment.data
    process = jax.process_index(), jax.process_count()

    def make(items: tuple[Item, ...], buckets: int) -> Pipeline:
        return pipeline(inputs.standardise(items, moments), corpus.spec, data.streams, data.target,
                        data.batch_size, buckets, process)

    return make


def _busy(pending: list[Any]) -> bool:
    """Whether the devices have not finished the last step."""
    return bool(pending) and not pending[-1]['finite'].is_ready()


def _variables(state: Mapping[str, Any]) -> Variables:
    return {'params': state['params'], **state['model_state']}


def _count(items: tuple[Item, ...], target: str) -> int:
    """How many utterances or turns are labelled."""
    labels = [np.asarray(item.labels[target]) for item in items if target in item.labels]
    return sum(int(np.sum(label >= 0)) if label.dtype.kind == 'i'
               else int(np.sum(~np.isnan(label).any(-1))) for label in labels)


def _progress(progress: Progress, value: float, higher: bool) -> Progress:
    better = value > progress.best if higher else value < progress.best
    return Progress(float(value), 0) if better else Progress(progress.best, progress.waited + 1)


def _headline(figures: Mapping[str, float], metric: str, progress: Progress) -> str:
    parts = [f'loss {figures["train/loss"]:.4f}']
    if metric != 'step':
        parts.append(f'{metric} {figures[metric]:.4f}  best {progress.best:.4f}')
    return '  '.join(parts)

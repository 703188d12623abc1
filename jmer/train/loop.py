"""The one trainer: restore, step, log, evaluate, save; choose; then, once, the test.

The loop sees training and validation items only. The epoch is chosen on validation and written down in
`selection.json`, and only then is the seal of the test side broken, for that choice.

Seeds are an axis: all of a run are trained in one program, the step mapped over states, keys and batches, and
each ends as it would have ended alone. Folds are runs, one after the other, in folders of their own.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jmer import calibration, checkpoint, cost, metrics, parallel, zoo
from jmer.data.corpus import Corpus, Item, Target
from jmer.data.pipeline import Pipeline, pipeline
from jmer.data.splits import Splits, folds, split
from jmer.stages import TEACHER
from jmer.train import inputs, log, optimizers, predictions, preflight
from jmer.train.course import Course, course_of
from jmer.train.evaluate import LOWER, make_predict, metric_of, no_nan, over_seeds, predictions_of, sweep
from jmer.train.experiment import Experiment, to_json
from jmer.train.step import TrainState, init_states
from jmer.train.watch import Watch
from jmer.types import Batch, Variables


class Fit(NamedTuple):
    """All that training needs besides its state.

    folders: of the seeds. monitor: the figure that chooses the epoch, 'step' for the last one.
    choosing: the validation items, if any. steps, run: compiled, over an axis of seeds.
    """

    experiment: Experiment
    folders: tuple[Path, ...]
    metric: metrics.Metric
    monitor: str
    higher: bool
    training: Pipeline
    choosing: Pipeline | None
    course: Course
    steps: Sequence[parallel.Step]
    run: Callable[[Variables, Batch], tuple[Any, Any]]
    split: parallel.Split
    mesh: jax.sharding.Mesh
    console: Console

    @property
    def seeds(self) -> range:
        return range(self.experiment.seed, self.experiment.seed + self.experiment.seeds)


class Progress(NamedTuple):
    """What the choice of an epoch remembers of every seed.

    best: value so far, [n]. waited: evaluations since then, [n]. step: at which it was, [n].
    chosen: the variables of that step, [n ...].
    """

    best: np.ndarray
    waited: np.ndarray
    step: np.ndarray
    chosen: Variables


def train(
    experiment: Experiment,
    corpus: Corpus,
    workdir: Path,
    *,
    via: str = 'jit',
    mesh: jax.sharding.Mesh | None = None,
    console: Console | None = None,
    command: str = '',
) -> list[dict[str, Any]]:
    """Runs an experiment in `workdir`, or goes on with the one that is there; returns a card for every result.

    via: 'jit' or 'pmap'. mesh: devices, all if None. console: where to report. command: for the card.
    A result (of one fold and seed) is a folder with the chosen weights in `weights/`, `predictions.npz` and
    `log.jsonl`: the workdir itself, or `<fold>/`, `seed<s>/` or `<fold>/seed<s>/` in it. Raises ValueError, and
    changes nothing, where the folder belongs to another experiment or other data; FloatingPointError, naming the
    step and leaving the last checkpoint as it is, where the loss is not finite.
    """
    console = console or Console(quiet=True)
    mesh = mesh or parallel.mesh()
    if not experiment.folds:
        return _train(experiment, corpus, Path(workdir), via, mesh, console, command)
    cards = []
    for fold in folds(corpus, experiment.folds):
        console.print(f'{fold} judges', highlight=False)
        protocol = dataclasses.replace(experiment.data.protocol, test=(fold,))
        one = dataclasses.replace(experiment, folds='', data=dataclasses.replace(experiment.data, protocol=protocol))
        cards += _train(one, corpus, Path(workdir) / fold, via, mesh, console, command)
    return cards


def _train(experiment, corpus, workdir, via, mesh, console, command) -> list[dict[str, Any]]:
    """One fold."""
    target = corpus.spec.target(experiment.data.target)
    share = parallel.split_seeds(experiment.seeds, mesh, via)
    preflight.check(experiment, corpus, target, mesh, share)
    splits = split(corpus, experiment.data.protocol)
    training, choosing = (inputs.shape(side.items, experiment.data) for side in splits[:2])
    moments = inputs.fit(training, experiment.data)
    make = _pipelines(experiment, corpus, moments, mesh)
    batches = make(training, experiment.data.buckets, experiment.data.balance)
    course = course_of(experiment, target, training, batches)
    by_step = experiment.monitor == 'step' or not choosing
    fit = Fit(
        experiment, _folders(experiment, workdir), metric_of(target),
        'step' if by_step else f'validation/{experiment.monitor}', by_step or experiment.monitor not in LOWER,
        batches, make(choosing, 1) if choosing else None,
        course, [parallel.compile_step(jax.vmap(step), mesh, via, share) for step in course.steps],
        parallel.compile_predict(over_seeds(make_predict(experiment.model, target, experiment.data)), mesh, share),
        share, mesh, console)
    example = batches.stream(experiment.seed, 0)
    if via == 'pmap' and jax.tree.leaves(course.memory):
        raise ValueError(f"via: found 'pmap', expected 'jit': {zoo.name_of(experiment.model)} remembers items, and "
                         'devices would each remember their own')
    fresh = init_states(experiment.model, course.optimizer, jax.tree.map(lambda x: x[:1], example), fit.seeds,
                        course.teacher, course.memory)
    spent = {'flops_per_step': cost.flops(course.steps[-1], _of_seed(fresh, 0), example, jax.random.key(0))}
    # Last of all, so that an experiment that cannot run leaves no mark on the folder.
    preflight.claim(workdir, {**to_json(experiment), 'data_sha256': inputs.fingerprint(
        corpus, experiment.data.streams, (target.name, *experiment.data.also))})
    with checkpoint.Run(workdir, write=True) as saved, _evaluations(experiment, workdir) as evaluated:
        progress = _fit(fit, fresh, saved, evaluated)
        choice = _write_down(workdir / 'selection.json', fit, progress)
        sides = {'validation': choosing, 'test': inputs.shape(splits.test.open(choice).items, experiment.data)}
        cards = [_card(experiment, seed, corpus, splits, moments, variables, command)
                 | {'selected': {'step': int(progress.step[k]), 'by': fit.monitor}, 'cost': spent}
                 for k, (seed, variables) in enumerate(zip(fit.seeds, _by_seed(progress.chosen), strict=True))]
        _judge(fit, make, target, progress.chosen, sides, cards)
        if evaluated is not None and sides['test']:
            _add_test_selected(fit, make(sides['test'], 1), evaluated, progress.chosen, cards)
    return [checkpoint.publish(folder / 'weights', variables, card)
            for folder, variables, card in zip(fit.folders, _by_seed(progress.chosen), cards, strict=True)]


@contextlib.contextmanager
def _evaluations(experiment: Experiment, workdir: Path) -> Iterator[checkpoint.Run | None]:
    """Where the weights of all evaluations are kept for as long as the run lasts, if they are asked for."""
    if not experiment.also_test_selected:
        yield None
        return
    with checkpoint.Run(workdir / 'evaluations', write=True, keep=None) as evaluated:
        yield evaluated
    if parallel.is_main_process():
        shutil.rmtree(workdir / 'evaluations')


def _folders(experiment: Experiment, workdir: Path) -> tuple[Path, ...]:
    if experiment.seeds == 1:
        return (workdir,)
    return tuple(workdir / f'seed{experiment.seed + k}' for k in range(experiment.seeds))


def _card(experiment, seed, corpus, splits: Splits, moments, variables, command) -> dict[str, Any]:
    """All that the weights' users need to know of them, but for what was measured."""
    apart = ('model', 'data', 'seed', 'seeds', 'folds', 'also_test_selected')
    training = {key: value for key, value in to_json(experiment).items() if key not in apart}
    return {
        'jmer': version('jmer'),
        **zoo.describe(experiment.model),
        'parameters': sum(x.size for x in jax.tree.leaves(variables['params'])),
        **inputs.spec_to_json(corpus.spec, experiment.data, moments),
        'data': dataclasses.asdict(experiment.data),
        'training': training,
        'seed': seed,
        'command': command,
        'paper': zoo.about(zoo.name_of(experiment.model)),
        'groups': {name: sorted(side.groups) for name, side in splits._asdict().items()},
        'metrics': {},
    }


def _fit(fit: Fit, fresh: TrainState, saved: checkpoint.Run, evaluated: checkpoint.Run | None) -> Progress:
    """Trains all seeds to the end, or to the end of their patience."""
    state, progress = _resume(fit, fresh, saved)
    keys = jnp.stack([jax.random.key(seed) for seed in fit.seeds])
    epochs, size = fit.experiment.epochs, fit.training.steps_per_epoch
    first = int(state.step[0]) // size
    with log.Log(fit.folders, first * size, epochs, first, fit.console) as told:
        pending: list[Any] = []
        watch = Watch()
        for epoch in range(first + 1, epochs + 1):
            if not _active(fit, progress).any():
                break
            step = fit.steps[fit.course.plan[epoch - 1]]
            state = _enter(fit, state, epoch)
            make = partial(fit.training.streams, fit.seeds)
            for batch in watch.ahead(make, (epoch - 1) * size, epoch * size, partial(_busy, pending)):
                state, sums = step(state, parallel.shard(batch, fit.mesh, fit.split.batch), keys)
                pending.append(sums)
            told.epoch(epoch)
            if epoch % fit.experiment.evaluate_every and epoch < epochs:
                continue
            done, active = epoch * size, _active(fit, progress)
            figures = _figures(fit, state, pending, epoch, active, watch.figures(len(pending)))
            # Before the last stage a model is not what it is going to be.
            if (final := fit.course.plan[epoch - 1] == len(fit.course.stages) - 1):
                progress = _advance(fit, progress, state, done, active,
                                    [f.get(fit.monitor, float(done)) for f in figures])
            for k in np.flatnonzero(active).tolist():
                told.evaluation(k, done, epoch, figures[k])
            told.tell(done, epoch, _headline(fit, figures, progress))
            if evaluated is not None and final and done not in evaluated.steps():
                evaluated.save(done, _variables(state.params, state.model_state), {})
                evaluated.wait()      # a run that goes on after this state may not lack these weights
            saved.save(done, {'state': state, 'progress': progress}, _mean(figures))
            pending, watch = [], Watch()
    return progress


def _resume(fit: Fit, fresh: TrainState, saved: checkpoint.Run) -> tuple[TrainState, Progress]:
    """Where the run was, or its beginning."""
    state, chosen = (parallel.replicate(fresh, fit.mesh, fit.split.state) for _ in range(2))
    count = len(fit.seeds)
    progress = Progress(np.full(count, -np.inf if fit.higher else np.inf), np.zeros(count, np.int32),
                        np.zeros(count, np.int32), _variables(chosen.params, chosen.model_state))
    latest = saved.latest()
    if latest is None:
        return state, progress
    fit.console.print(f'resuming at step {latest}')
    restored = saved.restore(latest, {'state': state, 'progress': progress})
    return restored['state'], restored['progress']


def _enter(fit: Fit, state: TrainState, epoch: int) -> TrainState:
    """The state with which an epoch begins: another one where it is the first of its stage."""
    stage = fit.course.plan[epoch - 1]
    enter = fit.course.stages[stage].enter
    if enter is None or stage in fit.course.plan[:epoch - 1]:
        return state
    return parallel.replicate(state._replace(params=enter(state.params)), fit.mesh, fit.split.state)


def _rate(fit: Fit, epoch: int) -> float:
    """The learning rate of the last step of an epoch."""
    size, stage = fit.training.steps_per_epoch, fit.course.plan[epoch - 1]
    schedule = optimizers.schedule(fit.experiment.optimizer, size * fit.course.plan.count(stage))
    return float(schedule(size * fit.course.plan[:epoch].count(stage) - 1))


def _figures(fit: Fit, state: TrainState, pending: list[Any], epoch: int, active: np.ndarray,
             times: Mapping[str, float]) -> list[dict[str, float]]:
    """All that is logged of an evaluation, by seed; nothing of a seed whose patience has ended."""
    done = epoch * fit.training.steps_per_epoch
    trained = parallel.fetch(pending)
    variables = _variables(state.params, state.model_state)
    chosen = sweep(fit.run, variables, fit.choosing, fit.mesh, fit.split)[0] if fit.choosing else None
    found: list[dict[str, float]] = []
    for k, seed in enumerate(fit.seeds):
        if not active[k]:
            found.append({})
            continue
        figures = training_figures([_of_seed(sums, k) for sums in trained], fit.metric, done, seed)
        figures |= {**times, 'rate': _rate(fit, epoch)}
        if chosen is not None:
            measured = fit.metric.compute(_of_seed(chosen, k))
            figures |= {f'validation/{name}': value for name, value in measured.items()}
        found.append(figures)
    return found


def _active(fit: Fit, progress: Progress) -> np.ndarray:
    """The seeds that a run of their own would still be training, [n]."""
    patience = fit.experiment.patience
    return progress.waited < patience if patience else np.ones(len(progress.waited), bool)


def _advance(fit: Fit, progress: Progress, state: TrainState, done: int, active: np.ndarray,
             values: Sequence[float]) -> Progress:
    """The progress after an evaluation that gave these values; the first one is better than nothing."""
    value = np.asarray(values)
    better = active & ((value > progress.best if fit.higher else value < progress.best) | (progress.step == 0))
    return Progress(
        np.where(better & ~np.isnan(value), value, progress.best),
        np.where(better, 0, progress.waited + active).astype(np.int32),
        np.where(better, done, progress.step).astype(np.int32),
        _where(better, _variables(state.params, state.model_state), progress.chosen))


@jax.jit
def _where(seeds, new, old):
    return jax.tree.map(lambda a, b: jnp.where(seeds.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)


def _write_down(path: Path, fit: Fit, progress: Progress) -> Path:
    """Writes the choice of every seed, before the test is seen; a choice once written cannot change."""
    choice = {'by': fit.monitor, 'seeds': [
        {'seed': seed, 'step': int(step), 'value': no_nan(float(best))}
        for seed, step, best in zip(fit.seeds, progress.step, progress.best, strict=True)]}
    if path.exists() and checkpoint.read_json(path) != checkpoint.plain(choice):
        raise ValueError(f'{path}: another choice was written down before the test was seen; found {choice}')
    if parallel.is_main_process() and not path.exists():
        checkpoint.write_json(path, choice)
    checkpoint.meet()
    return path


def _judge(fit: Fit, make, target: Target, chosen: Variables, sides: Mapping[str, Sequence[Item]],
           cards: list[dict[str, Any]]) -> None:
    """Measures the chosen weights on both sides; adds to the cards and writes the predictions."""
    kept: list[dict[str, predictions.Side]] = [{} for _ in cards]
    for name, items in sides.items():
        if not items:
            continue
        batches = make(items, 1)
        sums, scores = sweep(fit.run, chosen, batches, fit.mesh, fit.split)
        for k, card in enumerate(cards):
            of_seed = _of_seed(sums, k)
            said = predictions.side(predictions_of(batches.items, [score[k] for score in scores], target.name))
            card['metrics'][name] = {'n': len(said.ids) if said else 0} | no_nan(fit.metric.compute(of_seed))
            if name == 'test' and target.kind in ('class', 'multilabel'):
                card['per_class'] = no_nan({figure: dict(zip(target.names, values.tolist(), strict=True))
                                            for figure, values in metrics.per_class(of_seed).items()})
            if said:
                kept[k][name] = said
    for folder, card, both in zip(fit.folders, cards, kept, strict=True):
        if target.kind == 'class' and len(both) == 2:
            card['calibration'] = calibration.calibrate(both['validation'], both['test'])
        if parallel.is_main_process():
            predictions.write(folder / 'predictions.npz', both)


def _add_test_selected(fit: Fit, test: Pipeline, evaluated: checkpoint.Run, chosen: Variables,
                       cards: list[dict[str, Any]]) -> None:
    """Adds what choosing the epoch on the test side would have given, and how much that flatters.

    The weights of the evaluations are removed afterwards; the figures stay in `test_selected.json`.
    """
    path = evaluated.folder.parents[1] / 'test_selected.json'
    if not path.exists():
        found = _test_curves(fit, test, evaluated, chosen)
        if parallel.is_main_process():
            checkpoint.write_json(path, found)
    else:
        found = checkpoint.read_json(path)
    for card, best in zip(cards, found, strict=True):
        honest = card['metrics']['test']
        card['test_selected'] = best
        card['selection_gap'] = {name: (honest[name] - value) * (1 if name in LOWER else -1)
                                 for name, value in best.items() if honest[name] is not None}


def _test_curves(fit: Fit, test: Pipeline, evaluated: checkpoint.Run, like: Variables) -> list[dict[str, float]]:
    """The best value of every metric over the evaluations of every seed, on the test side."""
    curves: list[list[dict[str, float]]] = [[] for _ in fit.seeds]
    reached = [{line['step'] for line in log.read(folder / 'log.jsonl')} for folder in fit.folders]
    for step in evaluated.steps():
        sums, _ = sweep(fit.run, evaluated.restore(step, like), test, fit.mesh, fit.split)
        for k, curve in enumerate(curves):
            if step in reached[k]:
                curve.append(fit.metric.compute(_of_seed(sums, k)))
    return [{name: (min if name in LOWER else max)(one[name] for one in curve)
             for name in curve[0] if not any(np.isnan(one[name]) for one in curve)} for curve in curves]


def training_figures(sums: list[Any], metric: metrics.Metric, last_step: int, seed: int) -> dict[str, float]:
    """Means over the steps behind the last evaluation. Raises FloatingPointError at the first bad step."""
    for k, one in enumerate(sums):
        if not one['finite']:
            raise FloatingPointError(
                f'the loss, gradients or batch statistics of step {last_step - len(sums) + k + 1} (seed {seed}) are '
                'not finite; the state was left as it was before that step, and the checkpoints are those of earlier '
                'evaluations')
    found: dict[str, list[Any]] = {}
    for one in sums:
        for name, value in one['loss'].items():         # stages have terms of their own
            found.setdefault(name, []).append(value)
    terms = {name: sum(float(value) for value, _ in of) / max(sum(float(weight) for _, weight in of), 1e-9)
             for name, of in found.items()}
    measured = metric.compute(metrics.total([one['metrics'] for one in sums]))
    norm = float(np.mean([one['gradient_norm'] for one in sums]))
    parts = {f'train/loss_{name}': value for name, value in terms.items()} if len(terms) > 1 else {}
    return ({'train/loss': sum(terms.values()), 'train/gradient_norm': norm} | parts
            | {f'train/{name}': value for name, value in measured.items()})


def _pipelines(experiment: Experiment, corpus: Corpus, moments: Mapping, mesh) -> Callable[..., Pipeline]:
    data = experiment.data
    process = jax.process_index(), jax.process_count()

    def make(items: tuple[Item, ...], buckets: int, balance: float = 0.0) -> Pipeline:
        return pipeline(inputs.standardise(items, moments), corpus.spec, data.streams, data.target,
                        data.batch_size, buckets, process, balance, data.also)

    return make


def _busy(pending: list[Any]) -> bool:
    """Whether the devices have not finished the last step."""
    return bool(pending) and not pending[-1]['finite'].is_ready()


def _variables(params, model_state) -> Variables:
    """The model's own; of what was only its teacher nothing is kept."""
    return {name: {key: value for key, value in collection.items() if key != TEACHER}
            for name, collection in {'params': params, **model_state}.items()}


def _of_seed(tree: Any, k: int) -> Any:
    """What belongs to the seed number k in a tree with an axis of seeds."""
    return jax.tree.map(lambda x: x[k], tree)


def _by_seed(variables: Variables) -> list[Variables]:
    """The variables of each seed, on the host."""
    host = parallel.fetch(variables)
    return [_of_seed(host, k) for k in range(len(jax.tree.leaves(host)[0]))]


def _mean(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Every figure, averaged over the seeds that have it."""
    there = [one for one in figures if one]
    return {name: float(np.mean([one[name] for one in there])) for name in there[0]}


def _headline(fit: Fit, figures: Sequence[Mapping[str, float]], progress: Progress) -> str:
    """The loss and the figure that chooses; of several seeds the mean, and the range of the figure."""
    mean = _mean(figures)
    parts = [f'loss {mean["train/loss"]:.4f}']
    if fit.monitor != 'step' and np.isfinite(progress.best).all():
        values = [one[fit.monitor] for one in figures if one]
        spread = f' ({min(values):.4f} to {max(values):.4f})' if len(fit.seeds) > 1 else ''
        parts.append(f'{fit.monitor} {mean[fit.monitor]:.4f}{spread}  best {np.mean(progress.best):.4f}')
    return '  '.join(parts)

"""Which modality did the work? Three answers to one question.

    result = contribution.measure('gmu/ravdess', data_dir)
    contribution.show(result, console)

Shapley values: the modalities are players, a coalition is a set of streams that are there, and its worth is
a metric of the model when the others are missing; a stream's value is its mean marginal worth over all orders
in which the streams may join (Shapley, 1953). The values add up to the metric with all streams less that
with none. There are few modalities, so that all 2^m coalitions are evaluated and the values are exact.

Shuffled control: what is lost when one stream is dealt out anew among the items, and so says as much as
before, but of others (Breiman, Machine Learning 45(1), 2001). Unimodal controls: each stream alone.

They differ on purpose: two streams that say the same share their Shapley value, lose nothing when one of
them is shuffled in the presence of a model that listens to the other, and are both good alone.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from jmer import metrics, parallel
from jmer.data import transforms
from jmer.data.pipeline import Pipeline
from jmer.results import robustness
from jmer.results.robustness import Figures, Subject, number
from jmer.train.evaluate import metric_of, predict
from jmer.types import Batch, Output, Variables

NAMED = ('gate', 'attention', 'weights')
"""What of `Output.aux` says how a model weighs its inputs: names that hold one of these."""


def measure(name: str, data_dir: Path | None, part: str = 'test', draws: int = 5) -> dict[str, Any]:
    """The contribution of each stream of published weights or a run, ready for JSON.

    name, data_dir, part: as for `train.use.evaluate`, with its errors. draws: of the shuffled control.

    The result: 'all' and 'none', the metrics with all streams and without any; 'shapley' and
    'shapley_recall' (of each class), 'shuffled' (what is lost) and 'alone', by stream; 'gates', the mean
    gate of each stream, for models that have gates.
    """
    judged = robustness.subject(name, data_dir, part)
    return robustness.to_json({**robustness.about(judged, part), 'draws': draws, **contributions(judged, draws)})


def contributions(subject: Subject, draws: int = 5) -> dict[str, Any]:
    """All of it for a subject; see `measure`."""
    pipeline = robustness.batches(subject)
    made = [batch for _, batch in pipeline.sweep()]
    presence = robustness.patterns(len(subject.streams))
    run = robustness.compile_sums(subject, transforms.keep_modalities)
    states = robustness.sums_of(run, subject, (presence,), made)
    figures = [metric_of(subject.target).compute(state) for state in states]
    alone = {name: figures[1 << k] for k, name in enumerate(subject.streams)}
    return {
        'n': robustness.labelled(made, subject.target),
        'all': figures[-1],
        'none': figures[0],
        'shapley': _by_stream(subject, figures),
        'shapley_recall': _by_stream(subject, [_recalls(subject, state) for state in states]),
        'shuffled': shuffled(subject, pipeline, figures[-1], draws),
        'alone': alone,
        'gates': mean_gates(subject, made),
    }


def shapley(worth: Float[np.ndarray, 'n *k']) -> Float[np.ndarray, 'm *k']:
    """Exact Shapley values of m players from the worth of all 2^m coalitions, in the order of `patterns`.

    Raises ValueError where their number is no power of two.
    """
    players = len(worth).bit_length() - 1
    if len(worth) != 2 ** players:
        raise ValueError(f'worth: found {len(worth)} coalitions, expected a power of two')
    coalitions = np.arange(len(worth))
    sizes = np.bitwise_count(coalitions).tolist()
    values = []
    for player in range(players):
        without = coalitions[(coalitions >> player) % 2 == 0]
        weights = [1 / (players * math.comb(players - 1, sizes[k])) for k in without]
        values.append(np.tensordot(weights, worth[without | (1 << player)] - worth[without], 1))
    return np.array(values).reshape(players, *worth.shape[1:])


def _by_stream(subject: Subject, figures: Sequence[Figures]) -> dict[str, Figures]:
    """Shapley values of every figure, given all coalitions in order."""
    names = list(figures[0])
    values = shapley(np.array([[one[name] for name in names] for one in figures]))
    return {stream: dict(zip(names, row.tolist(), strict=True))
            for stream, row in zip(subject.streams, values, strict=True)}


def _recalls(subject: Subject, state: Any) -> Figures:
    """Recall of each class; nothing for targets that are no classes."""
    if subject.target.kind not in ('class', 'multilabel'):
        return {}
    return dict(zip(subject.target.names, metrics.per_class(state)['recall'].tolist(), strict=True))


def shuffled(subject: Subject, pipeline: Pipeline, whole: Figures, draws: int) -> dict[str, Figures]:
    """By how much every metric falls when a stream is shuffled over the items: mean over draws.

    pipeline: of one bucket; every draw batches the items anew. whole: the metrics of the streams as they are.
    """
    count = len(subject.streams)
    run = robustness.compile_sums(subject, transforms.shuffle_modality)
    found = []
    for draw in range(draws):
        keys = jax.random.split(jax.random.key(draw), count)
        made = (pipeline.stream(draw, k) for k in range(pipeline.steps_per_epoch))
        found.append(robustness.figures_of(run, subject, (keys, np.eye(count, dtype=bool)), made))
    return {name: {metric: value - float(np.mean([figures[k][metric] for figures in found]))
                   for metric, value in whole.items()}
            for k, name in enumerate(subject.streams)}


def exports(model: nn.Module, variables: Variables, batch: Batch) -> dict[str, np.ndarray]:
    """Gates and attention weights of a batch, by name; of nested ones the path, 'attention/text/0'.

    Leading axes are those of the labelled items. Models that have none give an empty dict.
    """
    out = jax.jit(lambda v, b: predict(model, v, b))(variables, batch)
    return {name: np.asarray(x) for name, x in _named(out).items()}


def _named(out: Output) -> dict[str, jax.Array]:
    leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): x
              for path, x in jax.tree_util.tree_flatten_with_path(out.aux)[0]}
    return {name: x for name, x in leaves.items() if any(word in name for word in NAMED)}


def mean_gates(subject: Subject, made: Sequence[Batch]) -> dict[str, float]:
    """The mean gate of each stream over the present items, for models with 'gates' [*b m ...]; else {}."""
    order = tuple(getattr(subject.model, 'streams', ()))

    def run(variables, batch):
        batch = transforms.stand_in(batch, subject.data.stand_ins)
        gates = _named(predict(subject.model, variables, batch)).get('gates')
        axes = batch.present.ndim
        if gates is None or gates.shape[axes:axes + 1] != (len(order),):
            return None
        by_stream = jnp.mean(gates.reshape(*gates.shape[:axes + 1], -1), -1)
        there = jnp.asarray(batch.present)[..., None]
        return jnp.sum(jnp.where(there, by_stream, 0.0), tuple(range(axes))), jnp.sum(there)

    mesh = parallel.mesh()
    compiled, variables = parallel.compile_predict(run, mesh), parallel.replicate(subject.variables, mesh)
    found = [parallel.fetch(compiled(variables, parallel.shard(batch, mesh))) for batch in made]
    if found[0] is None:
        return {}
    gates, items = (sum(parts) for parts in zip(*found, strict=True))
    return dict(zip(order, (gates / items).tolist(), strict=True))


def show(result: Mapping[str, Any], console: Console, metric: str | None = None) -> None:
    """The contributions to one metric (the first, if None) and to the recall of each class, by stream."""
    metric = metric or next(iter(result['all']))
    console.print(f'{robustness.heading(result)}: {metric}', style='bold')
    parts = {'Shapley value': result['shapley'], 'lost when shuffled': result['shuffled'], 'alone': result['alone']}
    table = Table('stream')
    for column in (*parts, *(['mean gate'] if result['gates'] else [])):
        table.add_column(column, justify='right')
    for stream in result['shapley']:
        gate = [number(result['gates'][stream])] if result['gates'] else []
        table.add_row(stream, *(number(part[stream][metric]) for part in parts.values()), *gate)
    console.print(table)
    console.print(f'{metric} with all streams {number(result["all"][metric])}, with none '
                  f'{number(result["none"][metric])}; the Shapley values are the way from the second to the first.')
    classes = list(next(iter(result['shapley_recall'].values())))
    if classes:
        table = Table('recall of, Shapley values')
        for stream in result['shapley_recall']:
            table.add_column(stream, justify='right')
        for name in classes:
            table.add_row(name, *(number(values[name]) for values in result['shapley_recall'].values()))
        console.print(table)
    robustness.warn_of_seen(result, console)

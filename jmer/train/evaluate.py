"""Prediction and evaluation: pure functions of variables and batches, and one pass over items."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jmer import metrics, parallel
from jmer.data import transforms
from jmer.data.corpus import Item, Target
from jmer.data.pipeline import Pipeline
from jmer.train.experiment import Data
from jmer.types import Array, Batch, Label, Output, Variables


def metric_of(target: Target) -> metrics.Metric:
    """The metrics of a target; a single value called sentiment brings the MOSI suite with it."""
    sentiment = target.name == 'sentiment' and target.kind == 'regression' and len(target.names) == 1
    return metrics.for_target(target.kind, len(target.names), sentiment=sentiment)


def metric_names(target: Target) -> tuple[str, ...]:
    """What `metric_of` measures, by name."""
    metric, width = metric_of(target), len(target.names)
    value = np.zeros(1, np.int32) if target.kind == 'class' else np.zeros((1, width), np.float32)
    sums = jax.eval_shape(metric.sums, np.zeros((1, width), np.float32), Label(value, np.ones(1, bool)))
    return tuple(metric.compute(jax.tree.map(lambda x: np.zeros(x.shape), sums)))


LOWER = frozenset(('nll', 'brier_multiclass', 'ece15', 'mae', 'rmse', 'hamming_loss', 'bce', 'kl', 'js',
                   'chebyshev', 'clark', 'canberra'))
"""The metrics of which less is better."""


def no_nan(value: Any) -> Any:
    """The value with None for NaN, inside dicts too: JSON has no NaN for a figure that rests on nothing."""
    if isinstance(value, dict):
        return {k: no_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and value != value else value


class Prediction(NamedTuple):
    """What a model says of one utterance or turn.

    id: of the utterance or turn. scores: [c], probabilities for classes and several labels.
    truth: the label, an int or [c]; None where there is none.
    """

    id: str
    scores: np.ndarray
    truth: np.ndarray | None


def predict(model: nn.Module, variables: Variables, batch: Batch) -> Output:
    """The model's output in evaluation mode: pure, to be jitted, mapped or differentiated as you like."""
    out = model.apply(variables, batch, train=False)
    assert isinstance(out, Output)
    return out


def probabilities(logits: Array, kind: str) -> jax.Array:
    """Scores as they are reported: softmax for classes and distributions, sigmoid for several labels."""
    if kind in ('class', 'distribution'):
        return jax.nn.softmax(logits)
    return jax.nn.sigmoid(logits) if kind == 'multilabel' else jnp.asarray(logits)


def make_predict(model: nn.Module, target: Target, data: Data) -> Callable[[Variables, Batch], tuple[Any, Any]]:
    """A function of (variables, batch) that gives the scores and, with labels, the metric sums."""
    sums = metric_of(target).sums

    def run(variables, batch):
        logits = predict(model, variables, transforms.stand_in(batch, data.stand_ins)).logits
        measured = sums(logits, batch.labels[target.name]) if batch.labels else {}
        return probabilities(logits, target.kind), measured

    return run


def sweep(
    run: Callable[[Variables, Batch], tuple[Any, Any]],
    variables: Variables,
    pipeline: Pipeline,
    mesh: jax.sharding.Mesh,
) -> tuple[Any, list[Prediction]]:
    """Metric sums ({} without labels) and predictions over all items, in the order of the items.

    run: a compiled `make_predict`.
    """
    states, found = [], {}
    for rows, batch in pipeline.sweep():
        scores, measured = parallel.fetch(run(variables, parallel.shard(batch, mesh)))
        states.append(measured)
        for row, index in enumerate(rows):
            found[index] = item_predictions(pipeline.items[index], scores[row], pipeline.target)
    return metrics.total(states), [p for index in sorted(found) for p in found[index]]


def item_predictions(item: Item, scores: np.ndarray, target: str | None) -> list[Prediction]:
    """The predictions of an item: one, or one a turn."""
    truth = item.labels.get(target) if target else None
    if item.speakers is None:
        return [Prediction(item.id, scores, truth)]
    names: Sequence[str] = item.turns or [f'{item.id}#{k}' for k in range(len(item.speakers))]
    return [Prediction(name, scores[k], None if truth is None else truth[k])
            for k, name in enumerate(names)]

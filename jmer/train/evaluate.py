"""Prediction and evaluation: pure functions of variables and batches, and one pass over items."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jmer import metrics, parallel, zoo
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

    id: of the utterance or turn. group: of its item. scores: [c], probabilities for classes and several labels.
    truth: the label, an int or [c]; None where there is none.
    """

    id: str
    group: str
    scores: np.ndarray
    truth: np.ndarray | None


def is_labelled(truth: Any) -> bool:
    """Whether a label says anything: no class code of -1, no NaN."""
    truth = np.asarray(truth)
    return bool(truth >= 0) if truth.dtype.kind == 'i' else not np.isnan(truth).any()


def predict(model: nn.Module, variables: Variables, batch: Batch) -> Output:
    """The model's output in evaluation mode: pure, to be jitted, mapped or differentiated as you like.

    Raises ValueError naming model, field or stream, found and expected for a batch that the model cannot read, and
    (but for compiled programs, where nobody can look) for more speakers than it has states for.
    """
    zoo.check_speakers(model, _speakers_in(batch))
    out = model.apply(variables, batch, train=False)
    assert isinstance(out, Output)
    return out


def _speakers_in(batch: Batch) -> int:
    """How many speakers the dialogue with the most of them has; 0 where the numbers are not known yet."""
    if batch.speakers is None or any(isinstance(x, jax.core.Tracer) for x in (batch.speakers, batch.present)):
        return 0
    return int(np.max(np.where(batch.present, batch.speakers, -1), initial=-1)) + 1


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
    run: Callable[[Variables, Any], tuple[Any, Any]],
    variables: Variables,
    pipeline: Pipeline,
    mesh: jax.sharding.Mesh,
    split: parallel.Split = parallel.ROWS,
) -> tuple[Any, list[np.ndarray]]:
    """Metric sums ({} without labels), and the scores of every item, in the order of the items.

    run: a compiled `make_predict`, or one of several seeds (`over_seeds`), whose axis is then the first one of
    the sums and of the scores of an item.
    """
    states: list[Any] = []
    found: dict[int, np.ndarray] = {}
    for rows, batch in pipeline.sweep():
        placed = parallel.shard(batch, mesh, None if split.state == 0 else 0)
        scores, measured = parallel.fetch(run(variables, placed))
        states.append(measured)
        found |= {index: scores[row] for row, index in enumerate(rows)}
    return metrics.total(states), [found[index] for index in sorted(found)]


def over_seeds(run: Callable[[Variables, Any], tuple[Any, Any]]) -> Callable[[Variables, Any], tuple[Any, Any]]:
    """A `make_predict` of variables that have an axis of seeds in front: scores [b n ...], sums [n ...]."""
    return jax.vmap(run, in_axes=(0, None), out_axes=(1, 0))


def predictions_of(items: Sequence[Item], scores: Sequence[np.ndarray], target: str | None) -> list[Prediction]:
    """The predictions of items: one each, or one a turn."""
    return [p for item, of_item in zip(items, scores, strict=True) for p in _of_item(item, of_item, target)]


def _of_item(item: Item, scores: np.ndarray, target: str | None) -> list[Prediction]:
    truth = item.labels.get(target) if target else None
    if item.speakers is None:
        return [Prediction(item.id, item.group, scores, truth)]
    names: Sequence[str] = item.turns or [f'{item.id}#{k}' for k in range(len(item.speakers))]
    return [Prediction(name, item.group, scores[k], None if truth is None else truth[k])
            for k, name in enumerate(names)]

"""Labels for single streams, made during training: Self-MM's (Yu et al., AAAI 2021, arXiv:2102.04830).

Labels are known of an utterance, not of each of its streams. Those of a stream are made from where its features
lie between the centres of the positive and of the negative utterances (`memory_after`). One step of training is
`loss` of a batch that `with_labels` has given its streams' own labels; behind it, `memory_after` brings the labels
up to date and stores the features. The trainer keeps the `Memory` of all training utterances. Where utterances have
no single real value to start from, the head of a stream learns their target.

A model that is trained so scores every stream by itself: its `aux` holds the scores of the streams ('alone'), the
features of all together and of the streams that they come from ('features', 'all' among them, of the widths of the
model's field `hidden`) and of which utterances they are there ('there', see `presence`).

Where this differs from the authors' code: a missing stream is neither labelled nor stored; while a stream has no
positive or no negative utterance its labels stay, where theirs become NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer import losses
from jmer.layers.pooling import pool
from jmer.stages import Learner, Result, Stage
from jmer.types import Array, Batch, Label, Output


def presence(batch: Batch, streams: Sequence[str]) -> Mapping[str, Bool[Array, 'b']]:
    """Of which utterances there is each stream, and ('all') of which there is any."""
    there = {name: jnp.any(batch.streams[name].mask, -1) & batch.present for name in streams}
    return {'all': jnp.any(jnp.stack(list(there.values())), 0)} | there


def loss(model: Any, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss of the scores and of every stream's own.

    With a target of its own a stream's (absolute) error weighs tanh |its target - the utterance's|.
    """
    common = {name: label for name, label in batch.labels.items() if name not in model.streams}
    terms = {'label': losses.task(out.logits, common)}
    for name, scores in out.aux['alone'].items():
        labels = {name: batch.labels[name]} if name in batch.labels else common
        there = out.aux['there'][name]
        term = losses.task(scores, {k: v._replace(mask=v.mask & there) for k, v in labels.items()})
        if name in batch.labels:
            far = jnp.tanh(jnp.abs(batch.labels[name].value - losses.target(common).value)).mean(-1)
            term = term._replace(value=jnp.where(term.weight > 0, far, 0) * term.value)
        terms[name] = term
    return terms


def stages(model: Any) -> tuple[Stage, ...]:
    """One, which learns from the streams' own labels and brings them up to date."""
    def own_labels(model: Any, learner: Learner, batch: Batch) -> Result:
        items = batch.items
        if not learner.memory or items is None:
            out = learner.forward(batch)
            return Result(out, loss(model, out, batch), learner.memory)
        batch = with_labels(batch, learner.memory, items)
        out = learner.forward(batch)
        after = memory_after(learner.memory, out.aux['features'], out.aux['there'], items, learner.epoch)
        return Result(out, loss(model, out, batch), after)

    return (Stage('all', own_labels),)


def memory(model: Any, labels: Label, batch_size: int) -> 'Memory | tuple[()]':
    """The memory before training, of utterances that have one real value each; of others none."""
    values = labels.value
    return start(model, jnp.where(labels.mask, values[:, 0], 0)) if values.shape[1:] == (1,) else ()


class Memory(NamedTuple):
    """What is known of all n training utterances, under 'all' and under the name of every stream.

    labels: what is to be predicted, [n]; those of 'all' are given and never change.
    features: as they were when the utterance was last seen, [n d]; zeros before.
    """

    labels: dict[str, Float[Array, 'n']]
    features: dict[str, Float[Array, 'n d']]


def start(model: Any, labels: Float[Array, 'n']) -> Memory:
    """The memory before training: a stream's labels are the utterances' own."""
    names = ('all', *model.streams)
    labels = jnp.asarray(labels)
    return Memory(dict.fromkeys(names, labels),
                  {name: jnp.zeros((len(labels), width)) for name, width in zip(names, model.hidden, strict=True)})


def with_labels(batch: Batch, memory: Memory, items: Int[Array, 'b']) -> Batch:
    """The batch with its streams' own labels; `items` says where in the memory each utterance stands."""
    own = {}
    for name, values in memory.labels.items():
        if name != 'all':
            there = jnp.any(batch.streams[name].mask, -1) & batch.present
            own[name] = Label(values[items][:, None], there)
    return batch._replace(labels=batch.labels | own)


def centres(
    memory: Memory, name: str, *, zero_is_positive: bool = False
) -> tuple[Float[Array, 'd'], Float[Array, 'd'], Bool[Array, '']]:
    """The mean features of the positive and of the negative utterances, and whether there are both.

    As the authors have it, utterances that have not been seen yet count with features of zero.
    """
    labels, features = memory.labels[name], memory.features[name]
    sides = (labels >= 0 if zero_is_positive else labels > 0), labels < 0
    positive, negative = (pool(features, side, 'mean') for side in sides)
    return positive, negative, jnp.any(sides[0]) & jnp.any(sides[1])


def memory_after(
    memory: Memory,
    features: Mapping[str, Float[Array, 'b d']],
    there: Mapping[str, Bool[Array, 'b']],
    items: Int[Array, 'b'],
    epoch: int | Int[Array, ''],
    *,
    bound: float = 3.0,
    zero_is_positive: bool = False,
) -> Memory:
    """The memory after a batch, which is learnt from with the labels as they were before.

    features, there: `aux` of the model's output. items: where in the memory each utterance stands.
    epoch: from 1; in the first one features are stored, and labels stay.
    bound: the largest label that can be. zero_is_positive: utterances labelled 0 count as positive.
    """
    places = {name: jnp.where(mask, items, len(memory.labels['all'])) for name, mask in there.items()}
    nearness = {name: _nearness(memory, name, x, zero_is_positive) for name, x in features.items()}
    given, (near_all, known_all) = memory.labels['all'][items], nearness['all']
    labels: dict[str, Array] = {}
    for name, old in memory.labels.items():
        near, known = nearness[name]
        new = (near / (near_all + 1e-8) * given + given + near - near_all) / 2
        moved = ((epoch - 1) * old[items] + 2 * jnp.clip(new, -bound, bound)) / (epoch + 1)
        learnt = known & known_all & (epoch > 1) & (name != 'all')
        labels[name] = _put(jnp.where(learnt, moved, old[items]), old, places[name])
    return Memory(labels, {name: _put(features[name], old, places[name]) for name, old in memory.features.items()})


def _put(new: Array, old: Array, places: Int[Array, 'b']) -> Array:
    """The old rows with new ones at these places; one behind the end is none."""
    return jnp.asarray(old).at[places].set(new, mode='drop')


def _nearness(
    memory: Memory, name: str, x: Float[Array, 'b d'], zero_is_positive: bool
) -> tuple[Float[Array, 'b'], Bool[Array, '']]:
    """How much nearer features are to the positive centre than to the negative one, in its distance."""
    positive, negative, known = centres(memory, name, zero_is_positive=zero_is_positive)
    near, far = (jnp.linalg.norm(x - centre[None], axis=-1) for centre in (positive, negative))
    return (far - near) / (near + 1e-8), known

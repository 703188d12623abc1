"""Self-MM: self-supervised multi-task learning of multimodal sentiment (Yu et al., AAAI 2021, arXiv:2102.04830).

The first step of text (BERT's [CLS]) and the last states of LSTMs over audio and vision are scored together,
and each alone. Labels are known of all together only: those of a stream are made during training, from where
its features lie between the centres of the positive and of the negative utterances (`memory_after`).

One step of training is `loss` of a batch that `with_labels` has given its streams' own labels; behind it,
`memory_after` brings the labels up to date and stores the features. The trainer keeps the `Memory` of all training
utterances. Where utterances have no single real value to start from, the head of a stream learns their target.

Where this differs from the authors' code: padding is masked; a stream may be missing, and is then neither
labelled nor stored; while a stream has no positive or no negative utterance its labels stay, where theirs
become NaN. Their optimiser, which steps every four batches and has a rate for each part, is left to who trains.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.checked import Checked
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import pool
from jmer.layers.subnet import LastStateNet
from jmer.stages import Learner, Result, Stage
from jmer.types import Array, Batch, Label, Output, Params, Variables

TAGS = ('late fusion', 'joint representation', 'recurrent', 'unaligned', 'missing modality')


class Model(Checked):
    """The defaults are the authors' for CMU-MOSEI. Attributes:
    classes: number of scores.
    streams: text, of which the first step is read, and two others.
    states: widths of the LSTMs of the two others. widths: of their vectors.
    hidden: widths of the networks of the scores: of all together, then of each stream.
    state_dropout: of the states of the LSTMs.
    dropout: in front of the networks of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    states: tuple[int, ...] = (16, 32)
    widths: tuple[int, ...] = (16, 32)
    hidden: tuple[int, ...] = (128, 32, 16, 32)
    state_dropout: float = 0.0
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        text, *others = self.streams
        x, mask = batch.streams[text]
        vectors = {text: pool(x[:, ::-1], mask[:, ::-1], 'last')}
        for name, states, width in zip(others, self.states, self.widths, strict=True):
            vectors[name] = LastStateNet(states, width, self.state_dropout, name=f'net_{name}')(
                batch.streams[name], train=train)

        all_hidden, *own_hidden = self.hidden
        feature, logits = self._head('all', jnp.concatenate(list(vectors.values()), -1), all_hidden, train)
        features, alone = {'all': feature}, {}
        for (name, vector), hidden in zip(vectors.items(), own_hidden, strict=True):
            features[name], alone[name] = self._head(name, vector, hidden, train)
        return Output(logits, {'alone': alone, 'features': features, 'there': self._there(batch)})

    def _head(
        self, name: str, x: Float[Array, 'b d'], hidden: int, train: bool
    ) -> tuple[Float[Array, 'b e'], Float[Array, 'b c']]:
        """The features in front of the last two layers, and the scores."""
        x = Dropout(self.dropout, name=f'dropout_{name}')(x, train=train)
        feature = nn.relu(nn.Dense(hidden, name=f'head_{name}_1')(x))
        x = nn.relu(nn.Dense(hidden, name=f'head_{name}_2')(feature))
        return feature, nn.Dense(self.classes, name=f'head_{name}_3')(x)

    def _there(self, batch: Batch) -> Mapping[str, Bool[Array, 'b']]:
        """Of which utterances there is a stream, and of which there is any."""
        there = {name: jnp.any(batch.streams[name].mask, -1) & batch.present for name in self.streams}
        return {'all': jnp.any(jnp.stack(list(there.values())), 0)} | there

    def _check(self) -> None:
        for field, count in (('streams', 3), ('states', 2), ('widths', 2), ('hidden', 4)):
            if len(getattr(self, field)) != count:
                raise ValueError(f'self_mm: {field}: found {getattr(self, field)}, expected {count} of them')


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
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


def stages(model: Model) -> tuple[Stage, ...]:
    """One, which learns from the streams' own labels and brings them up to date."""
    def own_labels(model: Model, learner: Learner, batch: Batch) -> Result:
        items = batch.items
        if not learner.memory or items is None:
            out = learner.forward(batch)
            return Result(out, loss(model, out, batch), learner.memory)
        batch = with_labels(batch, learner.memory, items)
        out = learner.forward(batch)
        after = memory_after(learner.memory, out.aux['features'], out.aux['there'], items, learner.epoch)
        return Result(out, loss(model, out, batch), after)

    return (Stage('all', own_labels),)


def memory(model: Model, labels: Label, batch_size: int) -> 'Memory | tuple[()]':
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


def start(model: Model, labels: Float[Array, 'n']) -> Memory:
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


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from MMSA's Self-MM (text, audio, vision), whose BERT is kept apart."""
    require_streams('self_mm', model.streams, 3)
    reader, (text, audio, vision) = Reader(state, 'self_mm'), model.streams
    reader.skip('text_model.*')
    params: Params = {}
    for name, theirs, states, width in zip((audio, vision), ('audio_model', 'video_model'), model.states,
                                           model.widths, strict=True):
        params[f'net_{name}'] = reader.last_state_net(theirs, states, width)
    read = reader.width('post_text_layer_1.weight', 1)
    joined = read + sum(model.widths) if read else None
    parts = (('all', 'fusion', joined), (text, 'text', read), (audio, 'audio', model.widths[0]),
             (vision, 'video', model.widths[1]))
    for (name, theirs, inputs), hidden in zip(parts, model.hidden, strict=True):
        for k, (a, b) in enumerate(((inputs, hidden), (hidden, hidden), (hidden, model.classes)), 1):
            params[f'head_{name}_{k}'] = reader.dense(f'post_{theirs}_layer_{k}', a, b)
    reader.close()
    return {'params': params}

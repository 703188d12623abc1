"""The types that every model, data set and metric of jmer speaks.

The letters in shapes, here and everywhere:

    b  batch items: utterances, or dialogues
    u  turns of a dialogue
    t  time steps of a stream (every stream has its own; s is a second one)
    d  features
    c  classes, or regression targets
    h  attention heads

Three layouts of `Batch` serve the whole field; `*b` stands for the axes of the labelled items:

    layout      streams                     items `*b`   speakers
    utterance   several, [b t_m d_m]        [b]          None
    speech      one,     [b t d]            [b]          None
    dialogue    several, [b u d_m]          [b u]        [b u]
                or, with steps inside a turn, [b u t_m d_m]

Masks are boolean and True means *present*. What stands under a False mask can never change a result.
A missing modality is a stream whose mask is False everywhere; there is no other sign of absence.
All types are named tuples, hence pytrees: they pass through jit, vmap, grad and sharding as they are.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

Array = jax.Array | np.ndarray
"""What functions take: NumPy arrays from the host as well as JAX's own."""

Params = dict[str, Any]
Variables = dict[str, Any]
"""What `model.init` gives: {'params': ...} and, where a model has any, {'batch_stats': ...}."""


class Stream(NamedTuple):
    """One modality of a batch.

    x: features, [*b t d]; or [b u d], one vector a turn.
    mask: True where a step (or turn) is present, the shape of x without its last axis.
    """

    x: Float[Array, '*t d']
    mask: Bool[Array, '*t']


class Label(NamedTuple):
    """What one target says of every item.

    value: class indices, int [*b]; or float [*b c]: several labels (0/1), regression values, or a
        distribution over classes. `data.corpus.Target.kind` says which.
    mask: True where the item is labelled, [*b]. An unlabelled turn is context and no more.
    """

    value: Int[Array, '*b'] | Float[Array, '*b c']
    mask: Bool[Array, '*b']


class Batch(NamedTuple):
    """A batch of utterances, of dialogues, or of speech clips.

    streams: by name: 'text', 'audio', 'vision', and any other ('eeg', ...).
    present: True where an item is real, False where it pads the batch, [*b].
    labels: by target name; empty when predicting.
    speakers: who speaks each turn, 0, 1, ... in order of appearance within the dialogue, [b u];
        None outside dialogues.
    items: where each item stands among those of its pipeline, [b]; for training that remembers items.
    """

    streams: dict[str, Stream]
    present: Bool[Array, '*b']
    labels: dict[str, Label]
    speakers: Int[Array, 'b u'] | None = None
    items: Int[Array, 'b'] | None = None


class Output(NamedTuple):
    """What a model says of a batch.

    logits: scores before softmax or sigmoid, or regression values, [*b c].
    aux: what the model names besides: gates, attention weights, features a loss or a figure needs.
    """

    logits: Float[Array, '*b c']
    aux: dict[str, Any]

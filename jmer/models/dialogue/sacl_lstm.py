"""SACL-LSTM: dual LSTM with supervised contrastive learning (Hu et al., ACL 2023, arXiv:2306.01505).

The streams of a turn are concatenated. One bidirectional LSTM reads the dialogue, another one the turns of
every speaker by themselves; both states together are scored. Besides the focal loss a contrastive loss
draws the states (or scores) of one class together. The perturbation of weights that the paper trains
against (FGM) is the trainer's affair and no part of this file.

Where this differs from the authors' code: a speaker's turns are read at their true number. Theirs stand in
front of as many zero turns as the others speak, on which the backward direction starts; `zero_turns` does
so too, with the dialogue's own length. The losses are means over the turns, theirs sums. Speakers beyond
the last known one are read as that one; those of fewer than `least_turns` turns get zeros instead of a
second state. A modality missing in a turn counts as zeros. `causal` leaves out the backward directions
and counts a speaker's turns up to the present one.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer import losses
from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.graph import complete, same_speaker, speakers_of
from jmer.layers.party import by_speaker
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiLSTM
from jmer.types import Array, Batch, Output, Variables

TAGS = ('early fusion', 'joint representation', 'adversarial', 'contrastive', 'recurrent', 'context',
        'speaker-aware', 'missing modality')
LABELS = ('class',)


class Model(Checked):
    """The defaults are the authors' for IEMOCAP. Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    width: hidden size of one direction of each LSTM.
    layers: of both LSTMs.
    speakers: how many speakers are read by themselves.
    least_turns: turns that a speaker must have for that.
    zero_turns: let a speaker's turns be followed by zero turns, up to the dialogue's length.
    causal: read the past only.
    dropout: rate between LSTM layers and in front of the scores.
    gamma: exponent of the focal loss. class_weights: of its classes; () means 1 each.
    contrast_weight: of the contrastive loss. temperature: in it.
    contrast_scores: contrast the log-probabilities instead of the states.
    """

    classes: int
    streams: tuple[str, ...] = ('text',)
    width: int = 128
    layers: int = 2
    speakers: int = 2
    least_turns: int = 2
    zero_turns: bool = False
    causal: bool = False
    dropout: float = 0.2
    gamma: float = 0.0
    class_weights: tuple[float, ...] = ()
    contrast_weight: float = 0.05
    temperature: float = 0.1
    contrast_scores: bool = False

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x: Array = jnp.concatenate([turn_vectors(batch.streams[name]) for name in self.streams], -1)
        x = jnp.where(batch.present[..., None], x, 0)
        context = self._lstm('dialogue')(x, batch.present, train=train)
        hidden = jnp.concatenate([context, self._by_speaker(x, batch, train)], -1)
        h = Dropout(self.dropout, name='dropout')(nn.relu(hidden), train=train)
        return Output(Dense(self.classes, name='head')(h), {'context': context, 'hidden': hidden})

    def _lstm(self, name: str) -> BiLSTM:
        return BiLSTM(self.width, self.layers, self.dropout, self.causal, name=name)

    def _by_speaker(self, x: Array, batch: Batch, train: bool) -> Array:
        """Every turn's state among the turns of its speaker."""
        speakers = jnp.zeros(x.shape[:2], int) if batch.speakers is None else speakers_of(batch, self.speakers)
        lstm = self._lstm('speaker')
        if self.zero_turns:
            states = by_speaker(lambda x, mask: lstm(x, mask, train=train), x, speakers, batch.present, self.speakers,
                                padded=True)
        else:
            states = lstm(x, batch.present, speakers, train=train)
        own = complete(batch.present) & same_speaker(speakers)
        turns = jnp.sum(jnp.tril(own) if self.causal else own, -1, keepdims=True)
        return jnp.where(turns >= self.least_turns, states, 0)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The focal loss, whose factor takes no gradient, and NT-Xent over all turns of the batch."""
    label = losses.target(batch.labels)
    focal = losses.focal(out.logits, label, gamma=model.gamma, detach=True, class_weights=model.class_weights or None)
    contrasted = nn.log_softmax(out.logits) if model.contrast_scores else out.aux['hidden']
    terms = {'label': losses.Term(focal.value * focal.weight, jnp.asarray(label.mask, focal.value.dtype)),
             'contrast': losses.nt_xent(contrasted, label, temperature=model.temperature)}
    return losses.weighted(terms, contrast=model.contrast_weight)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of zerohd4869/SACL (DialogueCRN without its reasoning modules)."""
    reader = Reader(state, 'sacl_lstm')
    inputs = reader.width('rnn.weight_ih_l0', 1)
    params = {
        'dialogue': reader.recurrent('lstm', 'rnn', inputs, model.width, model.layers),
        'speaker': reader.recurrent('lstm', 'rnn_parties', inputs, model.width, model.layers),
        'head': reader.dense('cognition_net.smax_fc', 4 * model.width, model.classes),
    }
    reader.close()
    return {'params': params}

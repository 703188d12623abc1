"""DialogueRNN: recurrent states of dialogue, speakers and emotion (Majumder et al., AAAI 2019, arXiv:1811.00405).

The streams of a turn are concatenated. A global state follows the dialogue, every speaker has a state of
their own that is renewed when they speak, from the turn and from an attention over what was said before,
and an emotion state runs over the states of the speakers; all this in both directions. Each turn may then
attend to all others, and two linear layers score it.

Where this differs from the authors' code: they renew the states of all speakers at every turn and keep one,
here only the speaker's is computed, so there may be any number of speakers (with `listeners` as many as it
says, the last of which further ones share). A modality missing in a turn counts as zeros.
`causal` leaves out the backward direction and lets a turn attend to itself and to the past only.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dialogue_rnn import DialogueRNN
from jmer.layers.dropout import Dropout
from jmer.layers.graph import MatchingAttention, complete
from jmer.layers.pooling import turn_vectors
from jmer.types import Array, Batch, Output, Variables

TAGS = ('early fusion', 'joint representation', 'recurrent', 'context', 'speaker-aware', 'missing modality')


class Model(Checked):
    """The widths are the authors' for MELD. Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    global_width, party_width, width: of the states of dialogue, speakers and emotion, in one direction.
    hidden: width of the layer in front of the scores.
    context: how a turn scores what was said before, see `layers.dialogue_rnn.DialogueRNN`.
    context_width: of the scores' hidden layer where `context` is 'concat'.
    listeners: number of speakers whose states change while others speak as well; 0: of none.
    attention: let every turn attend to the whole dialogue.
    causal: read the past only.
    dropout: rate in front of the scores.
    state_dropout: of every new state. direction_dropout: of the emotion states.
    input_dropout: on the features of the turns (0 in the authors' code).
    """

    classes: int
    streams: tuple[str, ...] = ('text',)
    global_width: int = 150
    party_width: int = 150
    width: int = 100
    hidden: int = 200
    context: str = 'general'
    context_width: int = 100
    listeners: int = 0
    attention: bool = True
    causal: bool = False
    dropout: float = 0.1
    state_dropout: float = 0.1
    direction_dropout: float = 0.25
    input_dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x: Array = jnp.concatenate([turn_vectors(batch.streams[name]) for name in self.streams], -1)
        x = Dropout(self.input_dropout, name='dropout_input')(x, train=train)
        speakers = jnp.zeros(x.shape[:2], int) if batch.speakers is None else batch.speakers
        states = []
        for name in self.directions():
            state = self.recurrence(name)(x, speakers, batch.present, train=train)
            states.append(Dropout(self.direction_dropout, name=f'dropout_{name}')(state, train=train))
        x = jnp.concatenate(states, -1)
        aux: dict[str, Any] = {'context': x}
        if self.attention:
            seen = complete(batch.present)
            seen = jnp.tril(seen) if self.causal else seen
            x, aux['attention'] = MatchingAttention(squash=False, name='attention')(x, seen)
            aux['attended'] = x
        x = nn.relu(Dense(self.hidden, name='hidden')(x))
        x = Dropout(self.dropout, name='dropout_head')(x, train=train)
        return Output(Dense(self.classes, name='head')(x), aux)

    def directions(self) -> tuple[str, ...]:
        return ('forward',) if self.causal else ('forward', 'backward')

    def recurrence(self, name: str, **place: Any) -> DialogueRNN:
        return DialogueRNN(self.global_width, self.party_width, self.width, self.context, self.context_width,
                           self.listeners, self.state_dropout, name == 'backward', name=name, **place)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of declare-lab/conv-emotion, DialogueRNN (BiModel)."""
    reader, width = Reader(state, 'dialoguernn'), len(model.directions()) * model.width
    cells = {'forward': 'dialog_rnn_f.dialogue_cell', 'backward': 'dialog_rnn_r.dialogue_cell'}
    params = {name: reader.dialogue_rnn(cells[name], model.recurrence(name, parent=None))
              for name in model.directions()}
    if model.attention:
        params['attention'] = {'transform': reader.dense('matchatt.transform', width, width)}
    else:
        reader.skip('matchatt.*')   # stored and not used when attention is off
    params['hidden'] = reader.dense('linear', width, model.hidden)
    params['head'] = reader.dense('smax_fc', model.hidden, model.classes)
    reader.close()
    return {'params': params}

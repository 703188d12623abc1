"""The recurrence of DialogueRNN, which MultiEMO and others put in front of their fusion."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer.layers.dense import Dense
from jmer.layers.dropout import drop, keep_mask, keep_probability, seeds
from jmer.layers.graph import softmax
from jmer.layers.masked import multiply
from jmer.layers.recurrent import gru_cell, gru_hidden, gru_params, recur
from jmer.types import Array

KINDS = ('simple', 'general', 'general2', 'dot', 'concat')
Params = dict[str, Array]


class DialogueRNN(nn.Module):
    """Global, party and emotion states of a dialogue, one direction (Majumder et al., AAAI 2019).

    At every turn a global GRU reads the turn and its speaker's state; the speaker's state is renewed by a
    second GRU from the turn and from an attention over the global states of *earlier* turns; a third GRU
    runs over the renewed states of the speakers. Outputs are zero where the mask is False.

    The first two are one scan; the third, which feeds nothing back, follows on its own. A speaker's state
    is found where he spoke last, so there may be any number of speakers.

    Attributes:
        global_width, party_width, width: of the three states.
        attention: scores over earlier global states g, with the features x of the turn: 'simple', w . g;
            'general', g . W x; 'general2', g . (W x + b); 'dot', g . x; 'concat', v . tanh(W [g | x]).
        attention_width: of v in 'concat'.
        listeners: number of speakers whose states a fourth GRU renews at every turn of somebody else;
            0: a state changes only while its owner speaks. Further speakers then share the last one's state.
        dropout: rate on every new state.
        reverse: run from the last turn to the first.
    """

    global_width: int
    party_width: int
    width: int
    attention: str = 'general'
    attention_width: int = 100
    listeners: int = 0
    dropout: float = 0.0
    reverse: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u d'], speakers: Int[Array, 'b u'], mask: Bool[Array, 'b u'], *, train: bool
    ) -> Float[Array, 'b u {self.width}']:
        if self.attention not in KINDS:
            raise ValueError(f'attention: found {self.attention!r}, expected one of {", ".join(KINDS)}')
        x, speakers, mask = (jnp.asarray(a) for a in (x, speakers, mask))
        x = jnp.where(mask[..., None], x, 0).swapaxes(0, 1)
        if self.reverse:
            x, speakers, mask = x[::-1], speakers[:, ::-1], mask[:, ::-1]
        keep = self._keep(mask.shape[0], mask.shape[1], train)
        states = self._parties(x, speakers, mask, keep)
        states = self._emotions(states, mask, keep)
        return (states[::-1] if self.reverse else states).swapaxes(0, 1)

    def _parties(self, x, speakers, mask, keep):
        """The speaker's renewed state at every turn, [u b d]."""
        batch, inputs = x.shape[1:]
        own = gru_params(self, inputs + self.party_width, self.global_width, 'global_')
        party = gru_params(self, inputs + self.global_width, self.party_width, 'party_')
        weights = {'global': gru_hidden(own), 'party': gru_hidden(party)}
        xs = {}
        xs['global'], weights['global_party'] = _split(x, mask.T, own)
        xs['party'], weights['party_context'] = _split(x, mask.T, party)
        start = {'global': jnp.zeros((batch, self.global_width), x.dtype)}
        if self.listeners:
            listener = gru_params(self, inputs + self.party_width, self.party_width, 'listener_')
            xs['listener'], weights['listener_speaker'] = _split(x, mask.T, listener)
            weights['listener'] = gru_hidden(listener)
            start['parties'] = jnp.zeros((batch, self.listeners, self.party_width), x.dtype)
        widths = {'global': self.global_width, 'party': self.party_width} | self._attention(x, xs, weights)
        memory: dict[str, Array] = {name: jnp.zeros((batch, len(x), width), x.dtype) for name, width in widths.items()}
        step = functools.partial(_step, kind=self.attention, rate=self.dropout)
        given = self._given(speakers, mask) | keep
        return recur(step, weights, start, xs, given, memory, {'party': given['last']})['party']

    def _attention(self, x, xs, weights) -> dict[str, int]:
        """Adds what the scores need of the turns and of the weights; widths of what they need of the past."""
        kind, inputs = self.attention, x.shape[-1]
        torch_linear = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        if kind == 'simple':
            weights['score'] = {'kernel': self.param('attention_score', torch_linear, (self.global_width, 1))}
            return {'score': 1}
        if kind == 'dot':
            xs['query'] = x
        elif kind == 'concat':
            shape = self.global_width + inputs, self.attention_width
            kernel = self.param('attention_kernel', torch_linear, shape)
            weights['key'] = {'kernel': kernel[:self.global_width]}
            xs['query'] = x @ kernel[self.global_width:]
            vector = self.param('attention_vector', torch_linear, (self.attention_width, 1))
            xs['vector'] = jnp.broadcast_to(vector[None, :, 0], (len(x), self.attention_width))
            return {'key': self.attention_width}
        else:
            dense = Dense(self.global_width, use_bias=kind == 'general2', name='attention')
            xs['query'] = dense(x)
        return {}

    def _given(self, speakers, mask) -> dict[str, Any]:
        """Of every turn: whether it is there, which earlier turns are, and where its speaker spoke last."""
        turns = mask.shape[1]
        earlier = jnp.tril(jnp.ones((turns, turns), bool), -1)
        seen = earlier[None] & mask[:, None, :]
        same = seen & (speakers[:, :, None] == speakers[:, None, :])
        last = turns - 1 - jnp.argmax(same[..., ::-1], -1)
        given = {'present': mask[..., None], 'seen': seen, 'last': last, 'spoke': same.any(-1)[..., None]}
        if self.listeners:
            known = jnp.minimum(speakers, self.listeners - 1)
            given['speaker'] = (known[..., None] == jnp.arange(self.listeners)[None, None])[..., None]
        return {name: value.swapaxes(0, 1) for name, value in given.items()}

    def _emotions(self, states, mask, keep):
        """The GRU over the speakers' states, [u b d]."""
        params = gru_params(self, self.party_width, self.width, 'emotion_')
        gates = multiply(states, params['input_kernel'], mask.T) + params['bias'].reshape(1, 1, -1)
        start = jnp.zeros((states.shape[1], self.width), states.dtype)
        given = {'present': mask.T[..., None]} | keep
        step = functools.partial(_emotion_step, rate=self.dropout)
        return recur(step, {'hidden': gru_hidden(params)}, start, gates, given)

    def _keep(self, batch, turns, train) -> dict[str, Any]:
        """Dropout masks of the states, [u b ..]; none where nothing is dropped."""
        if not train or keep_probability(self.dropout) == 1:
            return {}
        shapes = {'keep_global': (self.global_width,), 'keep_party': (self.party_width,),
                  'keep_emotion': (self.width,), 'keep_listener': (self.listeners, self.party_width)}
        seed = seeds(self.make_rng('dropout'), len(shapes))
        return {name: keep_mask(seed[k], self.dropout, (batch, turns, *shape)).swapaxes(0, 1)
                for k, (name, shape) in enumerate(shapes.items())}


def _split(x, mask, params: Params) -> tuple[Array, Params]:
    """What x adds to the gates of all turns, and the part of the kernel that reads what follows x."""
    kernel, inputs = params['input_kernel'], x.shape[-1]
    return multiply(x, kernel[:inputs], mask) + params['bias'].reshape(1, 1, -1), {'kernel': kernel[inputs:]}


def _step(linear, carry, x, given, memory, *, kind, rate):
    present, own = given['present'], carry['global']
    if 'parties' in carry:
        party = jnp.sum(jnp.where(given['speaker'], carry['parties'], 0), 1)
    else:
        party = jnp.where(given['spoke'], memory['party'], 0)
    new = gru_cell(x['global'] + linear('global_party', party), linear('global', own), own)
    new = drop(new, rate, given.get('keep_global'))
    context = _context(kind, x, given['seen'], memory)
    spoken = gru_cell(x['party'] + linear('party_context', context), linear('party', party), party)
    spoken = drop(spoken, rate, given.get('keep_party'))
    after = {'global': jnp.where(present, new, own)}
    if 'parties' in carry:
        listening = _listen(linear, carry['parties'], x['listener'], spoken)
        listening = drop(listening, rate, given.get('keep_listener'))
        renewed = jnp.where(given['speaker'], spoken[:, None], listening)
        after['parties'] = jnp.where(present[..., None], renewed, carry['parties'])
    y = {'global': new, 'party': spoken}
    if kind == 'simple':
        y['score'] = linear('score', new)
    if kind == 'concat':
        y['key'] = linear('key', new)
    return after, {name: jnp.where(present, value, 0) for name, value in y.items()}


def _listen(linear, parties, gates, spoken):
    gates = (gates + linear('listener_speaker', spoken))[:, None]
    return gru_cell(jnp.broadcast_to(gates, (*parties.shape[:2], gates.shape[-1])),
                    linear('listener', parties), parties)


def _context(kind, x, seen, memory):
    """The mean over earlier global states [b u d], zero at the first turn."""
    if kind == 'simple':
        scores = memory['score'][..., 0]
    elif kind == 'concat':
        scores = jnp.tanh(memory['key'] + x['query'][:, None]) @ x['vector']
    else:
        scores = jnp.einsum('bud,bd->bu', memory['global'], x['query'])
    return jnp.einsum('bu,bud->bd', softmax(scores, seen), memory['global'])


def _emotion_step(linear, hidden, gates, given, memory, *, rate):
    new = gru_cell(gates, linear('hidden', hidden), hidden)
    new = drop(new, rate, given.get('keep_emotion'))
    return jnp.where(given['present'], new, hidden), jnp.where(given['present'], new, 0)

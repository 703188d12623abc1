"""SDTN: speaker dynamics tracking network over the turns of a dialogue (Chen et al., ICASSP 2023).

The streams of a turn are concatenated and read by a bidirectional GRU. Then the speakers are tracked from turn to
turn: whoever speaks has been stirred by what the others said since their own last turn, and a GRU makes of it, of
the turn and of their last state their new local state. Their global state is an attention over all local states
that they have had. The turn and both states of its speaker are scored together.

Written after the paper, of which only what it tracks is known here (local and global states of the speakers, and what
stirs a shift of emotion); no code has been published, so there is nothing to be equal to. Inferred: all widths; that a
speaker hears what was said since their last turn, at their first all that was said before; bilinear attention without
a scale; a GRU cell for the local state; an attention over the speaker's own states for the global one; one hidden
layer in front of the scores, and the cross entropy. Speakers are only compared, so there may be any number. A modality
missing in a turn counts as zeros. `causal` leaves out the backward direction of the first GRU; all else reads the past
only as it is.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU, gru_cell, gru_hidden, gru_params, recur
from jmer.types import Array, Batch, Output

TAGS = ('early fusion', 'joint representation', 'recurrent', 'context', 'speaker-aware', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    width: of the projected turns, and of one direction of the first GRU.
    state_width: of the speakers' states.
    hidden: width of the layer in front of the scores.
    causal: read the past only.
    dropout: of the turns, and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    width: int = 150
    state_width: int = 150
    hidden: int = 150
    causal: bool = False
    dropout: float = 0.2

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x: Array = jnp.concatenate([turn_vectors(batch.streams[name]) for name in self.streams], -1)
        x = Dropout(self.dropout, name='dropout')(Dense(self.width, name='project')(x), train=train)
        h = BiGRU(self.width, causal=self.causal, name='gru')(x, batch.present, train=train)
        speakers = jnp.zeros(h.shape[:2], int) if batch.speakers is None else batch.speakers
        own, since = links(speakers, batch.present)
        stirred, stimulus = graph.MatchingAttention(squash=False, name='stimulus')(h, since)
        local = Tracker(self.state_width, name='local')(jnp.concatenate([h, stirred], -1), own, batch.present)
        seen = own | (jnp.eye(h.shape[1], dtype=bool)[None] & graph.complete(batch.present))
        whole, memory = graph.MatchingAttention(squash=False, name='global')(local, seen)
        aux: dict[str, Any] = {'context': h, 'local': local, 'global': whole, 'stimulus': stimulus, 'memory': memory}
        h = nn.relu(Dense(self.hidden, name='hidden')(jnp.concatenate([h, local, whole], -1)))
        h = Dropout(self.dropout, name='dropout_head')(h, train=train)
        return Output(Dense(self.classes, name='head')(h), aux)


def links(
    speakers: Int[Array, 'b u'], present: Bool[Array, 'b u']
) -> tuple[Bool[Array, 'b u u'], Bool[Array, 'b u u']]:
    """Which earlier turns are the speaker's own, and which were said after the last of those."""
    past = jnp.tril(graph.complete(present), -1)
    own = past & graph.same_speaker(speakers)
    # A turn is later than the last own one if neither it nor any turn between it and now is own.
    ahead = jnp.cumsum(own[..., ::-1], -1)[..., ::-1]
    return own, past & (ahead == 0)


class Tracker(nn.Module):
    """A GRU whose state at a turn follows that of the speaker's last turn, zero where absent."""

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u d'], own: Bool[Array, 'b u u'], present: Bool[Array, 'b u']
    ) -> Float[Array, 'b u {self.width}']:
        own, present = jnp.asarray(own), jnp.asarray(present)
        params, turns = gru_params(self, x.shape[-1], self.width), x.shape[1]
        gates = x @ params['input_kernel'] + params['bias'].reshape(1, 1, -1)
        last = turns - 1 - jnp.argmax(own[..., ::-1], -1)
        given = {'present': present.T[..., None], 'spoke': own.any(-1).T[..., None]}
        memory: dict[str, Array] = {'state': jnp.zeros((*x.shape[:2], self.width), gates.dtype)}
        recall: dict[str, Array] = {'state': last.T}
        made = recur(_step, {'hidden': gru_hidden(params)}, (), gates.swapaxes(0, 1), given, memory, recall)
        return made['state'].swapaxes(0, 1)


def _step(linear, carry, gates, given, memory):
    before = jnp.where(given['spoke'], memory['state'], 0)
    state = gru_cell(gates, linear('hidden', before), before)
    return (), {'state': jnp.where(given['present'], state, 0)}

"""CauAIN: causal aware interaction network over commonsense clues (Zhao et al., IJCAI 2022).

The streams of a turn are concatenated and read by a bidirectional GRU. Every turn then looks for the causes
of its emotion in itself and in the turns before it: in what a turn may do to its speaker (`intra` clues,
for turns of the same speaker) or to the others (`inter` clues). The clues are features of the corpus, in
the paper states of the commonsense model COMET.

Written after the paper; the published code does not run, so there is nothing to be equal to. Inferred: that
a turn looks at itself and at the past; one softmax over both kinds of turns; keys and values of a turn with
its clue added through linear layers without bias; scores divided by the square root of the GRU's width; one
hidden layer in front of the scores. A missing clue or modality counts as zeros. `causal` leaves out the
backward direction of the GRU.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.graph import complete, same_speaker, softmax
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU
from jmer.types import Array, Batch, Output

TAGS = ('early fusion', 'joint representation', 'recurrent', 'context', 'speaker-aware', 'missing modality')


class Model(Checked):
    """The defaults are the paper's. Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    intra, inter: names of the streams with clues on a turn's speaker and on the others.
    width: of the projected turns and of one direction of the GRU.
    hidden: width of the layer in front of the scores.
    causal: read the past only.
    dropout: of the turns, and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text',)
    intra: str = 'intra'
    inter: str = 'inter'
    width: int = 300
    hidden: int = 300
    causal: bool = False
    dropout: float = 0.2

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x: Array = jnp.concatenate([turn_vectors(batch.streams[name]) for name in self.streams], -1)
        x = Dropout(self.dropout, name='dropout')(Dense(self.width, name='project')(x), train=train)
        h = BiGRU(self.width, causal=self.causal, name='gru')(x, batch.present, train=train)
        causes, aux = self._causes(h, batch)
        h = nn.relu(Dense(self.hidden, name='hidden')(causes))
        h = Dropout(self.dropout, name='dropout_head')(h, train=train)
        return Output(Dense(self.classes, name='head')(h), aux)

    def _causes(self, h: Array, batch: Batch) -> tuple[Array, dict[str, Any]]:
        """What every turn finds in values and in queries of the turns it looks at, side by side."""
        width = h.shape[-1]
        speakers = jnp.zeros(h.shape[:2], int) if batch.speakers is None else batch.speakers
        # Keys have no bias: it would add the same to all scores of a turn.
        query, value = (Dense(width, name=name)(h) for name in ('query', 'value'))
        key = Dense(width, use_bias=False, name='key')(h)
        kinds = {'intra': same_speaker(speakers), 'inter': ~same_speaker(speakers)}
        scores, values = {}, {}
        for kind, name in (('intra', self.intra), ('inter', self.inter)):
            clue = turn_vectors(batch.streams[name])
            keys = key + Dense(width, use_bias=False, name=f'key_{kind}')(clue)
            values[kind] = value + Dense(width, use_bias=False, name=f'value_{kind}')(clue)
            scores[kind] = jnp.einsum('btd,bsd->bts', query, keys) / self.width**0.5
        seen = jnp.tril(complete(batch.present))
        weights = softmax(jnp.where(kinds['intra'], scores['intra'], scores['inter']), seen)
        found = [jnp.einsum('bts,bsd->btd', jnp.where(mask, weights, 0), values[kind]) for kind, mask in kinds.items()]
        traced = jnp.einsum('bts,bsd->btd', weights, query)
        return jnp.concatenate([found[0] + found[1], traced], -1), {'attention': weights, 'context': h}

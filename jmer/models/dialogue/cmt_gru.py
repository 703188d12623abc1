"""CMT-GRU: the recurrent encoder of CMT-MSER over the turns of a dialogue (Maji et al., ICASSP 2023).

The streams of a turn are concatenated and two bidirectional GRU layers read the dialogue. Each direction,
behind a linear layer, attends to itself by dot products; both, side by side, are scored. A dialogue counts as
much as another one in the loss, however many turns it has.

Where this differs from the authors' code: turns that pad are masked; the softmax is over the turns that are
read, where theirs is over those that read, so that a turn's weights need not add up to 1 (`over_queries` brings
that back). Speakers are not used; a modality missing in a turn counts as zeros.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU
from jmer.types import Array, Batch, Output, Variables

TAGS = ('early fusion', 'joint representation', 'recurrent', 'context', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    width: hidden size of one direction of the GRU.
    layers: of the GRU.
    over_queries: attention weights add up to 1 over the turns that read; see above.
    dropout: rate between the layers (0 in the authors' code).
    """

    classes: int
    streams: tuple[str, ...] = ('text',)
    width: int = 140
    layers: int = 2
    over_queries: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x: Array = jnp.concatenate([turn_vectors(batch.streams[name]) for name in self.streams], -1)
        x = BiGRU(self.width, self.layers, self.dropout, name='gru')(x, batch.present, train=train)
        halves = [self._attend(Dense(self.width, name=f'attend_{name}')(half), batch.present)
                  for name, half in zip(('forward', 'backward'), jnp.split(x, 2, -1), strict=True)]
        x = jnp.concatenate(halves, -1)
        return Output(Dense(self.classes, name='head')(x), {'features': x})

    def _attend(self, x: Float[Array, 'b u d'], mask: Bool[Array, 'b u']) -> Float[Array, 'b u d']:
        both = mask[:, :, None] & mask[:, None]
        scores = jnp.where(both, jnp.einsum('bud,bsd->bus', x, x), -1e30)
        weights = jnp.where(both, jax.nn.softmax(scores, 1 if self.over_queries else 2), 0)
        return jnp.einsum('bus,bsd->bud', weights, x)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss, the mean over the turns of a dialogue and then over the dialogues."""
    term = losses.task(out.logits, batch.labels)
    turns = jnp.sum(term.weight, -1, keepdims=True)
    return {'label': losses.Term(term.value, term.weight / jnp.where(turns > 0, turns, 1))}


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from GRUModel of bubaimaji/cmt-mser."""
    reader, d = Reader(state, 'cmt_gru'), model.width
    params = {
        'gru': reader.recurrent('gru', 'rnn', reader.width('rnn.weight_ih_l0', 1), d, model.layers),
        'attend_forward': reader.dense('atten_weight_f', d, d),
        'attend_backward': reader.dense('atten_weight_b', d, d),
        'head': reader.dense('fc', 2 * d, model.classes),
    }
    reader.close()
    return {'params': params}

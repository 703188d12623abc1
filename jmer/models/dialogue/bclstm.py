"""bc-LSTM: bidirectional contextual LSTM over the turns of a dialogue (Poria et al., ACL 2017).

The streams of a turn are concatenated; two bidirectional LSTM layers read the dialogue; each turn may
attend to all others; two linear layers score it. Speakers are not used.

Where this differs from the authors' code: theirs runs the backward direction over the padding first, so
that a prediction depends on the longest dialogue of its batch (by 0.014 in log-probability on random
weights); here every dialogue is read as if it were alone. A modality missing in a turn counts as zeros.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiLSTM
from jmer.types import Array, Batch, Output, Variables

TAGS = ('early fusion', 'joint representation', 'recurrent', 'context', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    width: hidden size of one direction of the LSTM.
    hidden: width of the layer in front of the scores.
    layers: layers of the LSTM.
    attention: let every turn attend to the whole dialogue.
    causal: read and attend to the turns so far only, in one direction.
    dropout: rate between LSTM layers and in front of the scores.
    input_dropout: rate on the features of the turns (0 in the authors' code).
    """

    classes: int
    streams: tuple[str, ...] = ('text',)
    width: int = 100
    hidden: int = 100
    layers: int = 2
    attention: bool = False
    causal: bool = False
    dropout: float = 0.25
    input_dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x: Array = jnp.concatenate([turn_vectors(batch.streams[name]) for name in self.streams], -1)
        x = Dropout(self.input_dropout, name='dropout_input')(x, train=train)
        x = BiLSTM(self.width, self.layers, self.dropout, self.causal, name='lstm')(x, batch.present, train=train)
        aux = {'context': x}
        if self.attention:
            x, aux['attention'] = self._attend(x, batch.present)
        x = nn.relu(Dense(self.hidden, name='hidden')(x))
        x = Dropout(self.dropout, name='dropout_head')(x, train=train)
        return Output(Dense(self.classes, name='head')(x), aux)

    def _attend(self, x, mask):
        """Every turn's mean over the dialogue, weighted by tanh of a bilinear score; [b u u] weights."""
        queries = Dense(x.shape[-1], name='attention')(x)
        scores = jnp.tanh(jnp.einsum('bud,bsd->bus', queries, x))
        both = mask[:, :, None] & mask[:, None, :]
        both = jnp.tril(both) if self.causal else both
        # Scores lie within +-1, so a large finite number does: a row without turns stays finite.
        weights = jnp.where(both, jax.nn.softmax(jnp.where(both, scores, -1e4)), 0.0)
        return jnp.einsum('bus,bsd->bud', weights, x), weights


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of declare-lab/conv-emotion, bc-LSTM-pytorch."""
    reader, width = Reader(state, 'bclstm'), 2 * model.width
    lstm = {}
    for k in range(model.layers):
        inputs = width if k else reader.width('lstm.weight_ih_l0', 1)
        lstm[f'forward_{k}'] = reader.lstm('lstm', inputs, model.width, f'l{k}')
        lstm[f'backward_{k}'] = reader.lstm('lstm', inputs, model.width, f'l{k}_reverse')
    params = {'lstm': lstm}
    if model.attention:
        params['attention'] = reader.dense('matchatt.transform', width, width)
    else:
        reader.skip('matchatt.*')   # stored and not used when attention is off
    params['hidden'] = reader.dense('linear', width, model.hidden)
    params['head'] = reader.dense('smax_fc', model.hidden, model.classes)
    reader.close()
    return {'params': params}

"""ATIA: audio-text interactional attention with the ArcFace loss (Tang et al., Speech Communication 2022).

After the paper. Audio and text are encoded apart; each then attends to the other, so that what is salient in
one decides what is looked for in the other; both together make one vector. Training widens the angle between
the vector and that of its class by a margin (`losses.arcface`), which draws the items of a class together;
the scores themselves are the cosines of these angles, scaled.

What was read is the abstract: two modalities, an interactional attention of which the authors tried four
forms and kept one, the ArcFace loss in place of the usual one. Inferred are all equations and sizes: a
bidirectional LSTM encodes each stream; multi-head attention of each to the other's states stands beside the
own states in every step, and their mean over the steps is taken; a linear layer with ReLU joins both means and
another one makes the vector. Which of the four forms the authors kept is not known; scale and margin are those
of Deng et al. (CVPR 2019). Padding is masked; an absent stream is not attended to, and its own mean is zero.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer import losses
from jmer.layers.attention import visible
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.gating import unit
from jmer.layers.pooling import pool
from jmer.layers.recurrent import BiLSTM
from jmer.layers.transformer import Attention
from jmer.types import Array, Batch, Output, Stream

TAGS = ('deep fusion', 'cross-modality attention', 'multi-head attention', 'recurrent', 'unaligned',
        'missing modality')
LABELS = ('class',)


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: two, each of which attends to the other.
    states: width of one direction of the LSTMs.
    heads: of the attention; 2 states must be a multiple.
    hidden: width of the layer that joins both streams.
    width: of the vector whose angles are taken.
    scale: what cosines are multiplied by. margin: of the angle of the true class, in radians.
    attention_dropout: of the attention weights.
    dropout: rate after the encoders and in front of the last layers.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text')
    states: int = 128
    heads: int = 4
    hidden: int = 256
    width: int = 128
    scale: float = 64.0
    margin: float = 0.5
    attention_dropout: float = 0.1
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        """aux: 'cosines' [b c] that the loss takes; 'vector' [b width], of length 1."""
        if len(self.streams) != 2:
            raise ValueError(f'arcface_interaction: streams: found {self.streams}, expected two')
        encoded = {name: self._encode(name, batch.streams[name], train) for name in self.streams}
        both = [self._interact(name, encoded[name], encoded[other], train)
                for name, other in (self.streams, self.streams[::-1])]
        x = Dropout(self.dropout, name='dropout_joined')(jnp.concatenate(both, -1), train=train)
        x = nn.relu(Dense(self.hidden, name='join')(x))
        x = Dropout(self.dropout, name='dropout_hidden')(x, train=train)
        vector = unit(Dense(self.width, name='vector')(x))
        directions = self.param('directions', nn.initializers.xavier_uniform(), (self.classes, self.width))
        cosines = vector @ unit(directions).T
        return Output(self.scale * cosines, {'cosines': cosines, 'vector': vector})

    def _encode(self, name: str, stream: Stream, train: bool) -> Stream:
        x = BiLSTM(self.states, name=f'encode_{name}')(*stream, train=train)
        return Stream(Dropout(self.dropout, name=f'dropout_{name}')(x, train=train), stream.mask)

    def _interact(self, name: str, own: Stream, other: Stream, train: bool) -> Float[Array, 'b e']:
        """The mean of the own states, each beside what it finds in the other stream."""
        seen = visible(own.mask, other.mask, causal=False)
        found = Attention(self.heads, self.attention_dropout, name=f'attend_{name}')(own.x, other.x, seen, train=train)
        found = jnp.where(jnp.any(seen, -1)[..., None], found, 0)
        return pool(jnp.concatenate([own.x, found], -1), own.mask, 'mean')


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The ArcFace loss of the classes."""
    label = losses.target(batch.labels)
    if not jnp.issubdtype(jnp.result_type(label.value), jnp.integer):
        raise ValueError(f'arcface_interaction: label: found values of type {jnp.result_type(label.value)}, '
                         'expected class indices, whose angles have a margin')
    return {'label': losses.arcface(out.aux['cosines'], label, scale=model.scale, margin=model.margin)}

"""CMCF-SRNet: cross-modality context fusion and semantic refinement (Zhang & Li, ACL 2023).

Every stream reads itself and the others through transformer layers that see only a few turns around each turn. The
streams of a turn are then joined, and their meaning is refined along a graph: a relational convolution over a window
of turns, whose relations say who speaks at the ends of an edge and which end comes first, and a transformer layer over
the dialogue. What goes in and what comes out of the refinement is scored, for emotions and, as a second task, for
sentiment.

Written after the paper; its code could not be read, so there is nothing to be equal to. Inferred: all widths and
windows; post-norm layers with sinusoidal positions, in which what a stream finds in the streams is added up; joining by
a linear layer; a mean for every relation; the weight of the second task. A modality missing in a turn is not read there
and joins as zeros; speakers beyond the last known one share its number. `causal` leaves out all later turns.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.position import interleaved
from jmer.layers.postnorm import PostNorm
from jmer.layers.transformer import Attention, layer_norm
from jmer.types import Array, Batch, Output

TAGS = ('deep fusion', 'cross-modality attention', 'multi-head attention', 'graph-based', 'transformer', 'context',
        'speaker-aware', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: what is read.
    sentiment: name of a second target; '' for none. Where a batch has no such labels, the first one alone counts.
    sentiments: number of its scores.
    width: features of a turn in every stream, a multiple of `heads`.
    heads: of every attention.
    hidden: width inside the transformer layers.
    layers: in which the streams read each other.
    near: how many turns before and after it a turn of a stream sees; -1 for all.
    past, future: how many earlier and later turns the graph joins to a turn; -1 for all.
    speakers: how many speakers the relations tell apart.
    causal: read the past only.
    dropout: everywhere.
    sentiment_weight: of the second target's loss.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    sentiment: str = ''
    sentiments: int = 3
    width: int = 128
    heads: int = 4
    hidden: int = 256
    layers: int = 2
    near: int = 5
    past: int = 10
    future: int = 10
    speakers: int = 2
    causal: bool = False
    dropout: float = 0.3
    sentiment_weight: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        nodes = graph.modal_nodes(batch, self.streams)
        place = interleaved(graph.places(batch.present), self.width)
        x: list[Array] = [Dense(self.width, name=f'project_{name}')(turn_vectors(batch.streams[name])) + place
                          for name in self.streams]
        near = graph.window(batch.present, self.near, 0 if self.causal else self.near)
        for k in range(self.layers):
            x = [Reading(self.streams, self.heads, self.hidden, self.dropout, name=f'{name}_layer_{k}')(
                h, x, near[:, None] & nodes[:, :, None], train=train) for name, h in zip(self.streams, x, strict=True)]
        joined = jnp.concatenate([jnp.where(nodes[:, m, :, None], h, 0) for m, h in enumerate(x)], -1)
        fused: Array = nn.relu(Dense(self.width, name='join')(joined))
        refined = self._refine(fused, batch, train)
        h = Dropout(self.dropout, name='dropout_head')(jnp.concatenate([fused, refined], -1), train=train)
        aux = {'streams': dict(zip(self.streams, x, strict=True)), 'fused': fused, 'refined': refined}
        if self.sentiment:
            aux['sentiment'] = Dense(self.sentiments, name='head_sentiment')(h)
        return Output(Dense(self.classes, name='head')(h), aux)

    def _refine(self, x: Array, batch: Batch, train: bool) -> Array:
        """The relational convolution and the transformer layer."""
        speakers = graph.speakers_of(batch, self.speakers)
        relation = graph.speaker_relations(speakers, batch.present, self.speakers)
        edges = graph.window(batch.present, self.past, 0 if self.causal else self.future)
        typed = graph.typed(edges, relation, 2 * self.speakers**2)
        x = nn.relu(graph.RelationalConv(self.width, name='relational')(x, graph.mean_of(typed)))
        x = Dropout(self.dropout, name='dropout_graph')(x, train=train)
        seen = graph.window(batch.present, -1, 0 if self.causal else -1)
        rates = [self.dropout] * 4
        return PostNorm(self.heads, self.hidden, *rates, name='refine')(x, seen, train=train)[0]


class Reading(nn.Module):
    """A transformer layer in which the turns of a stream read those of several streams at once."""

    streams: tuple[str, ...]
    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u d'], sources: list[Float[Array, 'b u d']], seen: Bool[Array, 'b m u u'], *,
        train: bool
    ) -> Float[Array, 'b u d']:
        def drop(y, name):
            return Dropout(self.dropout, name=f'dropout_{name}')(y, train=train)

        found = jnp.zeros_like(x)
        for m, (name, source) in enumerate(zip(self.streams, sources, strict=True)):
            found += Attention(self.heads, self.dropout, name=f'read_{name}')(x, source, seen[:, m], train=train)
        x = layer_norm('attention_norm')(x + drop(found, 'found'))
        y = drop(nn.relu(Dense(self.hidden, name='expand')(x)), 'hidden')
        return layer_norm('feedforward_norm')(x + drop(Dense(x.shape[-1], name='contract')(y), 'out'))


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The loss of the emotions and, where there are labels of it, that of the sentiment."""
    labels = dict(batch.labels)
    second = labels.pop(model.sentiment, None)
    terms = {'label': losses.task(out.logits, labels)}
    if second is not None:
        terms['sentiment'] = losses.task(out.aux['sentiment'], {model.sentiment: second})
    return losses.weighted(terms, sentiment=model.sentiment_weight)

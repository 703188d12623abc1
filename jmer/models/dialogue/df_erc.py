"""DF-ERC: disentanglement and fusion of modality and context (Li et al., ACM MM 2023, arXiv:2308.04502).

Dual-level disentanglement: every stream of a turn becomes two vectors. In the space of modalities those of one
modality are drawn together, in the space of utterances those of one turn; both by contrast within a dialogue.
Contribution-aware fusion: each modality says how certain it is of the turn, which it learns from what it would
score alone, and weighs as much. Context refusion: what the speaker's own turns and those of the others tell is let
in by gates, turn by turn.

Written after the paper's abstract; no code could be had, so there is nothing to be equal to. Inferred: one layer for
each stream and one for all in the disentanglement, NT-Xent as contrast, with what differs as negatives; the
probability of the true class (for real values e^-error) as the certainty to be learnt, without gradient, and
weights in proportion to it; a bidirectional GRU and bilinear attention for the contexts; the weights of the losses.
A modality missing in a turn takes no part in fusion or losses. Any number of speakers will do; without speakers
there is one. `causal` leaves out the backward direction and reads the past only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer import losses
from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import BiGRU
from jmer.types import Array, Batch, Label, Output

TAGS = ('deep fusion', 'joint representation', 'coordinated representation', 'contrastive', 'gated', 'uncertainty',
        'recurrent', 'context', 'speaker-aware', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams.
    width: of all vectors, and of one direction of the GRU.
    temperature: of both contrasts.
    modality_weight, utterance_weight: of the contrast in either space.
    alone_weight: of the losses of the modalities' own scores.
    contribution_weight: of the squared error of their certainty.
    causal: read the past only.
    dropout: of the projected streams, of what enters the GRU, and in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    width: int = 200
    temperature: float = 0.5
    modality_weight: float = 0.1
    utterance_weight: float = 0.1
    alone_weight: float = 0.5
    contribution_weight: float = 0.5
    causal: bool = False
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        nodes = graph.modal_nodes(batch, self.streams)
        x: Array = jnp.stack([jnp.tanh(Dense(self.width, name=f'project_{name}')(turn_vectors(batch.streams[name])))
                              for name in self.streams], 1)
        x = Dropout(self.dropout, name='dropout')(x, train=train)
        own, shared = self._each('own', self.width, x), Dense(self.width, name='shared')(x)
        joined = nn.relu(Dense(self.width, name='join')(jnp.concatenate([own, shared], -1)))
        certainty = nn.sigmoid(self._each('certainty', 1, joined)[..., 0])
        contribution = normalised(certainty, nodes)
        fused = jnp.einsum('bmu,bmud->bud', contribution, joined)
        h = self._refuse(Dropout(self.dropout, name='dropout_context')(fused, train=train), batch, train)
        h = Dropout(self.dropout, name='dropout_head')(jnp.concatenate([fused, nn.relu(h)], -1), train=train)
        aux = {'own': own, 'shared': shared, 'nodes': nodes, 'certainty': certainty, 'contribution': contribution,
               'alone': self._each('head', self.classes, joined)}
        return Output(Dense(self.classes, name='head')(h), aux)

    def _each(self, name: str, width: int, x: Float[Array, 'b m u d']) -> Float[Array, 'b m u e']:
        """A linear layer for each modality."""
        return jnp.stack([Dense(width, name=f'{name}_{stream}')(x[:, m])
                          for m, stream in enumerate(self.streams)], 1)

    def _refuse(self, x: Float[Array, 'b u d'], batch: Batch, train: bool) -> Float[Array, 'b u d']:
        """Every turn with as much of either context as its gates let in; nothing where there is nobody to hear."""
        context = BiGRU(self.width, causal=self.causal, name='context')(x, batch.present, train=train)
        speakers = jnp.zeros(x.shape[:2], int) if batch.speakers is None else batch.speakers
        seen = graph.window(batch.present, -1, 0 if self.causal else -1)
        same = graph.same_speaker(speakers)
        made = x
        for name, of in (('speaker', seen & same), ('others', seen & ~same)):
            found, _ = graph.MatchingAttention(name=f'attend_{name}')(context, of)
            told = Dense(self.width, use_bias=False, name=f'tell_{name}')(found)
            gate = nn.sigmoid(Dense(self.width, name=f'gate_{name}')(jnp.concatenate([x, told], -1)))
            made = made + gate * told
        return made


def normalised(certainty: Float[Array, 'b m u'], nodes: Bool[Array, 'b m u']) -> Float[Array, 'b m u']:
    """Shares of the modalities that are there, which sum to 1; all zero where none is."""
    certainty = jnp.where(nodes, certainty, 0)
    total = certainty.sum(1, keepdims=True)
    return certainty / jnp.where(total > 0, total, 1)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss, those of the modalities' own scores and certainty, and the contrast in both spaces."""
    aux, nodes = out.aux, jnp.asarray(out.aux['nodes'])
    alone = losses.task(aux['alone'], {'label': _of_each(losses.target(batch.labels), nodes)})
    truth = jax.lax.stop_gradient(jnp.exp(-alone.value))
    modality, turn = (number.astype(jnp.int32) for number in jnp.indices(nodes.shape[1:]))
    terms = {
        'label': losses.task(out.logits, batch.labels),
        'alone': alone,
        'contribution': losses.Term(jnp.square(aux['certainty'] - truth), alone.weight),
        'modality': contrast(aux['own'], modality, nodes, model.temperature),
        'utterance': contrast(aux['shared'], turn, nodes, model.temperature),
    }
    return losses.weighted(terms, alone=model.alone_weight, contribution=model.contribution_weight,
                           modality=model.modality_weight, utterance=model.utterance_weight)


def contrast(
    x: Float[Array, 'b m u d'], number: Int[Array, 'm u'], nodes: Bool[Array, 'b m u'], temperature: float
) -> losses.Term:
    """NT-Xent over the nodes of every dialogue by itself, those of one number together, [b]."""
    return jax.vmap(lambda x, there: losses.nt_xent(x, Label(number, there), temperature=temperature))(x, nodes)


def _of_each(label: Label, nodes: Array) -> Label:
    """The label of a turn for each modality that is there."""
    value = jnp.asarray(label.value)
    return Label(jnp.broadcast_to(value[:, None], (*nodes.shape[:2], *value.shape[1:])),
                 jnp.asarray(label.mask)[:, None] & nodes)

"""MAG-Net: meme-adaptive gated fusion of image and text (authors and venue unknown to us, about 2025).

After the paper. Encoders that both tasks share, a ResNet and BERT, describe the picture and its text; a gate
weighs the two for every item, because a meme's picture and text often say different things; two heads, trained
together, tell the emotion and whether the picture is a meme.

What was read is the abstract: the shared encoders, the gate, both tasks. Inferred are all equations and sizes:
the encoders' features come as streams and are averaged over their steps; each is projected, with tanh; one
gate z, which sees both, gives z of the image and 1 - z of the text, unit by unit, as in GMU; both heads, of
two layers, read the fused vector, and the memes' loss is added to the emotion's with a weight. An absent
stream is not seen by the gate, and the other one then passes whole.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.mlp import MLP
from jmer.layers.pooling import pooled_streams
from jmer.types import Array, Batch, Output

TAGS = ('deep fusion', 'gated', 'joint representation', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: two, the image's features and the text's.
    width: of the projections, the gate and the fused vector.
    hidden: width inside each head.
    meme_label: name of the target that tells memes (1) from other pictures (0), for `data.also`; a batch need not
        have it.
    meme_weight: of its loss.
    pooling: how a stream becomes a vector, see `layers.pooling`.
    dropout: rate in front of the projections and in the heads.
    """

    classes: int
    streams: tuple[str, ...] = ('vision', 'text')
    width: int = 512
    hidden: int = 256
    meme_label: str = 'meme'
    meme_weight: float = 1.0
    pooling: str = 'mean'
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        """aux: 'meme', scores of the two kinds of picture [b 2]; 'gates' [b m width]; 'fused' [b width]."""
        if len(self.streams) != 2:
            raise ValueError(f'magnet: streams: found {self.streams}, expected two: an image and its text')
        vectors, there = pooled_streams(batch, self.streams, self.pooling)
        projections = jnp.stack([self._project(name, x, train) for name, x in zip(self.streams, vectors, strict=True)],
                                1)
        projections = jnp.where(there[..., None], projections, 0)
        z = nn.sigmoid(Dense(self.width, name='gate')(projections.reshape(len(there), -1)))
        gates = shares(z, there)
        fused = jnp.sum(gates * projections, 1)
        emotion, meme = (MLP((self.hidden, count), self.dropout, name=name)(fused, train=train)
                         for name, count in (('emotion', self.classes), ('meme', 2)))
        return Output(emotion, {'meme': meme, 'gates': gates, 'fused': fused})

    def _project(self, name, x, train):
        x = Dropout(self.dropout, name=f'dropout_{name}')(x, train=train)
        return jnp.tanh(Dense(self.width, name=f'project_{name}')(x))


def shares(z: Float[Array, 'b d'], there: Bool[Array, 'b 2']) -> Float[Array, 'b 2 d']:
    """z and 1 - z where both streams are there, 1 of the only one, 0 of an absent one."""
    alone = there & ~there[:, ::-1]
    gates = jnp.where(alone[..., None], 1, jnp.stack([z, 1 - z], 1))
    return jnp.where(there[..., None], gates, 0)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The loss of the one target besides memes, and the cross entropy of memes where the batch tells them."""
    labels = dict(batch.labels)
    meme = labels.pop(model.meme_label, None)
    terms = {'label': losses.task(out.logits, labels)}
    if meme is not None:
        if not jnp.issubdtype(jnp.result_type(meme.value), jnp.integer):
            raise ValueError(f'magnet: label {model.meme_label!r}: found values of type {jnp.result_type(meme.value)}, '
                             'expected class indices, 1 for a meme')
        terms['meme'] = losses.cross_entropy(out.aux['meme'], meme)
    return losses.weighted(terms, meme=model.meme_weight)

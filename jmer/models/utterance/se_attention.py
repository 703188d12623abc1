"""SE attention: squeeze and excitation in cross-modal attention of speech and text (Liu, James & Nathwani, 2023).

After the paper. Speech and text attend to each other by several heads. A squeeze-and-excitation block (Hu et
al., CVPR 2018) then looks at the whole of what a stream has found in the other one, and says channel by channel
how much of it counts; so gated, it is added to the stream. Both streams are pooled and scored together.

What was read is the title: a squeeze-and-excitation block in cross-modal attention. Inferred is all the rest:
that both streams attend, that the block stands between the attention and the shortcut, its form (the mean over
time, two linear layers with a ReLU between them and a sigmoid behind, Hu et al.'s reduction of 16), a linear
layer in front of the attention, statistics pooling, and the sizes.

Padding is masked. A stream without the other stays as it is; an absent one adds zeros.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers.attention import visible
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.mlp import MLP
from jmer.layers.pooling import pool
from jmer.layers.transformer import Attention, layer_norm
from jmer.types import Array, Batch, Output, Stream

TAGS = ('deep fusion', 'cross-modality attention', 'multi-head attention', 'gated', 'unaligned', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: two, which attend to each other.
    width: of a step, a multiple of `heads` and at least `reduction`.
    heads: of attention.
    reduction: how many times narrower than a step the middle of the block is.
    hidden: width of the layer in front of the scores.
    dropout: rate of the attention weights and in front of the last two layers.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text')
    width: int = 128
    heads: int = 8
    reduction: int = 16
    hidden: int = 128
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        streams = {name: self._project(name, batch.streams[name]) for name in self.streams}
        vectors, gates, found = [], {}, {}
        for name, other in zip(self.streams, reversed(self.streams), strict=True):
            x, mask = streams[name]
            found[name] = self._attend(name, streams[name], streams[other], train)
            gates[name] = self._excite(name, found[name], mask)
            x = layer_norm(f'norm_{name}')(x + gates[name][:, None] * found[name])
            vectors.append(pool(x, mask, 'mean_std'))
        fused = jnp.concatenate(vectors, -1)
        logits = MLP((self.hidden, self.classes), self.dropout, name='head')(fused, train=train)
        return Output(logits, {'found': found, 'gates': gates, 'fused': fused})

    def _project(self, name: str, stream: Stream) -> Stream:
        there = stream.mask[..., None]
        x = Dense(self.width, name=f'project_{name}')(jnp.where(there, stream.x, 0))
        return Stream(jnp.where(there, x, 0), stream.mask)

    def _attend(self, name: str, stream: Stream, other: Stream, train: bool) -> Float[Array, 'b t d']:
        """What each step of a stream finds in the other one; nothing where that is not there."""
        seen = visible(stream.mask, other.mask, causal=False) & stream.mask[..., None]
        found = Attention(self.heads, self.dropout, name=f'attend_{name}')(stream.x, other.x, seen, train=train)
        return jnp.where(jnp.any(seen, -1)[..., None], found, 0)

    def _excite(self, name: str, found: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b d']:
        """How much each channel of what was found counts, between 0 and 1."""
        x = Dense(self.width // self.reduction, name=f'squeeze_{name}')(pool(found, mask, 'mean'))
        return nn.sigmoid(Dense(self.width, name=f'excite_{name}')(nn.relu(x)))

    def _check(self) -> None:
        if len(self.streams) != 2:
            raise ValueError(f'se_attention: streams: found {self.streams}, expected two')
        if self.width < self.reduction:
            raise ValueError(f'se_attention: width: found {self.width}, expected reduction={self.reduction} or more')

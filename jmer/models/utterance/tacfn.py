"""TACFN: transformer-based adaptive cross-modal fusion network (Liu et al., CAAI AIR 2023, arXiv:2505.06536).

After the paper. A stream need not reinforce the other with all that it holds: a transformer encoder, which sees
that stream alone, selects first. What is selected and the other stream are spliced, and give the weight vector
by which the other is reinforced; so both ways. The reinforced streams together are scored.

What was read is the abstract: the selection by self-attention inside a stream, the fused weight vector made by
splicing, the reinforcement, and that RAVDESS (audio and vision) is one of the corpora. Inferred are all
equations: a convolution brings a stream to `width`; the selected steps are averaged; each step x of the other
stream becomes x + w x with w = sigmoid(W [x, selected] + b), one weight a feature; reinforced steps are averaged
as well. The sizes of the encoder are those of `cfn_sr`.

The authors published no code for it. What stands under its name is CFN-SR (`cfn_sr`), which differs: there
audio alone guides vision, by one weight for each region that a softmax gives, and the audio map itself is
scored. Padding is masked here; an absent stream is reinforced by nothing, reinforces nothing and adds zeros.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers.attention import Encoder
from jmer.layers.checked import Checked
from jmer.layers.conv import windows
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import pool
from jmer.types import Array, Batch, Output, Stream

TAGS = ('deep fusion', 'cross-modality attention', 'gated', 'transformer', 'unaligned', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: two, which reinforce each other.
    width: of a step, a multiple of `heads`.
    kernel: steps that a convolution sees.
    heads, layers: of the encoders that select.
    dropout: rate of attention weights, of hidden units and of what is added in the encoders.
    embed_dropout: rate of the steps that the encoders read.
    out_dropout: rate in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision')
    width: int = 64
    kernel: int = 3
    heads: int = 8
    layers: int = 5
    dropout: float = 0.1
    embed_dropout: float = 0.3
    out_dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.streams) != 2:
            raise ValueError(f'tacfn: streams: found {self.streams}, expected two')
        streams = {name: self._project(name, batch.streams[name]) for name in self.streams}
        selected = {name: self._select(name, stream, train) for name, stream in streams.items()}
        weights, vectors = {}, []
        for name, other in zip(self.streams, reversed(self.streams), strict=True):
            x, mask = streams[name]
            there = jnp.any(streams[other].mask, -1)
            weights[name] = self._weigh(name, x, selected[other], there)
            vectors.append(pool(x + weights[name] * x, mask, 'mean'))
        fused = jnp.concatenate(vectors, -1)
        x = Dropout(self.out_dropout, name='dropout')(fused, train=train)
        logits = Dense(self.classes, name='head')(x)
        return Output(logits, {'steps': {name: s.x for name, s in streams.items()}, 'selected': selected,
                               'weights': weights, 'fused': fused})

    def _project(self, name: str, stream: Stream) -> Stream:
        before = (self.kernel - 1) // 2
        seen = windows(stream.x, stream.mask, self.kernel, before=before, after=self.kernel - 1 - before)
        x = Dense(self.width, name=f'project_{name}')(seen)
        return Stream(jnp.where(stream.mask[..., None], x, 0), stream.mask)

    def _select(self, name: str, stream: Stream, train: bool) -> Float[Array, 'b d']:
        """What a stream, seen alone, offers to the other one."""
        encoder = Encoder(self.heads, self.layers, self.dropout, self.dropout, self.dropout, self.embed_dropout,
                          causal=False, name=f'select_{name}')
        return pool(encoder(stream.x, stream.mask, train=train), stream.mask, 'mean')

    def _weigh(
        self, name: str, x: Float[Array, 'b t d'], selected: Float[Array, 'b d'], there: Bool[Array, 'b']
    ) -> Float[Array, 'b t d']:
        """How much each feature of each step is reinforced; nothing where the other stream is not there."""
        spliced = jnp.concatenate([x, jnp.broadcast_to(selected[:, None], x.shape)], -1)
        weights = nn.sigmoid(Dense(self.width, name=f'weigh_{name}')(spliced))
        return jnp.where(there[:, None, None], weights, 0)

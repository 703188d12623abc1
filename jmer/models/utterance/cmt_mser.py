"""CMT-MSER: cross-modal transformer with auxiliary heads for speech emotion (Maji et al., ICASSP 2023).

Audio and text read each other through MulT's cross-modal encoders, then what they have read through encoders
of their own; the last steps of both, joined, pass a residual block. Besides, each stream alone passes one
encoder `passes` times, and a residual head that the streams share; its scores are auxiliary.

Where this differs from the authors' code: theirs asks MulT's encoder for two options that the published file
does not have, and cannot be built; this is the system without them. Padding is masked; a stream may be
missing, and has no auxiliary loss then; a stream of another width than `width` is projected, text as well.
The authors publish no training script: the three losses are added up here.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.attention import Encoder
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.types import Array, Batch, Output, Stream, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'transformer', 'unaligned', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: two, which read each other; the authors: audio and text.
    width: of a step, a multiple of `heads`.
    heads, layers: of every encoder.
    hidden: width of the auxiliary head.
    passes: how often a stream alone passes its encoder.
    causal: query t sees key s only if s <= t + |S - T|.
    attention_dropout, relu_dropout, residual_dropout, embed_dropout: rates in the encoders; attention to the
        other stream has none.
    out_dropout: behind the ReLUs in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text')
    width: int = 50
    heads: int = 5
    layers: int = 5
    hidden: int = 120
    passes: int = 3
    causal: bool = True
    attention_dropout: float = 0.1
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1
    embed_dropout: float = 0.25
    out_dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.streams) != 2:
            raise ValueError(f'cmt_mser: streams: found {self.streams}, expected two')
        streams = {name: self._project(name, batch.streams[name]) for name in self.streams}
        last = []
        for name, other in zip(self.streams, reversed(self.streams), strict=True):
            x, mask = streams[name]
            read = self._encoder(f'{name}_from_{other}', 0.0)(x, mask, *streams[other], train=train)
            last.append(self._encoder(f'{name}_memory', self.attention_dropout)(
                read, mask, train=train, last=True)[:, 0])
        joined = jnp.concatenate(last, -1)
        x = joined + self._residual(joined, (joined.shape[-1],), 'residual', train)
        aux = {name: self._alone(name, stream, train) for name, stream in streams.items()}
        return Output(Dense(self.classes, name='head')(x), {'joined': joined} | self._auxiliary(aux, train))

    def _project(self, name: str, stream: Stream) -> Stream:
        x = jnp.where(stream.mask[..., None], stream.x, 0)
        if x.shape[-1] != self.width:
            x = Dense(self.width, use_bias=False, name=f'project_{name}')(x)
        return Stream(x, stream.mask)

    def _alone(self, name: str, stream: Stream, train: bool) -> Float[Array, 'b d']:
        """The last step of a stream that has passed its encoder, always the same one, several times."""
        x, encoder = stream.x, self._encoder(f'{name}_alone', self.attention_dropout)
        for _ in range(self.passes - 1):
            x = encoder(x, stream.mask, train=train)
        return encoder(x, stream.mask, train=train, last=True)[:, 0]

    def _auxiliary(self, vectors: dict[str, Float[Array, 'b d']], train: bool) -> dict[str, Any]:
        """Scores of each stream alone, by one head."""
        x = jnp.stack(list(vectors.values()), 1)
        x = x + self._residual(x, (self.hidden, self.hidden), 'auxiliary', train)
        scores = Dense(self.classes, name='auxiliary_head')(x)
        return {'auxiliary': {name: scores[:, m] for m, name in enumerate(vectors)}}

    def _residual(self, x: Float[Array, '*b d'], widths: tuple[int, ...], name: str, train: bool):
        """What a residual block adds: layers with ReLU and dropout, and one back to the width of x."""
        width = x.shape[-1]
        for k, inner in enumerate(widths, 1):
            x = nn.relu(Dense(inner, name=f'{name}_{k}')(x))
            x = Dropout(self.out_dropout, name=f'dropout_{name}_{k}')(x, train=train)
        return Dense(width, name=f'{name}_out')(x)

    def _encoder(self, name: str, attention_dropout: float) -> Encoder:
        return Encoder(self.heads, self.layers, attention_dropout, self.relu_dropout, self.residual_dropout,
                       self.embed_dropout, self.causal, name=name)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss of the scores and of the auxiliary ones."""
    terms = {'label': losses.task(out.logits, batch.labels)}
    for name, scores in out.aux['auxiliary'].items():
        there = jnp.any(batch.streams[name].mask, -1)
        labels = {k: label._replace(mask=label.mask & there) for k, label in batch.labels.items()}
        terms[name] = losses.task(scores, labels)
    return terms


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from ATmodel of bubaimaji/cmt-mser (audio, text, which it calls v)."""
    require_streams('cmt_mser', model.streams, 2)
    reader, d = Reader(state, 'cmt_mser'), model.width
    audio, text = model.streams
    projection = reader.conv1d('conv_1d_a', None, d, 1, bias=False)
    params = {} if reader.width('conv_1d_a.weight', 1) == d else {f'project_{audio}': projection}
    for name, other, letters in ((audio, text, 'av'), (text, audio, 'va')):
        params[f'{name}_from_{other}'] = reader.encoder('trans_{}_with_{}'.format(*letters), model.layers, d)
        params[f'{name}_memory'] = reader.encoder(f'trans_{letters[0]}_mem', model.layers, d)
        params[f'{name}_alone'] = reader.encoder(f'{letters[0]}_mem', model.layers, d)
    params |= {
        'residual_1': reader.dense('proj1', 2 * d, 2 * d),
        'residual_out': reader.dense('proj2', 2 * d, 2 * d),
        'head': reader.dense('out_layer', 2 * d, model.classes),
        'auxiliary_1': reader.dense('proj_aux1', d, model.hidden),
        'auxiliary_2': reader.dense('proj_aux2', model.hidden, model.hidden),
        'auxiliary_out': reader.dense('proj_aux3', model.hidden, d),
        'auxiliary_head': reader.dense('out_layer_aux', d, model.classes),
    }
    reader.close()
    return {'params': params}

"""3M-SER: multi-head attention over BERT and VGGish features (Phuong-Nam Tran et al., INISCOM 2023).

Text attends to itself and is projected to the width of audio; the steps of audio are put behind those of text;
both together attend to themselves. The first step is scored by two linear layers. There are no shortcuts.

Where this differs from the authors' code: theirs takes one utterance at a time and is here batched, with
masks; audio of another width than `width` is projected; without text the first step of audio is scored; audio
that is one constant has no range to be scaled by and becomes zero.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.author import Reader, require_streams
from jmer.layers.attention import visible
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import pool
from jmer.layers.postnorm import mix, weigh
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Output, Stream, Variables

TAGS = ('deep fusion', 'multi-head attention', 'joint representation', 'unaligned', 'missing modality')
SCALES = ('none', 'layer', 'minmax')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: text, then audio.
    width: of a step of audio, a multiple of `heads`; so must be the width of text.
    heads: of attention.
    hidden: width of the layer in front of the scores.
    scale: what is done to audio first: 'none', 'layer' normalisation of every step, or 'minmax', all of an
        utterance brought between 0 and 1.
    dropout: rate of attention weights and in front of the last two layers.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio')
    width: int = 128
    heads: int = 8
    hidden: int = 64
    scale: str = 'layer'
    dropout: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        text, audio = (batch.streams[name] for name in self.streams)
        x, of_text = self._attend(jnp.where(text.mask[..., None], text.x, 0), text.mask, 'text', train)
        heard: Array = jnp.where(audio.mask[..., None], audio.x, 0)
        if heard.shape[-1] != self.width:
            heard = Dense(self.width, name='project_audio')(heard)
        heard = self._scale(Stream(heard, audio.mask))

        mask = jnp.concatenate([text.mask, audio.mask], 1)
        x, of_all = self._attend(jnp.concatenate([x, heard], 1), mask, 'fused', train)
        first = Dropout(self.dropout, name='dropout')(pool(x[:, ::-1], mask[:, ::-1], 'last'), train=train)
        first = nn.leaky_relu(Dense(self.hidden, name='hidden')(first))
        return Output(Dense(self.classes, name='head')(first), {'text': of_text, 'fused': of_all})

    def _attend(
        self, x: Float[Array, 'b t e'], mask: Bool[Array, 'b t'], name: str, train: bool
    ) -> tuple[Float[Array, 'b t d'], Float[Array, 'b h t t']]:
        """Self-attention, a linear layer and normalisation; the attention weights as well."""
        d = x.shape[-1]
        if d % self.heads:
            raise ValueError(f'mser3m: {name}: found a width of {d}, expected a multiple of {self.heads} heads')
        q, k, v = jnp.split(Dense(3 * d, name=f'query_key_value_{name}')(x), 3, axis=-1)
        weights = weigh(q, k, visible(mask, mask, causal=False), self.heads)
        x = mix(Dropout(self.dropout, name=f'dropout_{name}')(weights, train=train), v)
        x = Dense(self.width, name=f'linear_{name}')(Dense(d, name=f'attention_out_{name}')(x))
        return jnp.where(mask[..., None], layer_norm(f'norm_{name}')(x), 0), weights

    def _scale(self, stream: Stream) -> Float[Array, 'b t d']:
        x, there = stream.x, stream.mask[..., None]
        if self.scale == 'layer':
            x = layer_norm('norm_audio')(x)
        if self.scale == 'minmax':
            low = jnp.min(jnp.where(there, x, jnp.inf), (1, 2), keepdims=True)
            high = jnp.max(jnp.where(there, x, -jnp.inf), (1, 2), keepdims=True)
            wide = high > low
            x = jnp.where(wide & there, (x - jnp.where(wide, low, 0)) / jnp.where(wide, high - low, 1), 0)
        return jnp.where(there, x, 0)

    def _check(self) -> None:
        if len(self.streams) != 2:
            raise ValueError(f'mser3m: streams: found {self.streams}, expected two')
        if self.scale not in SCALES:
            raise ValueError(f'mser3m: scale: found {self.scale!r}, expected one of {", ".join(SCALES)}')


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of tpnam0901/3m-ser (BERT and VGGish are kept apart)."""
    require_streams('mser3m', model.streams, 2)
    reader, d = Reader(state, 'mser3m'), model.width
    reader.skip('bert.*', 'text_encoder.*', 'audio_encoder.*', 'vggish.*')
    params = {'norm_audio': reader.layer_norm('vggish_layer_norm', d)} if model.scale == 'layer' else {}
    for name, theirs, width in (('text', 'text', reader.width('text_linear.weight', 1)), ('fused', 'fusion', d)):
        inner = 3 * width if width else None
        params |= {
            f'query_key_value_{name}': {
                'kernel': reader.take(f'{theirs}_attention.in_proj_weight', inner, width).T,
                'bias': reader.take(f'{theirs}_attention.in_proj_bias', inner)},
            f'attention_out_{name}': reader.dense(f'{theirs}_attention.out_proj', width, width or 1),
            f'linear_{name}': reader.dense(f'{theirs}_linear', width, d),
            f'norm_{name}': reader.layer_norm(f'{theirs}_layer_norm', d),
        }
    params['hidden'] = reader.dense('linear', d, model.hidden)
    params['head'] = reader.dense('classifer', model.hidden, model.classes)       # theirs is spelt so
    reader.close()
    return {'params': params}

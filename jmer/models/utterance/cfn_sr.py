"""CFN-SR: fusion by cross-modal self-attention with a residual structure (Fu et al., 2021, arXiv:2111.02172).

Convolutions over MFCCs and a transformer encoder read audio. Its last step says which regions of each video
slice matter; the slices, reinforced by that map, are averaged and scored together with the audio map. (The
code published under the name of TACFN, arXiv:2505.06536, is this system.)

A step of vision is a slice of a 3-D convolution network's last map: `regions` vectors, one after the other. The
scores see every step of the audio map, so that audio has `steps` frames: a shorter clip is followed by silence
(zeros), a longer one is refused.

Where this differs from the authors' code: theirs sums the maps of all items of a batch and reinforces every
item with the sum, so that a prediction depends on its batch; `batch_attention` brings that back. An absent
stream adds zeros; the video network is not part of this.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.author import Reader, require_streams
from jmer.collectives import total
from jmer.layers.attention import Encoder
from jmer.layers.checked import Checked
from jmer.layers.conv import windows
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.steps import extend
from jmer.types import Array, Batch, Output, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'transformer', 'joint representation', 'missing modality')
POOL = 8


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: audio, then vision.
    steps: frames of audio, 12 or more.
    regions: vectors in a step of vision, of which its width is a multiple.
    widths: of the three convolutions; the last one is a multiple of `heads`.
    attention: width in which regions and audio are compared.
    heads, layers: of the encoder.
    batch_attention: every item is reinforced by the sum of the maps of the batch.
    dropout: rate behind the second convolution.
    audio_dropout: rate of the audio map in front of the scores.
    attention_dropout, relu_dropout, residual_dropout, embed_dropout: rates in the encoder.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision')
    steps: int = 216
    regions: int = 49
    widths: tuple[int, ...] = (32, 32, 64)
    attention: int = 64
    heads: int = 8
    layers: int = 5
    batch_attention: bool = False
    dropout: float = 0.2
    audio_dropout: float = 0.4
    attention_dropout: float = 0.1
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1
    embed_dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        audio, vision = (batch.streams[name] for name in self.streams)
        there = jnp.any(audio.mask, -1)
        heard = self._listen(extend(audio, self.steps, 'cfn_sr').x, there, batch.present, train)
        mask = jnp.broadcast_to(there[:, None], heard.shape[:2])
        encoder = Encoder(self.heads, self.layers, self.attention_dropout, self.relu_dropout, self.residual_dropout,
                          self.embed_dropout, name='encoder')
        last = encoder(heard, mask, train=train, last=True)[:, 0]

        regions = jnp.where(vision.mask[..., None], vision.x, 0)
        regions = regions.reshape(*vision.mask.shape, self.regions, -1)
        found = self._compare(regions, vision.mask & batch.present[:, None], last)
        reinforced = regions * found[..., None] + regions
        slices = jnp.maximum(jnp.sum(vision.mask, 1), 1)[:, None]
        pooled = jnp.sum(reinforced, (1, 2)) / (self.regions * slices)

        heard = jnp.where(there[:, None, None], heard, 0)
        flat: Array = heard.swapaxes(1, 2).reshape(len(heard), -1)       # channel after channel
        flat = Dropout(self.audio_dropout, name='dropout_audio')(flat, train=train)
        logits = Dense(self.classes, name='head')(jnp.concatenate([pooled, flat], -1))
        return Output(logits, {'audio': heard, 'pooled': pooled, 'attention': found, 'reinforced': reinforced})

    def _listen(
        self, x: Float[Array, 'b t d'], there: Bool[Array, 'b'], present: Bool[Array, 'b'], train: bool
    ) -> Float[Array, 'b s e']:
        """Three convolutions, each with ReLU and normalised, pooled by the maximum behind the second."""
        for k, (width, size) in enumerate(zip(self.widths, (7, 7, 5), strict=True), 1):
            everywhere = jnp.ones(x.shape[:2], bool)
            x = nn.relu(Dense(width, name=f'conv_{k}')(windows(x, everywhere, size, before=2, after=2)))
            if k == 2:
                count = x.shape[1] // POOL
                x = jnp.max(x[:, :count * POOL].reshape(len(x), count, POOL, width), 2)
            mask = jnp.broadcast_to((there & present)[:, None], x.shape[:2])
            x = BatchNorm(name=f'norm_{k}')(x, mask, train=train)
            if k == 2:
                x = Dropout(self.dropout, name='dropout')(x, train=train)
        return x

    def _compare(
        self, regions: Float[Array, 'b t r d'], mask: Bool[Array, 'b t'], audio: Float[Array, 'b e']
    ) -> Float[Array, '#b t r']:
        """How much each region of a slice matters to the audio: adds up to 1 in a slice, 0 in an absent one."""
        wanted = Dense(self.attention, use_bias=False, name='compare_audio')(audio)
        seen = Dense(self.attention, name='compare_vision')(regions)
        score = Dense(1, use_bias=False, name='compare')(jnp.tanh(seen + wanted[:, None, None]))[..., 0]
        weights = jnp.where(mask[..., None], nn.softmax(score), 0)
        return total(jnp.sum(weights, 0, keepdims=True)) if self.batch_attention else weights

    def _check(self) -> None:
        if len(self.streams) != 2 or len(self.widths) != 3:
            raise ValueError(f'cfn_sr: found streams {self.streams} and widths {self.widths}, '
                             'expected two streams and three widths')
        if self.steps < POOL + 4:
            raise ValueError(f'cfn_sr: steps: found {self.steps}, expected {POOL + 4} or more')


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from skeletonNN/CFN-SR: `audio` (MFCCNet), `block` (the attention) and `fc`."""
    require_streams('cfn_sr', model.streams, 2)
    reader, params, statistics = Reader(state, 'cfn_sr'), {}, {}
    # Stored and not used, or without effect: a bias in front of a softmax.
    reader.skip('audio.fc1.*', 'block.attn_weight_affine.bias')
    inputs = reader.width('audio.conv1.weight', 1)
    for k, (width, size) in enumerate(zip(model.widths, (7, 7, 5), strict=True), 1):
        params[f'conv_{k}'] = reader.conv1d(f'audio.conv{k}', inputs, width, size)
        params[f'norm_{k}'], statistics[f'norm_{k}'] = reader.batch_norm(f'audio.bn{k}', width)
        inputs = width
    channels, d = reader.width('block.channel_affine.weight', 1), model.widths[-1]
    params['encoder'] = reader.encoder('block.audio_attention', model.layers, d)
    params['compare_vision'] = reader.dense('block.channel_affine', channels, model.attention)
    params['compare_audio'] = reader.dense('block.y_affine', d, model.attention, bias=False)
    params['compare'] = reader.dense('block.attn_weight_affine', model.attention, 1, bias=False)
    entries = d * ((model.steps - 4) // POOL)
    params['head'] = reader.dense('fc', channels and channels + entries, model.classes)
    reader.close()
    return {'params': params, 'batch_stats': statistics}

"""LFMIM: layer-wise fusion with modality independence modelling (Sun et al., ACL 2023).

Text, audio and vision each pass a transformer of their own, vision twice as deep. Beside them runs one over
learned tokens and the steps of all streams: at every level it takes up what the streams' own transformers have
made so far. Each stream and the multimodal tokens are pooled by learned weights of the positions; each stream
has scores of its own (of what it says alone), and all together give the scores of the utterance.

Positions are learned weights, so that a stream has `steps` steps at most: a shorter one is masked behind its
end, a longer one is refused.

Where this differs from the authors' code: absent steps are neither seen nor pooled (theirs fills audio up with
zeros); of an absent stream not even the learned token in front of it is seen; text is not cropped. Stored layers
that the authors do not use are not built.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.attention import attend, visible
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout, seeds
from jmer.layers.mlp import MLP
from jmer.layers.position import positions
from jmer.layers.steps import extend
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Output, Params, Stream, Variables

TAGS = ('deep fusion', 'multi-head attention', 'transformer', 'unaligned', 'missing modality')
UNIMODAL, MULTIMODAL = (32,), (128, 64)


class Model(Checked):
    """The defaults are the authors'. Attributes:
    classes: number of scores.
    streams: what is read; the authors: text, audio, vision.
    steps: the longest sequence of each stream.
    depths: transformer layers of each stream at a level.
    width: of a step, an even multiple of `heads`.
    heads: of attention. layers: levels.
    tokens: learned ones of the multimodal transformer.
    dropout: rate inside the feed-forward networks.
    attention_dropout: of attention weights.
    embed_dropout: of embedded steps.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    steps: tuple[int, ...] = (80, 50, 16)
    depths: tuple[int, ...] = (1, 1, 2)
    width: int = 1024
    heads: int = 16
    layers: int = 4
    tokens: int = 4
    dropout: float = 0.1
    attention_dropout: float = 0.2
    embed_dropout: float = 0.25

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        own = [self._embed_stream(name, batch.streams[name], steps, train)
               for name, steps in zip(self.streams, self.steps, strict=True)]
        learned = self.param('tokens', nn.initializers.normal(0.02), (self.tokens, self.width))
        learned = jnp.broadcast_to(learned[None], (len(batch.present), self.tokens, self.width))
        learned = self._embed(learned, jnp.ones(learned.shape[:2], bool), 'all', train)

        mask = jnp.concatenate([jnp.ones((len(learned), self.tokens), bool), *(s.mask for s in own)], 1)
        share = self.param('share', nn.initializers.normal(1.0), (len(own), 2))
        parts = list(itertools.accumulate([self.tokens, *(s.x.shape[1] for s in own[:-1])]))
        x = jnp.concatenate([learned, *(s.x for s in own)], 1)
        for level in range(self.layers):
            if level:
                first, *old = jnp.split(x, parts, axis=1)
                taken = [share[m, 0] * before + share[m, 1] * s.x
                         for m, (before, s) in enumerate(zip(old, own, strict=True))]
                x = jnp.concatenate([first, *taken], 1)
            own = [self._deepen(name, stream, level, train) for name, stream in zip(self.streams, own, strict=True)]
            x = self._block(f'all_{level}')(x, mask, train=train)

        pooled = [_Mix(name=f'mix_{name}')(*stream) for name, stream in zip(self.streams, own, strict=True)]
        joined = jnp.concatenate([*pooled, _Mix(name='mix_all')(x, mask)], -1)
        alone = {name: MLP((self.width // 2, *UNIMODAL, self.classes), name=f'head_{name}')(v, train=train)
                 for name, v in zip(self.streams, pooled, strict=True)}
        logits = MLP((2 * self.width, *MULTIMODAL, self.classes), name='head')(joined, train=train)
        return Output(logits, {'alone': alone, 'joined': joined})

    def _embed_stream(self, name: str, stream: Stream, steps: int, train: bool) -> Stream:
        """The steps of a stream behind a learned token, which is there if any step is."""
        x, mask = extend(stream, steps, 'lfmim')
        x = Dense(self.width, name=f'project_{name}')(x)
        token = self.param(f'token_{name}', nn.initializers.normal(0.02), (self.width,))
        x = jnp.concatenate([jnp.broadcast_to(token[None, None], (len(x), 1, self.width)), x], 1)
        mask = jnp.concatenate([jnp.any(mask, 1, keepdims=True), mask], 1)
        return Stream(self._embed(x, mask, name, train), mask)

    def _embed(self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], name: str, train: bool):
        x = layer_norm(f'norm_before_{name}')(x * self.width ** 0.5)
        x = Dropout(self.embed_dropout, name=f'dropout_{name}')(x + positions(x), train=train)
        return jnp.where(mask[..., None], layer_norm(f'norm_after_{name}')(x), 0)

    def _deepen(self, name: str, stream: Stream, level: int, train: bool) -> Stream:
        depth, (x, mask) = self.depths[self.streams.index(name)], stream
        for k in range(level * depth, (level + 1) * depth):
            x = self._block(f'{name}_{k}')(x, mask, train=train)
        return Stream(x, mask)

    def _block(self, name: str) -> nn.Module:
        return _Block(self.heads, self.attention_dropout, self.dropout, name=name)

    def _check(self) -> None:
        for field in ('steps', 'depths'):
            if len(getattr(self, field)) != len(self.streams):
                raise ValueError(f'lfmim: {field}: found {getattr(self, field)}, '
                                 f'expected one number for each of {self.streams}')


class _Block(nn.Module):
    """Self-attention and a feed-forward network, each normalised before and after it is added."""

    heads: int
    attention_dropout: float
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], *, train: bool) -> Float[Array, 'b t d']:
        width = x.shape[-1]
        seed = seeds(self.make_rng('dropout')) if train and self.attention_dropout else None
        q, k, v = jnp.split(Dense(3 * width, name='query_key_value')(layer_norm('attention_norm')(x)), 3, axis=-1)
        y = attend(q, k, v, visible(mask, mask, causal=False), heads=self.heads, rate=self.attention_dropout, seed=seed)
        x = x + layer_norm('attention_out_norm')(Dense(width, name='attention_out')(y))
        y = nn.relu(Dense(4 * width, name='expand')(layer_norm('feedforward_norm')(x)))
        y = Dense(width, name='contract')(Dropout(self.dropout, name='dropout')(y, train=train))
        return jnp.where(mask[..., None], x + layer_norm('feedforward_out_norm')(y), 0)


class _Mix(nn.Module):
    """The sum of the normalised steps, weighted by learned numbers, one a position."""

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b d']:
        weights = self.param('weights', nn.initializers.normal(x.shape[-1] ** -0.5), (x.shape[1],))
        x = jnp.where(mask[..., None], layer_norm('norm')(x), 0)
        return jnp.einsum('btd,t->bd', x, weights)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss of the scores and of every stream's own.

    A stream's own target is the one of its name where the batch has it, else that of the utterance.
    """
    common = {name: label for name, label in batch.labels.items() if name not in model.streams}
    terms = {'label': losses.task(out.logits, common)}
    for name, scores in out.aux['alone'].items():
        there = jnp.any(batch.streams[name].mask, -1)
        labels = {name: batch.labels[name]} if name in batch.labels else common
        terms[name] = losses.task(scores, {k: v._replace(mask=v.mask & there) for k, v in labels.items()})
    return terms


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from LFMIMv2 of sunjunaimer/LFMIM (text, audio, vision)."""
    require_streams('lfmim', model.streams, 3)
    reader, d = Reader(state, 'lfmim'), model.width
    reader.skip('proj_?', 'pe_*', 'me', 't2m.*', 'v2m.*', 'fc_vtom.*', 'embed_positions._float_tensor')  # not used
    # theirs: (text old, text new), (vision ...), (audio ...)
    share = reader.take('plus_p', 6).reshape(3, 2)
    params: Params = {'tokens': reader.take('embedding_m', model.tokens, d),
                      'share': jnp.stack([share[0], share[2], share[1]])}
    order = {'m': ('all', model.tokens + sum(model.steps) + 3, model.layers)}
    for m, (name, letter) in enumerate(zip(model.streams, 'tav', strict=True)):
        order[letter] = (name, model.steps[m] + 1, model.layers * model.depths[m])
        params[f'project_{name}'] = reader.dense(f'fc_{letter}dimtr', None, d)
        params[f'token_{name}'] = reader.take(f'embedding_{letter}', d)
        params[f'head_{name}'] = _head(reader, f'mlp_{letter}', (d, d // 2, *UNIMODAL, model.classes))
    params['head'] = _head(reader, 'mlp_m', (4 * d, 2 * d, *MULTIMODAL, model.classes))
    for letter, (name, steps, blocks) in order.items():
        params[f'norm_before_{name}'] = reader.layer_norm(f'ln_prepe_{letter}', d)
        params[f'norm_after_{name}'] = reader.layer_norm(f'ln_pre_{letter}', d)
        params[f'mix_{name}'] = {'weights': reader.take(f'mix_{letter}', steps),
                                 'norm': reader.layer_norm(f'ln_post_{letter}', d)}
        for k in range(blocks):
            params[f'{name}_{k}'] = _block(reader, f'transformer_{letter}.{k}', d)
    # Theirs has vision in front of audio.
    ends = list(itertools.accumulate((model.tokens, model.steps[0] + 1, model.steps[2] + 1)))
    first, text, vision, audio = jnp.split(params['mix_all']['weights'], ends)
    params['mix_all']['weights'] = jnp.concatenate([first, text, audio, vision])
    reader.close()
    return {'params': params}


def _head(reader: Reader, prefix: str, widths: tuple[int, ...]) -> Params:
    return {f'dense_{k}': reader.dense(f'{prefix}.{2 * k}', a, b)
            for k, (a, b) in enumerate(itertools.pairwise(widths))}


def _block(reader: Reader, prefix: str, d: int) -> Params:
    return {
        'query_key_value': {'kernel': reader.take(f'{prefix}.attn.in_proj_weight', 3 * d, d).T,
                            'bias': reader.take(f'{prefix}.attn.in_proj_bias', 3 * d)},
        'attention_out': reader.dense(f'{prefix}.attn.out_proj', d, d),
        'attention_norm': reader.layer_norm(f'{prefix}.ln_1', d),
        'attention_out_norm': reader.layer_norm(f'{prefix}.ln_12', d),
        'expand': reader.dense(f'{prefix}.mlp.c_fc', d, 4 * d),
        'contract': reader.dense(f'{prefix}.mlp.c_proj', 4 * d, d),
        'feedforward_norm': reader.layer_norm(f'{prefix}.ln_2', d),
        'feedforward_out_norm': reader.layer_norm(f'{prefix}.ln_22', d),
    }

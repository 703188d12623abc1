"""SDUMC: self-distillation with unified modality cross-attention (Weng et al., 2024).

Each stream is pooled over time; the three vectors, and sums of two and of three of them, are seven queries
to the steps of every stream. What they read is weighed over streams and over queries. Where text is
missing, a substitute takes its place, such as features of a language model that listens to the audio; in
training both passes are made, with the same weights, and the one without text learns from the other.

Where this differs from the authors' code: padding is masked, and a stream may be missing altogether.
Networks that they build and never call are not built, nor is a bias that cancels in the contrastive loss,
which looks at differences only. As in theirs the weights of streams and queries are not distributions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.graph import softmax
from jmer.layers.steps import fit
from jmer.types import Array, Batch, Label, Output, Stream, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'joint representation', 'distillation', 'contrastive',
        'missing modality')

QUERIES = ('fused', 'at', 'tv', 'av', 'audio', 'text', 'video')
SHARPNESS = 0.3
"""What attention scores are multiplied by."""


class Pass(NamedTuple):
    """What one pass makes of a batch.

    logits [b c]; fused [b q]: what they are read from; contrast [b e]: fused, as the contrastive loss sees
    it; query [b g]: the text as a query; read [b 7 q]: what the queries read of the text.
    """

    logits: Float[Array, 'b c']
    fused: Float[Array, 'b q']
    contrast: Float[Array, 'b e']
    query: Float[Array, 'b g']
    read: Float[Array, 'b n q']


class Model(Checked):
    """The defaults are those of the authors' command. Attributes:
    classes: number of scores.
    streams: audio, text and vision, in this order.
    substitute: the stream that stands in for missing text, as wide as the text; a batch may lack it.
    width: of steps and queries.
    hidden: widths of the networks behind the cross-attention.
    contrast: width of what the contrastive loss sees.
    full_weight, missing_weight: of the squared errors with text and with the substitute.
    text_weight, query_weight, feature_weight: of the distances of both passes, in the text as a query, in
        what is read of the text, and in the fused vector.
    contrast_weight: of the contrastive loss.
    step_dropout, dropout: of the steps that are attended to and of what they give; after dense layers.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text', 'vision')
    substitute: str = 'substitute'
    width: int = 256
    hidden: tuple[int, int] = (256, 128)
    contrast: int = 64
    full_weight: float = 0.5
    missing_weight: float = 0.5
    text_weight: float = 0.0
    query_weight: float = 0.0
    feature_weight: float = 0.13
    contrast_weight: float = 0.5
    step_dropout: float = 0.5
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.streams) != 3:
            raise ValueError(f'sdumc: streams: found {self.streams}, expected three: audio, text and vision')
        audio, text, vision = (batch.streams[name] for name in self.streams)
        fusion = Fusion(self.classes, self.width, self.hidden, self.contrast, self.step_dropout, self.dropout,
                        name='fusion')
        if self.substitute not in batch.streams:
            full = fusion(audio, (text,), vision, train=train)
            return Output(full.logits, {'full': full, 'missing': None})
        both = fusion(audio, (text, batch.streams[self.substitute]), vision, train=train)
        full, missing = (Pass(*(part[k] for part in (jnp.split(x, 2) for x in both))) for k in (0, 1))
        heard = jnp.any(text.mask, -1, keepdims=True)
        return Output(jnp.where(heard, full.logits, missing.logits), {'full': full, 'missing': missing})


class Fusion(nn.Module):
    """One pass for each text, one behind the other in the results. Attributes: as those of `Model`."""

    classes: int
    width: int
    hidden: tuple[int, int]
    contrast: int
    step_dropout: float
    dropout: float

    @nn.compact
    def __call__(self, audio: Stream, texts: tuple[Stream, ...], video: Stream, *, train: bool) -> Pass:
        def dense(x, widths, name):
            """Dense layers with ReLU and dropout after every one."""
            for k, width in enumerate(widths):
                x = nn.relu(Dense(width, name=f'{name}_{k}')(x))
                x = Dropout(self.dropout, name=f'dropout_{name}_{k}')(x, train=train)
            return x

        names, g = ('audio', 'text', 'video'), self.width
        steps, vectors = {}, {}
        for name, given in zip(names, ((audio,), texts, (video,)), strict=True):
            project, longest = Dense(g, name=f'steps_{name}'), max(stream.x.shape[1] for stream in given)
            projected = [(project(x), mask) for x, mask in (fit(stream, longest) for stream in given)]
            # What is no text, once for every text.
            x, mask = (jnp.concatenate(parts * (len(texts) // len(given))) for parts in zip(*projected, strict=True))
            steps[name] = x, mask
            pooled = Pool(self.step_dropout, name=f'pool_{name}')(x, mask, train=train)
            vectors[name] = dense(pooled, (g, g), f'vector_{name}')
        joined = dense(jnp.concatenate(list(vectors.values()), -1), (g, g), 'joined')
        weights = dict(zip(names, jnp.split(Dense(3, name='weights')(joined), 3, -1), strict=True))

        a, t, v = (weights[name] * vectors[name] for name in names)
        given = (a + t + v, a + t, t + v, a + v, *vectors.values())
        queries = {name: dense(x, (g,), f'query_{name}') for name, x in zip(QUERIES, given, strict=True)}
        asked, read = jnp.stack(list(queries.values()), 1), {}
        for name in names:
            got = Cross(self.step_dropout, name=f'cross_{name}')(asked, *steps[name], train=train)
            read[name] = dense(got, self.hidden, f'read_{name}')
        crossed = jnp.stack([weights[name][:, None] * read[name] for name in names]).sum(0)
        share = Dense(len(QUERIES), name='shares')(
            dense(crossed.reshape(len(crossed), -1), self.hidden, 'crossed'))
        fused = jnp.einsum('bn,bnq->bq', share, crossed)
        logits = Dense(self.classes, name='head')(fused)
        contrast = Dense(self.contrast, name='contrast_0')(fused)
        contrast = Dense(self.contrast, use_bias=False, name='contrast_1')(nn.relu(contrast))
        return Pass(logits, fused, contrast, queries['text'], read['text'])


class Pool(nn.Module):
    """Attention pooling over time: steps near a learned vector count more. dropout: of steps and result."""

    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], *, train: bool) -> Float[Array, 'b d']:
        x = Dropout(self.dropout, name='dropout_in')(x, train=train)
        context = self.param('context', nn.initializers.normal(0.1), (x.shape[-1],))
        scores = jnp.einsum('btd,d->bt', jnp.tanh(Dense(x.shape[-1], name='keys')(x)), context)
        pooled = jnp.einsum('bt,btd->bd', softmax(SHARPNESS * scores, mask), x)
        return Dropout(self.dropout, name='dropout_out')(pooled, train=train)


class Cross(nn.Module):
    """Attention of several queries to the steps of a stream. dropout: of steps and result."""

    dropout: float

    @nn.compact
    def __call__(
        self, queries: Float[Array, 'b n d'], x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], *, train: bool
    ) -> Float[Array, 'b n d']:
        x = Dropout(self.dropout, name='dropout_in')(x, train=train)
        keys = jnp.tanh(Dense(x.shape[-1], name='keys')(x))
        scores = SHARPNESS * jnp.einsum('bnd,btd->bnt', Dense(x.shape[-1], name='queries')(queries), keys)
        weights = softmax(scores, jnp.broadcast_to(mask[:, None], scores.shape))
        return Dropout(self.dropout, name='dropout_out')(jnp.einsum('bnt,btd->bnd', weights, x), train=train)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """Squared error (of real values) and contrast of both passes, and how far one is from the other, weighted."""
    full, missing, label = out.aux['full'], out.aux['missing'], losses.target(batch.labels)
    terms = {'full': losses.task(full.logits, batch.labels, losses.mse)}
    contrast, both = full.contrast, label
    if missing is not None:
        there = batch.present & jnp.any(batch.streams[model.substitute].mask, -1)
        twin = Label(label.value, label.mask & there)
        taught = there & jnp.any(batch.streams[model.streams[1]].mask, -1)
        still = jax.lax.stop_gradient
        terms |= {
            'missing': losses.task(missing.logits, {'label': twin}, losses.mse),
            'text': _root_mean_square(missing.query - still(full.query), taught),
            'query': _root_mean_square(missing.read - still(full.read), taught),
            'feature': _root_mean_square(missing.fused - full.fused, taught),
        }
        contrast = jnp.concatenate([contrast, missing.contrast])
        both = jax.tree.map(lambda *rows: jnp.concatenate(rows), label, twin)
    terms['contrast'] = losses.rank_n_contrast(contrast, both, slack=1e-4)
    weights = {name: getattr(model, f'{name}_weight') for name in terms}
    return losses.weighted(terms, **weights)


def _root_mean_square(x: Float[Array, 'b *d'], mask: Bool[Array, 'b']) -> losses.Term:
    squares = jnp.where(mask, jnp.square(x).reshape(len(x), -1).mean(-1), 0)
    mean = squares.sum() / jnp.maximum(mask.sum(), 1)
    return losses.coupled(jnp.where(mean > 0, jnp.sqrt(jnp.where(mean > 0, mean, 1)), 0), mask)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of WarmCongee/SDUMC."""
    require_streams('sdumc', model.streams, 3)
    reader, g = Reader(state, 'sdumc'), model.width
    p, q = model.hidden
    reader.skip('fc_out_e.*', 'fc_out_ev.*', 'prelu.*', 'layer_normali.*', 'missing_*')     # never called
    params = {'weights': reader.dense('fc_att', g, 3), 'shares': reader.dense('cross_fc_att', q, len(QUERIES)),
              'head': reader.dense('fc_out_v', q, model.classes)}
    for i, name in enumerate(('audio', 'text', 'video')):
        params[f'steps_{name}'] = reader.dense(f'frame_dim_reshape_{i}', None, g)
        params[f'pool_{name}'] = {'keys': reader.dense(f'fra2utt_{i}.input_proj', g, g),
                                  'context': reader.take(f'fra2utt_{i}.attention_context_vector', 1, g)[0]}
        params[f'cross_{name}'] = {'keys': reader.dense(f'cross_att_fra2utt_{i}.input_proj', g, g),
                                   'queries': reader.dense(f'cross_att_fra2utt_{i}.query_proj', g, g)}
        params |= _chain(reader, f'{name}_mlp', f'vector_{name}', (g, g, g))
        params |= _chain(reader, f'cross_{name}_mlp', f'read_{name}', (g, p, q))
    params |= _chain(reader, 'attention_mlp', 'joined', (3 * g, g, g))
    params |= _chain(reader, 'cross_attention_mlp', 'crossed', (len(QUERIES) * q, p, q))
    for name in QUERIES:
        params |= _chain(reader, f'cross_{name}_query_mlp', f'query_{name}', (g, g))
    params['contrast_0'] = reader.dense('orgin_linear_change.0', q, model.contrast)
    params['contrast_1'] = reader.dense('orgin_linear_change.2', model.contrast, model.contrast)
    del params['contrast_1']['bias']
    reader.close()
    return {'params': {'fusion': params}}


def _chain(reader: Reader, prefix: str, name: str, widths: tuple[int, ...]) -> dict[str, Any]:
    return {f'{name}_{k}': reader.dense(f'{prefix}.{3 * k}', widths[k], widths[k + 1])
            for k in range(len(widths) - 1)}

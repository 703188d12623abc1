"""TAILOR: tailored multimodal representations for multi-label emotions (Zhang et al., AAAI 2022, arXiv:2201.05834).

An encoder of its own reads each stream. What it finds is split by two layers, one of the stream's own and one
that all streams share, into private and common features. Private ones are joined step by step, audio to
vision, text to both, and the sum of the common ones last. A decoder with one query for each label reads them,
and each label is scored by what its query has found.

Besides the task, training lets a discriminator tell the streams of private features and fail on common ones,
makes both orthogonal, and scores the common features of the first step. The adversary works by a reversed
gradient, so that one step of training is one loss: there are no stages.

Where this differs from the authors' code: padding and absent streams are masked everywhere; theirs reads the
padded steps of the common features and counts them in the losses (`read_padding`). The streams must be aligned
step by step; the authors' alignment of others by CTC is not part of this file. Scores are logits, of which
they take those above a probability of 0.35, after a dropout that stands behind the last layer.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.adversarial import reverse_gradient
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.steps import extend, fit
from jmer.layers.transformer import Attention, PostNormLayer, layer_norm
from jmer.types import Array, Batch, Label, Output, Params, Stream, Variables

TAGS = ('deep fusion', 'coordinated representation', 'cross-modality attention', 'transformer', 'adversarial',
        'missing modality')
LABELS = ('class', 'multilabel')
EPSILON = 1e-12     # of every layer norm, as in BERT


class Model(Checked):
    """The defaults are the authors' for CMU-MOSEI. Attributes:
    classes: number of labels.
    streams: three that are aligned; the authors' order is text, vision, audio.
    steps: the longest sequence that there are positions for.
    width: of a step, a multiple of `heads`. hidden: width inside the feed-forward networks.
    layers: of the encoder of each stream. join_layers: of each encoder that joins two sequences.
    decoder_layers: of the decoder.
    common_weight, adversarial_weight, orthogonality_weight: of the losses besides the task's.
    dropout: in encoders and decoder. private_dropout, common_dropout: of the two kinds of features.
    score_dropout: of the scores, and in the discriminator.
    read_padding: as the authors' code does.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'vision', 'audio')
    steps: int = 60
    width: int = 256
    heads: int = 8
    hidden: int = 256
    layers: tuple[int, ...] = (6, 4, 4)
    join_layers: int = 3
    decoder_layers: int = 1
    common_weight: float = 0.5
    adversarial_weight: float = 0.01
    orthogonality_weight: float = 5e-6
    dropout: float = 0.3
    private_dropout: float = 0.1
    common_dropout: float = 0.3
    score_dropout: float = 0.1
    read_padding: bool = False

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.streams) != 3 or len(self.layers) != 3:
            raise ValueError(f'tailor: found streams {self.streams} and layers {self.layers}, expected three of each')
        share = Dense(self.width, name='common')
        private, common = [], []
        for stream, name, layers in zip(self._aligned(batch), self.streams, self.layers, strict=True):
            x = layer_norm(f'norm_{name}', EPSILON)(stream.x)
            x = Dense(self.width, name=f'embed_{name}')(x)
            x, mask = self._encoder((1,), layers, f'encode_{name}')([Stream(x, stream.mask)], train=train)
            own = Dense(self.width, name=f'private_{name}')(x)
            private.append(self._squash(own, mask, self.private_dropout, f'dropout_private_{name}', train))
            common.append(self._squash(share(x), mask, self.common_dropout, f'dropout_common_{name}', train))

        total = self._sum(common)
        text, vision, audio = private
        joined = self._encoder((1, 1), self.join_layers, 'join_others')([audio, vision], train=train)
        joined = self._encoder((1, 2), self.join_layers, 'join_text')([text, joined], train=train)
        joined = self._encoder((3, 1), self.join_layers, 'join_common')([joined, total], train=train)
        found = _Decoder(self.classes, self.heads, self.hidden, self.decoder_layers, self.dropout, name='decoder')(
            joined, train=train)
        drop = Dropout(self.score_dropout, name='dropout_scores')
        scores = drop(Dense(1, name='scores')(found)[..., 0], train=train)
        common_scores = drop(Dense(self.classes, name='scores_common')(total.x[:, 0]), train=train)
        return Output(scores, {'private': private, 'common': common, 'common_scores': common_scores,
                               'told': self._tell(private, common, train)})

    def _aligned(self, batch: Batch) -> list[Stream]:
        """The streams, as long as the longest; absent steps are zero unless they are read."""
        steps = max(batch.streams[name].x.shape[1] for name in self.streams)
        found = []
        for name in self.streams:
            stream = batch.streams[name]
            fitted = fit(extend(stream, self.steps, 'tailor'), steps)
            x = fit(stream._replace(mask=jnp.ones_like(stream.mask)), steps).x if self.read_padding else fitted.x
            found.append(Stream(x, fitted.mask))
        return found

    def _encoder(self, parts: tuple[int, ...], layers: int, name: str) -> '_Encoder':
        return _Encoder(parts, self.steps, self.heads, self.hidden, layers, self.dropout, self.read_padding, name=name)

    def _squash(
        self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], rate: float, name: str, train: bool
    ) -> Stream:
        x = jnp.tanh(Dropout(rate, name=name)(x, train=train))
        return Stream(x if self.read_padding else jnp.where(mask[..., None], x, 0), mask)

    def _sum(self, common: Sequence[Stream]) -> Stream:
        """The common features of all streams; a step is there if any stream is."""
        x = jnp.sum(jnp.stack([stream.x for stream in common]), 0)
        mask = jnp.any(jnp.stack([stream.mask for stream in common]), 0)
        return Stream(x, jnp.ones_like(mask) if self.read_padding else mask)

    def _tell(
        self, private: Sequence[Stream], common: Sequence[Stream], train: bool
    ) -> list[tuple[Float[Array, 'b t 3'], Float[Array, 'b t 3']]]:
        """Scores of the stream that private, and common, features come from."""
        first, last = Dense(self.width // 2, name='discriminator_1'), Dense(3, name='discriminator_2')
        drop = Dropout(self.score_dropout, name='dropout_discriminator')

        def tell(x):
            return last(nn.relu(drop(first(x), train=train)))

        return [(tell(own.x), tell(reverse_gradient(shared.x)))
                for own, shared in zip(private, common, strict=True)]


class _Encoder(nn.Module):
    """Positions, kinds and layers over sequences behind each other.

    Each of `parts` is of one kind and consists of so many sequences of up to `steps` steps; positions of a
    sequence begin where those of the one before could end, however long it is.
    """

    parts: tuple[int, ...]
    steps: int
    heads: int
    hidden: int
    layers: int
    dropout: float
    read_padding: bool

    @nn.compact
    def __call__(self, inputs: Sequence[Stream], *, train: bool) -> Stream:
        x: Array = jnp.concatenate([stream.x for stream in inputs], 1)
        mask: Array = jnp.concatenate([stream.mask for stream in inputs], 1)
        sequences, width, normal = sum(self.parts), x.shape[-1], nn.initializers.normal(0.02)
        places = self.param('positions', normal, (sequences, self.steps, width))[:, :x.shape[1] // sequences]
        if len(self.parts) > 1:
            kinds = self.param('kinds', normal, (len(self.parts), width))
            places = places + kinds[np.repeat(np.arange(len(self.parts)), self.parts)][:, None]
        x = layer_norm('norm', EPSILON)(x + places.reshape(1, -1, width))
        x = Dropout(self.dropout, name='dropout')(x, train=train)
        queries = jnp.ones_like(mask) if self.read_padding else mask
        for k in range(self.layers):
            x = PostNormLayer(self.heads, self.hidden, 'gelu', EPSILON, self.dropout, name=f'layer_{k}')(
                x, queries, x, mask, train=train)
        return Stream(x, mask)


class _Decoder(nn.Module):
    """One vector a label, which looks at the other labels' and at what was read."""

    labels: int
    heads: int
    hidden: int
    layers: int
    dropout: float

    @nn.compact
    def __call__(self, read: Stream, *, train: bool) -> Float[Array, 'b c d']:
        width = read.x.shape[-1]
        labels = self.param('labels', nn.initializers.normal(0.02), (self.labels, width))
        x: Array = jnp.broadcast_to(layer_norm('norm', EPSILON)(labels)[None], (len(read.x), self.labels, width))
        x = Dropout(self.dropout, name='dropout')(x, train=train)
        everyone = jnp.ones(x.shape[:2], bool)
        for k in range(self.layers):
            seen = jnp.ones((len(x), self.labels, self.labels), bool)
            y: Array = Attention(self.heads, self.dropout, name=f'labels_{k}')(x, x, seen, train=train)
            y = Dropout(self.dropout, name=f'dropout_{k}')(y, train=train)
            x = layer_norm(f'norm_{k}', EPSILON)(x + y)
            x = PostNormLayer(self.heads, self.hidden, 'gelu', EPSILON, self.dropout, name=f'layer_{k}')(
                x, everyone, *read, train=train)
        return x


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss of both scores (binary cross entropy of several labels), the adversary's, orthogonality."""
    terms = {'label': losses.task(out.logits, batch.labels, losses.binary_cross_entropy),
             'common': losses.task(out.aux['common_scores'], batch.labels, losses.binary_cross_entropy)}
    private, common = out.aux['private'], out.aux['common']
    for k, (name, told) in enumerate(zip(model.streams, out.aux['told'], strict=True)):
        mask = jnp.ones_like(private[k].mask) if model.read_padding else private[k].mask
        truth = Label(jnp.full(mask.shape, k, jnp.int32), mask & batch.present[:, None])
        own, shared = (losses.cross_entropy(scores, truth) for scores in told)
        terms[f'adversarial_{name}'] = losses.Term(model.adversarial_weight * (own.value + shared.value), own.weight)

    pairs = [*itertools.combinations(private, 2), *zip(private, common, strict=True)]
    alike = jnp.sum(jnp.stack([_alike(a.x, b.x) for a, b in pairs]), 0)
    terms['orthogonality'] = losses.Term(jnp.where(batch.present, model.orthogonality_weight * alike, 0),
                                         jnp.asarray(batch.present, jnp.float32))
    return losses.weighted(terms, common=model.common_weight)


def _alike(x: Float[Array, 'b t d'], y: Float[Array, 'b s d']) -> Float[Array, 'b']:
    """The sum of the squared products of every step of x with every step of y."""
    return jnp.sum(jnp.square(jnp.einsum('btd,bsd->bts', x, y)), (1, 2))


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of kniter1/TAILOR (text, vision, audio), aligned; of positions, the first."""
    require_streams('tailor', model.streams, 3)
    reader, d = Reader(state, 'tailor'), model.width
    reader.skip('*.pooler.dense.*')     # computed and not used
    params: Params = {'common': reader.dense('common_feature_extractor.0', d, d),
                      'scores_common': reader.dense('common_classfier.0', d, model.classes),
                      'scores': reader.dense('cross_classifier.dense', d, 1),
                      'discriminator_1': reader.dense('modal_discriminator.0', d, d // 2),
                      'discriminator_2': reader.dense('modal_discriminator.3', d // 2, 3),
                      'decoder': _decoder(reader, model)}
    for k, (name, theirs, layers) in enumerate(zip(model.streams, ('text', 'visual', 'audio'), model.layers,
                                                   strict=True)):
        encoder = theirs if k else 'bert'
        inputs = reader.width(f'{encoder}.embeddings.word_embeddings.weight', 1)
        params[f'norm_{name}'] = reader.layer_norm(f'{theirs}_norm.{theirs}_norm2d', inputs)
        params[f'embed_{name}'] = reader.dense(f'{encoder}.embeddings.word_embeddings', inputs, d)
        params[f'encode_{name}'] = _encoder(reader, encoder, (1,), layers, model)
        params[f'private_{name}'] = reader.dense(f'private_feature_extractor.{k}.0', d, d)
    for ours, theirs, parts in (('others', 'va', (1, 1)), ('text', 'vat', (1, 2)), ('common', 'pc', (3, 1))):
        params[f'join_{ours}'] = _encoder(reader, f'{theirs}_cross', parts, model.join_layers, model)
    reader.close()
    return {'params': params}


def _encoder(reader: Reader, prefix: str, parts: tuple[int, ...], layers: int, model: Model) -> Params:
    d, key = model.width, f'{prefix}.embeddings.position_embeddings.weight'
    rows = sum(parts) * model.steps
    places = reader.take(key, max(rows, reader.width(key, 0) or 0), d)     # too few are reported as misshapen
    params = {'positions': places[:rows].reshape(sum(parts), model.steps, d),
              'norm': reader.layer_norm(f'{prefix}.embeddings.LayerNorm', d)}
    if len(parts) > 1:
        params['kinds'] = reader.take(f'{prefix}.embeddings.token_type_embeddings.weight', 2, d)
    return params | {f'layer_{k}': reader.bert_layer(f'{prefix}.encoder.layer.{k}', d, model.hidden)
                     for k in range(layers)}


def _decoder(reader: Reader, model: Model) -> Params:
    d, prefix = model.width, 'decoder.embeddings'
    params = {'labels': reader.take(f'{prefix}.word_embeddings.weight', model.classes, d),
              'norm': reader.layer_norm(f'{prefix}.LayerNorm', d)}
    for k in range(model.decoder_layers):
        layer = f'decoder.decoder.layer.{k}'
        params[f'labels_{k}'] = _attention(reader, f'{layer}.slf_attn', d)
        params[f'norm_{k}'] = reader.layer_norm(f'{layer}.slf_attn.output.LayerNorm', d)
        params[f'layer_{k}'] = _attention(reader, f'{layer}.enc_attn', d) | {
            'attention_norm': reader.layer_norm(f'{layer}.enc_attn.output.LayerNorm', d),
            'expand': reader.dense(f'{layer}.intermediate.dense', d, model.hidden),
            'contract': reader.dense(f'{layer}.output.dense', model.hidden, d),
            'feedforward_norm': reader.layer_norm(f'{layer}.output.LayerNorm', d),
        }
    return params


def _attention(reader: Reader, prefix: str, width: int) -> Params:
    key, value = (reader.dense(f'{prefix}.att.{name}', width, width) for name in ('key', 'value'))
    return {'query': reader.dense(f'{prefix}.att.query', width, width),
            'key_value': {part: jnp.concatenate([key[part], value[part]], -1) for part in ('kernel', 'bias')},
            'attention_out': reader.dense(f'{prefix}.output.dense', width, width)}

"""MMER: multimodal multi-task learning for speech emotion recognition (Ghosh et al., Interspeech 2023).

Over features of RoBERTa and wav2vec 2.0: a transformer layer reads text; text reads audio; audio reads text and
text reads that; a gate says how much of the first counts beside the second. The maxima over time of audio as it
came and of what text has gathered are scored. Besides the task, audio is to tell the transcript (CTC), and
vectors of utterances of one class, or of one utterance and a changed copy of it, are to be alike.

A batch may bring, for training, the streams 'transcript' (one feature: the number of a letter, from 1 on; with
`vocabulary`) and, of each of the two streams, one with '_augmented' behind its name (with `augmented`).

Where this differs from the authors' code: streams of another width than `width` are projected where they are
read; losses are means over a batch, where theirs sums CTC over it; an absent stream has no part in attention
and counts as zeros in the scores.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.activation import gelu
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import pool
from jmer.layers.transformer import PostNormLayer
from jmer.types import Array, Batch, Label, Output, Params, Stream, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'transformer', 'gated', 'contrastive', 'unaligned',
        'missing modality')


class Model(Checked):
    """The defaults are the authors'. Attributes:
    classes: number of scores.
    streams: text, then audio.
    width: of a step of text, a multiple of `heads`.
    heads: of attention. hidden: width inside the feed-forward networks.
    vocabulary: letters of a transcript and one for none; 0 for no CTC.
    augmented: whether training batches bring changed copies.
    ctc_weight, contrast_weight: of the losses besides the task's.
    temperature: of the contrastive losses.
    dropout: rate in the transformer layers, of text, and of audio in front of CTC.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio')
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    vocabulary: int = 0
    augmented: bool = False
    ctc_weight: float = 0.1
    contrast_weight: float = 0.1
    temperature: float = 0.07
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.streams) != 2:
            raise ValueError(f'mmer: streams: found {self.streams}, expected two')
        text, audio = (batch.streams[name] for name in self.streams)
        fuse = _Fusion(self.width, self.heads, self.hidden, self.dropout, name='fusion')
        fused = fuse(text, audio, train=train)
        aux = {'fused': fused, 'contrast': self._contrast(fused, 'contrast')}
        if self.augmented:
            names = [f'{name}_augmented' for name in self.streams]
            there = all(name in batch.streams for name in names)
            copy = fuse(*(batch.streams[name] for name in names), train=train) if there else fused
            aux['contrast_augmented'] = self._contrast(copy, 'contrast_augmented')
        if self.vocabulary:
            x = Dropout(self.dropout, name='dropout_ctc')(
                jnp.where(audio.mask[..., None], audio.x, 0), train=train)
            aux['letters'] = Dense(self.vocabulary, name='letters')(x)
        return Output(Dense(self.classes, name='head')(fused), aux)

    def _contrast(self, x: Float[Array, 'b d'], name: str) -> Float[Array, 'b e']:
        x = gelu(Dense(self.width, name=f'{name}_1')(x))
        return Dense(self.width, name=f'{name}_2')(x)


class _Fusion(nn.Module):
    """The maxima over time of audio, and of what text has gathered, side by side."""

    width: int
    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, text: Stream, audio: Stream, *, train: bool) -> Float[Array, 'b d']:
        def attend(name, x, mask, *source):
            layer = PostNormLayer(self.heads, self.hidden, 'gelu', 1e-12, self.dropout, name=name)
            return layer(x, mask, *source, train=train)

        words: Array
        words, heard = (jnp.where(s.mask[..., None], s.x, 0) for s in (text, audio))
        if words.shape[-1] != self.width:
            words = Dense(self.width, name='project_text')(words)
        words = Dropout(self.dropout, name='dropout_text')(words, train=train)
        words = attend('read_text', words, text.mask)
        first, second = (Dense(self.width, name=f'project_audio_{k}')(heard) for k in (1, 2))

        direct = attend('text_from_audio', words, text.mask, first, audio.mask)
        seen = attend('audio_from_text', second, audio.mask, words, text.mask)
        through = attend('text_from_seen', words, text.mask, seen, audio.mask)
        gate = nn.sigmoid(Dense(self.width, name='gate')(jnp.concatenate([through, direct], -1)))
        merged = pool(jnp.concatenate([through, gate * direct], -1), text.mask, 'max')
        merged = Dense(self.width, name='merge')(merged)
        return jnp.concatenate([pool(heard, audio.mask, 'max'), merged], -1)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss and, as far as the batch has what they need, CTC and the two contrasts, weighted."""
    terms = {'label': losses.task(out.logits, batch.labels)}
    label, = batch.labels.values()
    if jnp.issubdtype(jnp.result_type(label.value), jnp.integer):
        value = _same_class(out.aux['contrast'], label, model.temperature)
        terms['contrast'] = losses.coupled(model.contrast_weight * value, label.mask)
    names = [f'{name}_augmented' for name in model.streams]
    if 'contrast_augmented' in out.aux and all(name in batch.streams for name in names):
        terms['contrast_augmented'] = _copies(out, batch.present, model)
    if 'letters' in out.aux and 'transcript' in batch.streams:
        terms['ctc'] = _transcript(out, batch, model)
    return terms


def _same_class(x: Float[Array, 'b d'], label: Label, temperature: float) -> Float[Array, '']:
    """-log of the share that an item of the same class has in a softmax of products, the mean over all such
    pairs, an item with itself among them; the authors divide by the temperature behind the logarithm."""
    mask = jnp.asarray(label.mask)
    x = jnp.where(mask[:, None], x, 0)
    scores = nn.log_softmax(jnp.where(mask[None], x @ x.T, -1e30))
    pairs = mask[:, None] & mask[None] & (label.value[:, None] == label.value[None])
    return -jnp.sum(jnp.where(pairs, scores, 0)) / temperature / jnp.maximum(jnp.sum(pairs), 1)


def _copies(out: Output, present: Bool[Array, 'b'], model: Model) -> losses.Term:
    """Cross entropy of which changed copy belongs to each utterance."""
    x, y = (jnp.where(present[:, None], out.aux[name], 0) for name in ('contrast', 'contrast_augmented'))
    scores = jnp.where(present[None], x @ y.T / model.temperature, -1e30)
    term = losses.cross_entropy(scores, Label(jnp.arange(len(x), dtype=jnp.int32), present))
    return term._replace(value=model.contrast_weight * term.value)


def _transcript(out: Output, batch: Batch, model: Model) -> losses.Term:
    """CTC of the letters; an utterance without audio or transcript has none."""
    letters, audio = batch.streams['transcript'], batch.streams[model.streams[1]]
    there = jnp.any(letters.mask, -1) & jnp.any(audio.mask, -1) & batch.present
    numbers = jnp.where(letters.mask, letters.x[..., 0], 0).astype(jnp.int32)
    value = losses.ctc(out.aux['letters'], audio.mask, numbers, letters.mask)
    return losses.Term(jnp.where(there, model.ctc_weight * value, 0), there.astype(value.dtype))


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of Sreyan88/MMER (FuseModel), whose encoders are kept apart."""
    require_streams('mmer', model.streams, 2)
    reader, d = Reader(state, 'mmer'), model.width
    reader.skip('model_mmi.weights', 'model_mmi.bert.*', 'model_mmi.wav2vec2.*')     # not used, or kept apart
    heard = reader.width('model_mmi.vismap2text.weight', 1)
    joined = heard + d if heard else None
    layers = {'read_text': 'self_attention_v2', 'text_from_audio': 'txt2img_attention',
              'audio_from_text': 'img2txt_attention', 'text_from_seen': 'txt2txt_attention'}
    fusion: Params = {ours: reader.bert_layer(f'model_mmi.{theirs}.layer.0', d, model.hidden)
                      for ours, theirs in layers.items()}
    fusion |= {
        'project_audio_1': reader.dense('model_mmi.vismap2text', heard, d),
        'project_audio_2': reader.dense('model_mmi.vismap2text_v2', heard, d),
        'gate': reader.dense('model_mmi.gate', 2 * d, d),
        'merge': reader.dense('model_mmi.downsample_final', 2 * d, d),
    }
    params = {'fusion': fusion, 'head': reader.dense('model_mmi.classifier.linear3', joined, model.classes)}
    for ours, theirs, wanted in (('contrast', 'orgin', True), ('contrast_augmented', 'augment', model.augmented)):
        if wanted:
            params[f'{ours}_1'] = reader.dense(f'{theirs}_linear_change.0', joined, d)
            params[f'{ours}_2'] = reader.dense(f'{theirs}_linear_change.2', d, d)
        else:
            reader.skip(f'{theirs}_linear_change.*')
    if model.vocabulary:
        params['letters'] = reader.dense('model_mmi.ctc_linear', heard, model.vocabulary)
    else:
        reader.skip('model_mmi.ctc_linear.*')
    reader.close()
    return {'params': params}

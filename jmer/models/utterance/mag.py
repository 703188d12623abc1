"""MAG-BERT: multimodal adaptation gate inside BERT (Rahman et al., ACL 2020, arXiv:1908.05787).

Behind the embeddings of BERT every word piece is shifted by the audio and vision of its step; how far, a
gate decides. BERT reads the shifted words; its first step, through the pooler, is scored.

Text is either features, with positions added here, or (`vocabulary`) the numbers of word pieces, one feature
a step, with the number of the sentence as an optional second one. The other streams belong to the words step
by step; what they have beyond the last word is not used.

Where this differs from the authors' code: a step at which a stream is absent is not shifted by it (zeros that
are present are, by a bias); an utterance without words has nothing to shift, and the scores of nothing.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.gating import AdaptationGate
from jmer.layers.pooling import pool
from jmer.layers.steps import fit
from jmer.layers.transformer import PostNormLayer, layer_norm
from jmer.types import Array, Batch, Output, Params, Stream, Variables

TAGS = ('deep fusion', 'gated', 'transformer', 'multi-head attention', 'missing modality')


class Model(Checked):
    """The defaults are those of bert-base. Attributes:
    classes: number of scores.
    streams: what is read; the first one is text, which the others shift.
    width: of a word, a multiple of `heads`; text features of another width are projected.
    layers: of BERT. hidden: width inside its feed-forward networks.
    vocabulary: number of word pieces; 0 where text comes as features.
    steps: the longest text that there are positions for.
    types: kinds of sentences.
    beta: how long a shift may be, in lengths of the word.
    dropout: rate in BERT and in front of the scores.
    gate_dropout: rate of the shifted words.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    width: int = 768
    heads: int = 12
    layers: int = 12
    hidden: int = 3072
    vocabulary: int = 0
    steps: int = 512
    types: int = 2
    beta: float = 1.0
    dropout: float = 0.1
    gate_dropout: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        text, *others = (batch.streams[name] for name in self.streams)
        count = text.x.shape[1]
        if count > self.steps:
            raise ValueError(f'mag: text: found {count} steps, expected at most {self.steps} (its field `steps`)')
        embedded = self._embed(text, train)
        fitted = {name: fit(stream, count) for name, stream in zip(self.streams[1:], others, strict=True)}
        fused = AdaptationGate(self.beta, self.gate_dropout, name='gate')(embedded, fitted, train=train)
        x: Array = fused
        for k in range(self.layers):
            x = PostNormLayer(self.heads, self.hidden, 'gelu', 1e-12, self.dropout, name=f'layer_{k}')(
                x, text.mask, train=train)
        first = pool(x[:, ::-1], text.mask[:, ::-1], 'last')
        pooled: Array = jnp.tanh(Dense(self.width, name='pooler')(first))
        pooled = Dropout(self.dropout, name='dropout_head')(pooled, train=train)
        return Output(Dense(self.classes, name='head')(pooled), {'embedded': embedded, 'fused': fused})

    def _embed(self, text: Stream, train: bool) -> Float[Array, 'b t d']:
        there = text.mask[..., None]
        x: Array = jnp.where(there, text.x, 0)
        kind: Array = jnp.zeros(x.shape[:2], jnp.int32)
        if self.vocabulary:
            if x.shape[-1] not in (1, 2):
                raise ValueError(f'mag: text: found {x.shape[-1]} features, expected the number of a word piece, '
                                 'and perhaps that of its sentence (its field `vocabulary`)')
            kind = x[..., 1].astype(jnp.int32) if x.shape[-1] == 2 else kind
            x = nn.Embed(self.vocabulary, self.width, name='words')(x[..., 0].astype(jnp.int32))
        elif x.shape[-1] != self.width:
            x = Dense(self.width, name='project')(x)
        places = self.param('positions', nn.initializers.normal(0.02), (self.steps, self.width))
        x = x + places[None, :x.shape[1]] + nn.Embed(self.types, self.width, name='types')(kind)
        x = Dropout(self.dropout, name='dropout_embed')(layer_norm('embed_norm', 1e-12)(x), train=train)
        return jnp.where(there, x, 0)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from MMSA's BERT_MAG (text, audio, vision), whose text is numbers of word pieces."""
    if len(model.streams) != 3 or not model.vocabulary:
        raise ValueError(f'mag: found streams {model.streams} and a vocabulary of {model.vocabulary}, '
                         'but the authors know three streams and read word pieces')
    reader, d = Reader(state, 'mag'), model.width
    reader.skip('bert.embeddings.position_ids')
    embeddings = 'bert.embeddings'
    params = {
        'words': {'embedding': reader.take(f'{embeddings}.word_embeddings.weight', model.vocabulary, d)},
        'positions': reader.take(f'{embeddings}.position_embeddings.weight', model.steps, d),
        'types': {'embedding': reader.take(f'{embeddings}.token_type_embeddings.weight', model.types, d)},
        'embed_norm': reader.layer_norm(f'{embeddings}.LayerNorm', d),
        'gate': gate_from_author(reader, 'bert.MAG.', model.streams[1:], d),
        'pooler': reader.dense('bert.pooler.dense', d, d),
        'head': reader.dense('classifier', d, model.classes),
    }
    for k in range(model.layers):
        params[f'layer_{k}'] = reader.bert_layer(f'bert.encoder.layer.{k}', d, model.hidden)
    reader.close()
    return {'params': params}


def gate_from_author(reader: Reader, prefix: str, streams: tuple[str, ...], width: int) -> Params:
    """The gate alone, as WasifurRahman/BERT_multimodal_transformer has it (audio, vision)."""
    params = {'norm': reader.layer_norm(f'{prefix}LayerNorm', width)}
    for name, letter in zip(streams, 'av', strict=True):
        inputs = reader.width(f'{prefix}W_{letter}.weight', 1)
        params[f'shift_{name}'] = reader.dense(f'{prefix}W_{letter}', inputs, width)
        params[f'gate_{name}'] = reader.dense(f'{prefix}W_h{letter}', inputs and inputs + width, width)
    return params

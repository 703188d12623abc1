"""MISA: modality-invariant and -specific representations (Hazarika et al., ACM MM 2020, arXiv:2005.03545).

Two bidirectional recurrent layers make a vector of each stream. It is projected twice: by a layer that all
streams share, and by one of its own. A transformer layer lets the shared and private vectors of an utterance
look at each other, and two linear layers score them. Besides the task, training makes shared vectors alike
(by their moments, or by a discriminator that cannot tell streams apart), shared and private ones different,
and both together able to rebuild the projected stream.

Where this differs from the authors' code: steps need not be sorted by length; an absent stream takes no part
in the transformer layer or in any loss, and counts as zeros in the scores; text comes as features, be they
word vectors (`recurrent`) or those of BERT (averaged). A layer that the authors compute and never use, which
tells shared from private vectors, is not built.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.adversarial import reverse_gradient
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import pool
from jmer.layers.recurrent import BiGRU, BiLSTM, last_states
from jmer.layers.transformer import PostNormLayer, layer_norm
from jmer.types import Array, Batch, Output, Variables

TAGS = ('deep fusion', 'coordinated representation', 'multi-head attention', 'adversarial', 'recurrent',
        'missing modality')
CELLS = {'lstm': BiLSTM, 'gru': BiGRU}


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: what is read; the authors' order is text, vision, audio.
    recurrent: the streams that recurrent layers read; the others are averaged over their steps.
    cell: 'lstm' or 'gru'; as wide as the stream itself.
    width: of the projected, shared and private vectors, a multiple of `heads`.
    hidden: width inside the transformer layer.
    adversarial: shared vectors are made alike by a discriminator instead of by their moments.
    difference_weight, similarity_weight, reconstruction_weight: of the losses besides the task's.
    reverse_weight: what the discriminator's gradient is multiplied by, and reversed.
    dropout: rate in front of the scores and in the discriminator.
    transformer_dropout: rate in the transformer layer.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'vision', 'audio')
    recurrent: tuple[str, ...] = ('text', 'vision', 'audio')
    cell: str = 'lstm'
    width: int = 128
    heads: int = 2
    hidden: int = 2048
    adversarial: bool = False
    difference_weight: float = 0.3
    similarity_weight: float = 1.0
    reconstruction_weight: float = 1.0
    reverse_weight: float = 1.0
    dropout: float = 0.5
    transformer_dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if self.cell not in CELLS or len(self.streams) < 2:
            raise ValueError(f'misa: found cell {self.cell!r} and streams {self.streams}, '
                             f'expected one of {", ".join(CELLS)} and two streams or more')

        def dense(name):
            return Dense(self.width, name=name)

        there = jnp.stack([jnp.any(batch.streams[name].mask, -1) for name in self.streams], 1)
        shared_layer, projected, private, shared, rebuilt = dense('shared'), [], [], [], []
        for name in self.streams:
            x = nn.relu(dense(f'project_{name}')(self._vector(name, batch, train)))
            projected.append(layer_norm(f'norm_{name}')(x))
            private.append(nn.sigmoid(dense(f'private_{name}')(projected[-1])))
            shared.append(nn.sigmoid(shared_layer(projected[-1])))
            rebuilt.append(dense(f'rebuild_{name}')(private[-1] + shared[-1]))

        vectors = jnp.stack(private + shared, 1)
        seen = PostNormLayer(self.heads, self.hidden, dropout=self.transformer_dropout,
                             hidden_dropout=self.transformer_dropout, name='transformer')(
            vectors, jnp.concatenate([there, there], 1), train=train)
        x = Dense(3 * self.width, name='fusion')(seen.reshape(len(seen), -1))
        x = nn.relu(Dropout(self.dropout, name='dropout_fusion')(x, train=train))
        aux = {'projected': projected, 'private': private, 'shared': shared, 'rebuilt': rebuilt, 'there': there}
        if self.adversarial:
            aux['streams'] = self._discriminate(jnp.stack(shared, 1), train)
        return Output(Dense(self.classes, name='head')(x), aux)

    def _vector(self, name: str, batch: Batch, train: bool) -> Float[Array, 'b d']:
        stream = batch.streams[name]
        if name in self.recurrent:
            return _States(self.cell, name=f'states_{name}')(*stream, train=train)
        return pool(*stream, 'mean')

    def _discriminate(self, shared: Float[Array, 'b m d'], train: bool) -> Float[Array, 'b m n']:
        """Scores of the streams that a shared vector may come from."""
        x = reverse_gradient(shared, self.reverse_weight)
        x = nn.relu(Dense(self.width, name='discriminator_1')(x))
        x = Dropout(self.dropout, name='dropout_discriminator')(x, train=train)
        return Dense(len(self.streams), name='discriminator_2')(x)


class _States(nn.Module):
    """The last states of two recurrent layers as wide as the stream: [forward 1 | 2 | backward 1 | 2]."""

    cell: str

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], *, train: bool
    ) -> Float[Array, 'b 4*d']:
        layer, width = CELLS[self.cell], x.shape[-1]
        first = layer(width, name='layer_1')(x, mask, train=train)
        second = layer(width, name='layer_2')(layer_norm('norm')(first), mask, train=train)
        forward, backward = zip(last_states(first, mask), last_states(second, mask), strict=True)
        return jnp.concatenate([*forward, *backward], -1)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss (squared error of real values), similarity, difference and reconstruction, weighted."""
    private, shared = out.aux['private'], out.aux['shared']
    there = out.aux['there'] & batch.present[:, None]
    pairs = list(itertools.combinations(range(len(model.streams)), 2))
    both = {(m, n): there[:, m] & there[:, n] for m, n in pairs}

    differences = [losses.difference(p, s, there[:, m]) for m, (p, s) in enumerate(zip(private, shared, strict=True))]
    differences += [losses.difference(private[m], private[n], both[m, n]) for m, n in pairs]
    if model.adversarial:
        similarity = _tell_apart(out.aux['streams'], there)
    else:
        apart = [losses.central_moment_discrepancy(shared[m], shared[n], both[m, n]) for m, n in pairs]
        similarity = losses.coupled(jnp.mean(jnp.stack(apart)), batch.present)
    terms = {
        'label': losses.task(out.logits, batch.labels, losses.mse),
        'difference': losses.coupled(jnp.sum(jnp.stack(differences)), batch.present),
        'similarity': similarity,
        'reconstruction': _reconstruction(out, there),
    }
    weights = {'label': 1.0, 'difference': model.difference_weight, 'similarity': model.similarity_weight,
               'reconstruction': model.reconstruction_weight}
    return {name: losses.Term(weights[name] * term.value, term.weight) for name, term in terms.items()}


def _tell_apart(scores: Float[Array, 'b m n'], there: Bool[Array, 'b m']) -> losses.Term:
    """Cross entropy of the stream that each shared vector comes from."""
    truth = jnp.arange(there.shape[1], dtype=jnp.int32)[None]
    return losses.cross_entropy(scores, losses.Label(jnp.broadcast_to(truth, there.shape), there))


def _reconstruction(out: Output, there: Bool[Array, 'b m']) -> losses.Term:
    """Squared error of the rebuilt streams, the mean over those that are there."""
    gaps = jnp.stack([jnp.square(x - y).mean(-1) for x, y in
                      zip(out.aux['projected'], out.aux['rebuilt'], strict=True)], 1)
    streams = jnp.sum(there, 1)
    value = jnp.sum(jnp.where(there, gaps, 0), 1) / jnp.maximum(streams, 1)
    return losses.Term(value, (streams > 0).astype(value.dtype))


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of declare-lab/MISA (text, vision, audio).

    Its table of word vectors (`embed`) makes the features that the model reads, and is passed over.
    """
    require_streams('misa', model.streams, 3)
    reader, d = Reader(state, 'misa'), model.width
    reader.skip('embed.weight', 'sp_discriminator.*')
    params = {'shared': reader.dense('shared.shared_1', d, d)}
    for name, letter in zip(model.streams, 'tva', strict=True):
        if name in model.recurrent:
            params[f'states_{name}'] = _states(reader, model.cell, letter)
        else:
            reader.skip(f'{letter}layer_norm.*')      # stored and not used
        params[f'project_{name}'] = reader.dense(f'project_{letter}.project_{letter}', None, d)
        params[f'norm_{name}'] = reader.layer_norm(f'project_{letter}.project_{letter}_layer_norm', d)
        number = 3 if letter == 'a' else 1
        params[f'private_{name}'] = reader.dense(f'private_{letter}.private_{letter}_{number}', d, d)
        params[f'rebuild_{name}'] = reader.dense(f'recon_{letter}.recon_{letter}_1', d, d)
    params['transformer'] = reader.transformer_layer('transformer_encoder.layers.0', d, model.hidden)
    params['fusion'] = reader.dense('fusion.fusion_layer_1', 6 * d, 3 * d)
    params['head'] = reader.dense('fusion.fusion_layer_3', 3 * d, model.classes)
    if model.adversarial:
        params['discriminator_1'] = reader.dense('discriminator.discriminator_layer_1', d, d)
        params['discriminator_2'] = reader.dense('discriminator.discriminator_layer_2', d, 3)
    reader.close()
    return {'params': params}


def _states(reader: Reader, cell: str, letter: str) -> dict[str, Any]:
    width = reader.width(f'{letter}rnn1.weight_hh_l0', 1) or 1
    return {'layer_1': reader.recurrent(cell, f'{letter}rnn1', width, width, 1),
            'norm': reader.layer_norm(f'{letter}layer_norm', 2 * width),
            'layer_2': reader.recurrent(cell, f'{letter}rnn2', 2 * width, width, 1)}

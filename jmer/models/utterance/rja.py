"""RJA: recursive joint attention of audio and vision (Praveen et al., ICASSP 2023, arXiv:2304.07958).

Two bidirectional LSTM layers with a shortcut read audio; audio says where in each image to look; another pair
of layers reads what is seen. Then, `rounds` times, either stream attends over time to both and is changed by
what it finds. A third pair of layers reads both, and each score has a small network at every step. The scores
of an utterance are the mean over its steps.

A step of vision is a map of `regions` vectors, one after the other. Layers along time have weights for
`steps` steps: a shorter utterance is followed by zeros, a longer one is refused.

Where this differs from the authors' code: absent steps count as zeros and have no scores, and the authors
score every step where an utterance has one label here. Theirs flattens a map of channels by regions and then
reads it as regions by channels; so does this, which sees a vector only.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.gating import unit
from jmer.layers.mlp import StepScores
from jmer.layers.pooling import pool
from jmer.layers.recurrent import LSTM
from jmer.layers.steps import extend
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'joint representation', 'recurrent', 'missing modality')
LAYERS = 2


class Model(Checked):
    """Attributes:
    classes: number of scores; the authors: valence and arousal.
    streams: two; the first one guides where to look in the second.
    steps: the longest utterance.
    regions: vectors in a step of the second stream, of which its width is a multiple.
    width: of a step behind each pair of recurrent layers, an even number.
    rounds: of joint attention.
    hidden: width of the networks of the scores.
    dropout: rate in the recurrent layers of one stream.
    attention_dropout: rate of attention scores and of what they add, and in the networks of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision')
    steps: int = 16
    regions: int = 49
    width: int = 512
    rounds: int = 1
    hidden: int = 128
    dropout: float = 0.1
    attention_dropout: float = 0.6

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.streams) != 2:
            raise ValueError(f'rja: streams: found {self.streams}, expected two')
        audio, vision = (extend(batch.streams[name], self.steps, 'rja') for name in self.streams)
        there = audio.mask | vision.mask
        a = _Reading(self.width, self.dropout, name='read_audio')(unit(audio.x), audio.mask, train=train)
        v = self._look(unit(vision.x), a)
        v = _Reading(self.width, self.dropout, name='read_vision')(v, vision.mask, train=train)
        for k in range(self.rounds):
            v, a = _JointAttention(self.attention_dropout, name=f'round_{k}')(v, a, there, train=train)
        joint = _Reading(self.width, name='read_joint')(jnp.concatenate([v, a], -1), there, train=train)
        scores = StepScores(self.classes, self.hidden, 'relu', self.attention_dropout, name='head')(joint, train=train)
        scores = jnp.where(there[..., None], scores, 0)
        return Output(pool(scores, there, 'mean'), {'steps': scores})

    def _look(self, x: Float[Array, 'b t e'], guide: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
        """The mean of the regions of each step, weighted by what the guide wants to see."""
        if x.shape[-1] % self.regions:
            raise ValueError(f'rja: {self.streams[1]}: found {x.shape[-1]} features, expected a multiple of '
                             f'{self.regions} (its field `regions`)')
        x = x.reshape(*x.shape[:2], self.regions, -1)
        seen: Array = nn.relu(Dense(self.width, name='look_vision')(x))
        seen = Dense(self.regions, use_bias=False, name='look_regions')(seen)
        heard = nn.relu(Dense(self.width, name='look_audio')(guide))
        heard = Dense(self.regions, use_bias=False, name='look_guide')(heard)
        score = Dense(1, use_bias=False, name='look_score')(jnp.tanh(seen + heard[..., None]))[..., 0]
        chosen = jnp.einsum('btr,btrd->btd', nn.softmax(score), x)
        return Dense(self.width, name='look_out')(chosen)


class _Reading(nn.Module):
    """Bidirectional LSTM layers from a learned start, joined with their input, projected to unit length."""

    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t e'], mask: Bool[Array, 'b t'], *, train: bool
    ) -> Float[Array, 'b t {self.width}']:
        def drop(y, k):
            return Dropout(self.dropout, name=f'dropout_{k}')(y, train=train)

        y = x
        for k in range(LAYERS):
            y = drop(y, k) if k else y
            y = jnp.concatenate([
                LSTM(self.width // 2, reverse, learned_start=True, name=f'{name}_{k}')(y, mask)
                for name, reverse in (('forward', False), ('backward', True))], -1)
        y = Dense(self.width, name='out')(drop(jnp.concatenate([x, y], -1), LAYERS))
        return jnp.where(mask[..., None], unit(y), 0)


class _JointAttention(nn.Module):
    """Either stream is changed by what it finds in both, over all steps."""

    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, v: Float[Array, 'b t d'], a: Float[Array, 'b t d'], there: Bool[Array, 'b t'], *, train: bool
    ) -> tuple[Float[Array, 'b t d'], Float[Array, 'b t d']]:
        def drop(x, name):
            return Dropout(self.dropout, name=f'dropout_{name}')(x, train=train)

        steps, width = v.shape[1:]
        joint = Dense(2 * width, name='joint')(jnp.concatenate([v, a], -1))
        joint = jnp.where(there[..., None], joint, 0)

        def attend(x, name):
            key = Dense(steps, name=f'key_{name}')(x.swapaxes(1, 2))           # along time
            score = jnp.tanh(jnp.einsum('bdt,bte->bde', key, joint) * (2 * width) ** -0.5)
            found = jnp.einsum('btd,bde->bte', Dense(width, name=f'value_{name}')(x), drop(score, f'{name}_1'))
            found = Dense(width, name=f'out_{name}')(nn.relu(jnp.tanh(found)))
            return x + drop(nn.relu(found), f'{name}_2')

        return attend(v, 'vision'), attend(a, 'audio')


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """1 - the concordance correlation of real values, the mean over them; the authors add them up."""
    return {'label': losses.task(out.logits, batch.labels, functools.partial(losses.ccc, unbiased=True))}


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from orig_cam.py of praveena2j/RecurrentJointAttentionwithLSTMs (audio, vision)."""
    require_streams('rja', model.streams, 2)
    if model.classes != 2:
        raise ValueError(f'rja: classes: found {model.classes}, but the authors know valence and arousal')
    reader, d = Reader(state, 'rja'), model.width
    look, region = 'video_attn.attn', reader.width('video_attn.attn.affine_feat.weight', 1)
    params = {
        'read_audio': _reading(reader, 'audio_extract', None, d),
        'read_vision': _reading(reader, 'video_extract', d, d),
        'read_joint': _reading(reader, 'Joint', 2 * d, d),
        'look_audio': reader.dense(f'{look}.affine_audio', d, d),
        'look_vision': reader.dense(f'{look}.affine_video', region, d),
        'look_regions': reader.dense(f'{look}.affine_v', d, model.regions, bias=False),
        'look_guide': reader.dense(f'{look}.affine_g', d, model.regions, bias=False),
        'look_score': reader.dense(f'{look}.affine_h', model.regions, 1, bias=False),
        'look_out': reader.dense(f'{look}.affine_feat', region, d),
        'head': reader.step_scores(('vregressor', 'aregressor'), (0, 3), d, model.hidden),
    }
    for k in range(model.rounds):
        params[f'round_{k}'] = _round(reader, f'coattn.dcn_layers.{k}', model.steps, d)
    reader.close()
    return {'params': params}


def _reading(reader: Reader, prefix: str, inputs: int | None, d: int) -> Params:
    inputs = inputs or reader.width(f'{prefix}.rnn.weight_ih_l0', 1)
    params: Params = {'out': reader.dense(f'{prefix}.linear', inputs and inputs + d, d)}
    # Rows: the first states of layer 0 forward, layer 0 backward, layer 1 forward, ...; then the cells.
    start = reader.take(f'{prefix}.init_hidden', 4 * LAYERS, d // 2).reshape(2, LAYERS, 2, d // 2)
    for k in range(LAYERS):
        for way, (name, suffix) in enumerate((('forward', ''), ('backward', '_reverse'))):
            layer = reader.lstm(f'{prefix}.rnn', d if k else inputs, d // 2, f'l{k}{suffix}')
            params[f'{name}_{k}'] = layer | {'start': start[:, k, way]}
    return params


def _round(reader: Reader, prefix: str, steps: int, d: int) -> Params:
    params = {'joint': reader.dense(f'{prefix}.dense_coattn.query_linear', 2 * d, 2 * d)}
    for name, number in (('vision', 1), ('audio', 2)):
        params[f'key_{name}'] = reader.dense(f'{prefix}.dense_coattn.key{number}_linear', steps, steps)
        params[f'value_{name}'] = reader.dense(f'{prefix}.dense_coattn.value{number}_linear', d, d)
        params[f'out_{name}'] = reader.dense(f'{prefix}.linears.{number - 1}.0', 2 * d, d)
    return params

"""JCA: joint cross-attention of audio and vision (Praveen et al., CVPR workshops 2022, arXiv:2203.14779).

Both streams are encoded step by step. What vision sees of the joint representation, a correlation over time
of its features with those of both streams, is added to it; raw and attended vision together give the scores of
every step, one small network a score. The scores of an utterance are the mean over its steps.

Layers along time have weights for `steps` steps. A shorter utterance is followed by zeros, a longer one is
refused.

Where this differs from the authors' code: absent steps count as zeros and have no scores, and the authors
score every step where an utterance has one label here. Attended audio, which they compute and never use, is
not computed.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.mlp import StepScores
from jmer.layers.pooling import pool
from jmer.layers.steps import extend
from jmer.types import Batch, Output, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'joint representation', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores; the authors: valence and arousal.
    streams: two, of which the second attends to both.
    steps: the longest utterance.
    width: of an encoded step.
    attention: width in the middle of the attention.
    hidden: width of the networks of the scores.
    dropout: rate in the networks of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision')
    steps: int = 16
    width: int = 128
    attention: int = 32
    hidden: int = 128
    dropout: float = 0.6

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.streams) != 2:
            raise ValueError(f'jca: streams: found {self.streams}, expected two')

        def dense(width, name):
            return Dense(width, use_bias=False, name=name)

        audio, vision = (extend(batch.streams[name], self.steps, 'jca') for name in self.streams)
        encoded = [jnp.where(s.mask[..., None], Dense(self.width, name=f'encode_{name}')(s.x), 0)
                   for name, s in zip(self.streams, (audio, vision), strict=True)]
        joint = jnp.concatenate(encoded, -1)
        x = encoded[1].swapaxes(1, 2)                                           # [b d t]
        moved = dense(self.steps, 'correlate')(joint.swapaxes(1, 2))
        correlation = jnp.tanh(jnp.einsum('bdt,bet->bde', x, moved) * joint.shape[-1] ** -0.5)
        hidden = nn.relu(dense(self.attention, 'attend_joint')(correlation) + dense(self.attention, 'attend_own')(x))
        attended = dense(self.steps, 'attend_out')(hidden).swapaxes(1, 2) + encoded[1]

        scores = StepScores(self.classes, self.hidden, '', self.dropout, name='head')(
            jnp.concatenate([vision.x, attended], -1), train=train)
        there = audio.mask | vision.mask
        scores = jnp.where(there[..., None], scores, 0)
        return Output(pool(scores, there, 'mean'), {'steps': scores, 'attended': attended})


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """1 - the concordance correlation of real values, the mean over them; the authors add them up."""
    return {'label': losses.task(out.logits, batch.labels, functools.partial(losses.ccc, unbiased=True))}


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from cam.py of praveena2j/RecurrentJointAttentionwithLSTMs (audio, vision)."""
    require_streams('jca', model.streams, 2)
    reader, d, t = Reader(state, 'jca'), model.width, model.steps
    reader.skip('affine_a.weight', 'W_a.weight', 'W_ca.weight', 'W_ha.weight')     # stored and not used
    if model.classes != 2:
        raise ValueError(f'jca: classes: found {model.classes}, but the authors know valence and arousal')
    raw = reader.width('encoder2.weight', 1)
    params = {
        f'encode_{model.streams[0]}': reader.dense('encoder1', None, d),
        f'encode_{model.streams[1]}': reader.dense('encoder2', raw, d),
        'correlate': reader.dense('affine_v', t, t, bias=False),
        'attend_own': reader.dense('W_v', t, model.attention, bias=False),
        'attend_joint': reader.dense('W_cv', 2 * d, model.attention, bias=False),
        'attend_out': reader.dense('W_hv', model.attention, t, bias=False),
        'head': reader.step_scores(('vregressor', 'aregressor'), (0, 2), raw and raw + d, model.hidden),
    }
    reader.close()
    return {'params': params}

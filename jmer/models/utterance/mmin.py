"""MMIN: missing modality imagination network (Zhao et al., ACL 2021).

Encoders turn audio, text and vision into vectors; a cascade of autoencoders imagines from those that are
there what a teacher, which knows the missing ones, makes of them, and another cascade goes the way back.
The narrow layers of the first one are classified.

Training has two stages. `Teacher` is trained on complete data with its cross entropy; its encoders are
where the model's begin. Then `loss` is joined by `imagination`, whose target is the fused vector of the
frozen teacher on what is *missing* (`layers.imagination.complement`). What is missing is drawn for every item, so
that training data should be complete.

Where this differs from the authors' code: padding is masked, and a missing stream is a vector of zeros;
theirs reads zeros, whose trace depends on how far the batch is padded (`read_zeros`). The attention over
time in their code is a sum over the steps, and can be had under that name.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.imagination import Bottleneck, Classifier, Encoders, complement, lose
from jmer.stages import TEACHER, Learner, Result, Stage, of_model, of_teacher
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('deep fusion', 'joint representation', 'data translation', 'distillation', 'missing modality')


class Model(Checked):
    """The defaults are the authors' for IEMOCAP. Attributes:
    classes: number of scores.
    streams: audio, text and vision, in this order.
    width: of the vector of each stream.
    text_channels: of each convolution over the text.
    audio_pooling, vision_pooling: 'max', 'last' or 'sum' over the states of an LSTM.
    narrowing: widths of the layers of every autoencoder, the last being what is classified.
    blocks: autoencoders of a cascade.
    hidden: widths of the classifier. batch_norm: whether its layers are normalised.
    share_cascade: whether the way back is the same cascade.
    label_weight, imagination_weight, cycle_weight: of the losses.
    text_dropout, dropout: in the text's network and in the classifier.
    read_zeros: read padding and missing streams as zeros, as the authors' code does.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text', 'vision')
    width: int = 128
    text_channels: int = 128
    audio_pooling: str = 'max'
    vision_pooling: str = 'max'
    narrowing: tuple[int, ...] = (256, 128, 64)
    blocks: int = 5
    hidden: tuple[int, ...] = (128, 128)
    batch_norm: bool = False
    share_cascade: bool = False
    label_weight: float = 1.0
    imagination_weight: float = 4.0
    cycle_weight: float = 2.0
    text_dropout: float = 0.5
    dropout: float = 0.5
    read_zeros: bool = False

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        embeddings = encoders(self)(batch, train=train)
        fused = jnp.concatenate(embeddings, -1)
        cascade = Cascade(self.narrowing, self.blocks, name='cascade')
        imagined, latent = cascade(fused)
        back = cascade if self.share_cascade else Cascade(self.narrowing, self.blocks, name='cycle')
        logits = Classifier(self.classes, self.hidden, self.batch_norm, self.dropout, name='classifier')(
            latent, batch.present, train=train)
        return Output(logits, {'embeddings': embeddings, 'fused': fused, 'imagined': imagined,
                               'latent': latent, 'cycled': back(imagined)[0]})


class Teacher(nn.Module):
    """The same encoders and a classifier of their vectors, for complete data.

    model: what it will teach; all fields are taken from there. The authors take a dropout of 0.3 here.
    """

    model: Model

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        m = self.model
        fused = jnp.concatenate(encoders(m)(batch, train=train), -1)
        logits = Classifier(m.classes, m.hidden, m.batch_norm, m.dropout, name='classifier')(
            fused, batch.present, train=train)
        return Output(logits, {'fused': fused})


def teacher(model: Model) -> Teacher:
    """What is trained before the model."""
    return Teacher(model)


def stages(model: Model) -> tuple[Stage, ...]:
    """The teacher's epochs, then as many of the model's."""
    def learn(model: Model, learner: Learner, batch: Batch) -> Result:
        out = learner.teach(batch, train=True)
        return Result(out, {'label': losses.task(out.logits, batch.labels)}, learner.memory)

    def imagine(model: Model, learner: Learner, batch: Batch) -> Result:
        seen = lose(batch, model.streams, learner.key)
        out = learner.forward(seen)
        target = learner.teach(complement(batch, seen), train=False).aux['fused']
        terms = loss(model, out, batch) | {'imagination': imagination(model, out, target, batch)}
        return Result(out, terms, learner.memory)

    return (Stage('teacher', learn, 0.5, of_teacher),
            Stage('imagination', imagine, 0.5, of_model,
                  lambda params: params | {'encoders': params[TEACHER]['encoders']}))


def encoders(model: Model) -> Encoders:
    """The encoders, a part of the module in whose call this stands."""
    poolings = model.audio_pooling, model.vision_pooling
    return Encoders(model.streams, model.width, model.text_channels, model.text_dropout, poolings, model.read_zeros,
                    name='encoders')


class Cascade(nn.Module):
    """Residual autoencoders: every block sees the sum of the input and of all that came out so far.

    Attributes:
        widths: of the layers of a block's encoder.
        blocks: how many.
    """

    widths: tuple[int, ...]
    blocks: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b d']) -> tuple[Float[Array, 'b d'], Float[Array, 'b e']]:
        """What is imagined, and the narrowest layers of all blocks."""
        seen: Array = x
        out: Array = jnp.zeros_like(x)
        latents = []
        for i in range(self.blocks):
            seen = seen + out
            latent, out = Bottleneck(self.widths, name=f'block_{i}')(seen)
            latents.append(latent)
        hidden = nn.relu(Dense(x.shape[-1], name='transition_0')(seen + out))
        return Dense(x.shape[-1], name='transition_1')(hidden), jnp.concatenate(latents, -1)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The label's loss and that of the way back, weighted."""
    target = jax.lax.stop_gradient(out.aux['fused'])
    return losses.weighted({'label': losses.task(out.logits, batch.labels),
                            'cycle': _distance(out.aux['cycled'], target, batch)},
                           label=model.label_weight, cycle=model.cycle_weight)


def imagination(model: Model, out: Output, target: Float[Array, 'b d'], batch: Batch) -> losses.Term:
    """How far what is imagined is from the teacher's vector, weighted; the second stage adds it to the loss."""
    term = _distance(out.aux['imagined'], jax.lax.stop_gradient(target), batch)
    return losses.Term(model.imagination_weight * term.value, term.weight)


def _distance(x: Float[Array, 'b d'], target: Float[Array, 'b d'], batch: Batch) -> losses.Term:
    return losses.mse(x, losses.Label(target, batch.present))


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from the nets of AIM3-RUC/MMIN, their names in front ('netAE.'); a teacher is passed over."""
    require_streams('mmin', model.streams, 3)
    reader, d = Reader(state, 'mmin'), 3 * model.width
    reader.skip('pretrained_encoder.*')
    params: Params = {'encoders': reader.imagination_encoders('', model.width, model.text_channels)}
    cascades = (('cascade', 'netAE'), ('cycle', 'netAE_cycle'))
    for ours, theirs in cascades[:1] if model.share_cascade else cascades:
        params[ours] = {f'block_{i}': reader.bottleneck(theirs, i, d, model.narrowing) for i in range(model.blocks)}
        params[ours] |= {f'transition_{k}': reader.dense(f'{theirs}.transition.{2 * k}', d, d) for k in (0, 1)}
    return _with_classifier(reader, 'netC', params, model.blocks * model.narrowing[-1], model)


def teacher_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables of `Teacher` from the same state_dict."""
    prefix = 'pretrained_encoder.'
    reader = Reader({key: value for key, value in state.items() if key.startswith(prefix)}, "mmin's teacher")
    params = {'encoders': reader.imagination_encoders(prefix, model.width, model.text_channels)}
    return _with_classifier(reader, f'{prefix}netC', params, 3 * model.width, model)


def _with_classifier(reader: Reader, prefix: str, params: Params, inputs: int, model: Model) -> Variables:
    variables = reader.with_imagination_classifier(
        params, prefix, (inputs, *model.hidden), model.classes, model.batch_norm, model.dropout > 0)
    reader.close()
    return variables

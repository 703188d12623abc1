"""IF-MMIN: imagination network with invariant features (Zuo et al., ICASSP 2023, arXiv:2210.15359).

As in MMIN, autoencoders imagine what a teacher makes of the missing streams. Besides, one network for all
streams takes from each vector what does not depend on the stream, and every autoencoder sees that as well.

Training has two stages. `Teacher` is trained on complete data with `teacher_loss`: cross entropy, and the
distance of the streams' invariant features by their moments. Its encoders and its invariant network are
where the model's begin. Then `loss` is joined by `imagination`, whose targets are the frozen teacher's
fused vector of what is *missing* (`layers.imagination.complement`) and its invariant features of the
complete data. What is missing is drawn for every item, so that training data should be complete.

Where this differs from the authors' code: padding is masked, and a missing stream is a vector of zeros;
theirs reads zeros, whose trace depends on how far the batch is padded (`read_zeros`). The attention over
time in their code is a sum over the steps, and can be had under that name. The moments are taken over the
items that have both streams.
"""

import itertools
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
from jmer.layers.dropout import Dropout
from jmer.layers.imagination import Bottleneck, Classifier, Encoders, complement, lose
from jmer.stages import TEACHER, Learner, Result, Stage, of_model, of_teacher
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('deep fusion', 'joint representation', 'coordinated representation', 'data translation', 'distillation',
        'missing modality')

ACTIVATIONS = {'leaky_relu': nn.leaky_relu, 'sigmoid': nn.sigmoid}


class Model(Checked):
    """The defaults are the authors' for IEMOCAP. Attributes:
    classes: number of scores.
    streams: audio, text and vision, in this order.
    width: of the vector of each stream.
    text_channels: of each convolution over the text.
    audio_pooling, vision_pooling: 'max', 'last' or 'sum' over the states of an LSTM.
    shared_layers: of the network for all streams.
    shared_activation: 'leaky_relu' after every layer of it, or 'sigmoid' after all but the last.
    narrowing: widths of the layers of every autoencoder, the last being what is classified.
    blocks: autoencoders of a cascade.
    hidden: widths of the classifier. batch_norm: whether its layers are normalised.
    label_weight, imagination_weight, invariant_weight: of the losses.
    text_dropout, shared_dropout, dropout: in the text's network, after the layers of the network for all
        streams, and in the classifier.
    read_zeros: read padding and missing streams as zeros, as the authors' code does.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'text', 'vision')
    width: int = 128
    text_channels: int = 128
    audio_pooling: str = 'max'
    vision_pooling: str = 'max'
    shared_layers: int = 2
    shared_activation: str = 'leaky_relu'
    narrowing: tuple[int, ...] = (256, 128, 64)
    blocks: int = 5
    hidden: tuple[int, ...] = (128, 128)
    batch_norm: bool = False
    label_weight: float = 1.0
    imagination_weight: float = 1.0
    invariant_weight: float = 1.0
    text_dropout: float = 0.5
    shared_dropout: float = 0.0
    dropout: float = 0.5
    read_zeros: bool = False

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        embeddings, shared = _vectors(self, batch, train)
        fused, invariant = jnp.concatenate(embeddings, -1), jnp.concatenate(shared, -1)
        imagined, latent = Cascade(self.narrowing, self.blocks, name='cascade')(fused, invariant)
        logits = Classifier(self.classes, self.hidden, self.batch_norm, self.dropout, name='classifier')(
            latent, batch.present, train=train)
        return Output(logits, {'embeddings': embeddings, 'invariant': invariant, 'imagined': imagined,
                               'latent': latent})


class Teacher(nn.Module):
    """The same encoders and a classifier of their vectors and invariant features, for complete data.

    model: what it will teach; all fields are taken from there. The authors take a dropout of 0.3 here.
    """

    model: Model

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        m = self.model
        embeddings, shared = _vectors(m, batch, train)
        fused, invariant = jnp.concatenate(embeddings, -1), jnp.concatenate(shared, -1)
        logits = Classifier(m.classes, m.hidden, m.batch_norm, m.dropout, name='classifier')(
            jnp.concatenate([fused, invariant], -1), batch.present, train=train)
        return Output(logits, {'fused': fused, 'invariant': invariant, 'shared': shared})


def teacher(model: Model) -> Teacher:
    """What is trained before the model."""
    return Teacher(model)


def stages(model: Model) -> tuple[Stage, ...]:
    """The teacher's epochs, then as many of the model's."""
    def learn(model: Model, learner: Learner, batch: Batch) -> Result:
        out = learner.teach(batch, train=True)
        return Result(out, teacher_loss(model, out, batch), learner.memory)

    def imagine(model: Model, learner: Learner, batch: Batch) -> Result:
        seen = lose(batch, model.streams, learner.key)
        out = learner.forward(seen)
        fused = learner.teach(complement(batch, seen), train=False).aux['fused']
        invariant = learner.teach(batch, train=False).aux['invariant']
        terms = loss(model, out, batch) | imagination(model, out, fused, invariant, batch)
        return Result(out, terms, learner.memory)

    return (Stage('teacher', learn, 0.5, of_teacher),
            Stage('imagination', imagine, 0.5, of_model,
                  lambda params: params | {name: params[TEACHER][name] for name in ('encoders', 'shared')}))


def _vectors(model: Model, batch: Batch, train: bool) -> tuple[list[Array], list[Array]]:
    """Vectors of the streams and their invariant features, in the call of the module that this stands in."""
    poolings = model.audio_pooling, model.vision_pooling
    embeddings = Encoders(model.streams, model.width, model.text_channels, model.text_dropout, poolings,
                          model.read_zeros, name='encoders')(batch, train=train)
    shared = Shared(model.shared_layers, model.shared_activation, model.shared_dropout, name='shared')
    return embeddings, [shared(x, train=train) for x in embeddings]


class Shared(nn.Module):
    """The network for all streams, as wide as what it reads.

    Attributes: as those of `Model` that begin with shared.
    """

    layers: int
    activation: str
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, 'b d'], *, train: bool) -> Float[Array, 'b d']:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'ifmmin: shared_activation: found {self.activation!r}, '
                             f'expected one of {", ".join(ACTIVATIONS)}')
        for k in range(self.layers):
            x = Dense(x.shape[-1], name=f'dense_{k}')(x)
            if self.activation != 'sigmoid' or k < self.layers - 1:
                x = ACTIVATIONS[self.activation](x)
                x = Dropout(self.dropout, name=f'dropout_{k}')(x, train=train)
        return x


class Cascade(nn.Module):
    """Autoencoders, each on the output of the one before plus what does not depend on the stream.

    Attributes:
        widths: of the layers of a block's encoder.
        blocks: how many.
    """

    widths: tuple[int, ...]
    blocks: int

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b d'], invariant: Float[Array, 'b d']
    ) -> tuple[Float[Array, 'b d'], Float[Array, 'b e']]:
        """What is imagined, and the narrowest layers of all blocks."""
        out, latents = x, []
        for i in range(self.blocks):
            latent, out = Bottleneck(self.widths, name=f'block_{i}')(out + invariant)
            latents.append(latent)
        hidden = nn.relu(Dense(x.shape[-1], name='transition_0')(out))
        return Dense(x.shape[-1], name='transition_1')(hidden), jnp.concatenate(latents, -1)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The label's loss, weighted."""
    return losses.weighted({'label': losses.task(out.logits, batch.labels)}, label=model.label_weight)


def imagination(
    model: Model, out: Output, fused: Float[Array, 'b d'], invariant: Float[Array, 'b d'], batch: Batch
) -> dict[str, losses.Term]:
    """How far imagined and invariant features are from the teacher's, weighted; for the second stage.

    fused: of the teacher on what is missing. invariant: of the teacher on the complete data.
    """
    targets = {'imagined': fused, 'invariant': invariant}
    terms = {name: losses.mse(out.aux[name], losses.Label(jax.lax.stop_gradient(target), batch.present))
             for name, target in targets.items()}
    return losses.weighted(terms, imagined=model.imagination_weight, invariant=model.invariant_weight)


def teacher_loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The loss of the first stage: the label's, and the moments' distance averaged over pairs of streams."""
    there = [jnp.any(batch.streams[name].mask, -1) & batch.present for name in model.streams]
    pairs = list(itertools.combinations(range(len(there)), 2))
    shared = out.aux['shared']
    distances = [losses.central_moment_discrepancy(shared[m], shared[n], there[m] & there[n]) for m, n in pairs]
    return {'label': losses.task(out.logits, batch.labels),
            'moments': losses.coupled(jnp.stack(distances).mean(), batch.present)}


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from the nets of ZhuoYulang/IF-MMIN, their names in front ('netAE.'); a teacher is passed over."""
    require_streams('ifmmin', model.streams, 3)
    reader, d = Reader(state, 'ifmmin'), 3 * model.width
    reader.skip('pretrained_encoder.*')
    params = _front(reader, '', 'netinvariant', model)
    params['cascade'] = {f'block_{i}': reader.bottleneck('netAE', i, d, model.narrowing) for i in range(model.blocks)}
    params['cascade'] |= {f'transition_{k}': reader.dense(f'netAE.transition.{2 * k}', d, d) for k in (0, 1)}
    return _with_classifier(reader, 'netC', params, model.blocks * model.narrowing[-1], model)


def teacher_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables of `Teacher` from the same state_dict."""
    prefix = 'pretrained_encoder.'
    reader = Reader({key: value for key, value in state.items() if key.startswith(prefix)}, "ifmmin's teacher")
    params = _front(reader, prefix, f'{prefix}netShared', model)
    return _with_classifier(reader, f'{prefix}netC', params, 6 * model.width, model)


def _front(reader: Reader, prefix: str, shared: str, model: Model) -> Params:
    return {'encoders': reader.imagination_encoders(prefix, model.width, model.text_channels),
            'shared': {f'dense_{k}': _shared_layer(reader, f'{shared}.netshared.shared_{k + 1}', model.width)
                       for k in range(model.shared_layers)}}


def _shared_layer(reader: Reader, prefix: str, width: int) -> Params:
    return reader.dense(f'{prefix}.0' if f'{prefix}.0.weight' in reader else prefix, width, width)


def _with_classifier(reader: Reader, prefix: str, params: Params, inputs: int, model: Model) -> Variables:
    variables = reader.with_imagination_classifier(
        params, prefix, (inputs, *model.hidden), model.classes, model.batch_norm, model.dropout > 0)
    reader.close()
    return variables

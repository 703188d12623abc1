"""MMIM: multimodal fusion that keeps mutual information (Han et al., EMNLP 2021, arXiv:2109.00412).

The first step of text (BERT's [CLS]) and the last states of bidirectional LSTMs over audio and vision are
fused by two layers and scored. Besides the task, training raises bounds of mutual information: between the
streams, by estimators of one vector from another (the likelihood of a Gaussian, and entropies of a projected
vector), and between every stream and the fused vector, which predicts the stream's vector among all of a batch.

The authors go through the data twice an epoch. Stage 0 moves the estimators alone, by `likelihood`; stage 1
moves everything else, by `loss` and, once there is a memory, `entropy`, whose projections of earlier batches
`memory_after` keeps; here epochs are the one and the other in turn. The projection of the entropies belongs to the
estimators and is of no use to stage 0, so its gradient moves it in neither. Entropies need the signs of real-valued
labels, and are left out where there are none.

Where this differs from the authors' code: padding is masked; an absent stream is a vector of zeros, and takes
no part in the losses; an entropy whose covariance would be singular, for want of utterances, is 0, where
theirs is infinite.
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
from jmer.layers.gating import unit
from jmer.layers.pooling import pool
from jmer.layers.recurrent import BiLSTM, last_states
from jmer.stages import Learner, Result, Stage
from jmer.types import Array, Batch, Label, Output, Params, Stream, Variables

TAGS = ('deep fusion', 'joint representation', 'contrastive', 'recurrent', 'unaligned', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: text, of which the first step is read, audio and vision.
    states: widths of the LSTMs of the two others, of one direction. widths: of their vectors.
    width: of the fused vector.
    bidirectional: whether the LSTMs are.
    predictor_layers: of the networks that predict a stream's vector from the fused one.
    audio_vision: whether audio is estimated from vision, as both are from text.
    contrast_weight: of the predictions. bound_weight: of likelihoods and entropies.
    state_dropout: of the states of the LSTMs. dropout: of what is fused.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    states: tuple[int, ...] = (16, 16)
    widths: tuple[int, ...] = (16, 16)
    width: int = 128
    bidirectional: bool = True
    predictor_layers: int = 1
    audio_vision: bool = False
    contrast_weight: float = 0.1
    bound_weight: float = 0.1
    state_dropout: float = 0.1
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        text, *others = self.streams
        x, mask = batch.streams[text]
        vectors = {text: pool(x[:, ::-1], mask[:, ::-1], 'last')}
        for name, states, width in zip(others, self.states, self.widths, strict=True):
            vectors[name] = _Encoder(states, width, self.bidirectional, self.state_dropout, name=f'encode_{name}')(
                batch.streams[name], train=train)

        fused = Dropout(self.dropout, name='dropout')(jnp.concatenate(list(vectors.values()), -1), train=train)
        for k in (1, 2):
            fused = jnp.tanh(Dense(self.width, name=f'fuse_{k}')(fused))
        estimates = {f'{y}_from_{x}': _Estimator(name=f'estimate_{y}_from_{x}')(vectors[x], vectors[y])
                     for x, y in pairs(self)}
        predicted = {name: self._predict(name, fused, vector.shape[-1]) for name, vector in vectors.items()}
        there = {name: jnp.any(batch.streams[name].mask, -1) & batch.present for name in self.streams}
        return Output(Dense(self.classes, name='head')(fused),
                      {'vectors': vectors, 'predicted': predicted, 'estimates': estimates, 'there': there})

    def _predict(self, name: str, x: Float[Array, 'b d'], width: int) -> Float[Array, 'b e']:
        for k in range(self.predictor_layers):
            x = Dense(width, name=f'predict_{name}_{k}')(jnp.tanh(x) if k == 1 else x)
        return x

    def _check(self) -> None:
        for field, count in (('streams', 3), ('states', 2), ('widths', 2)):
            if len(getattr(self, field)) != count:
                raise ValueError(f'mmim: {field}: found {getattr(self, field)}, expected {count} of them')


def pairs(model: Model) -> list[tuple[str, str]]:
    """The streams that others are estimated from, and these others."""
    text, audio, vision = model.streams
    return [(text, vision), (text, audio)] + [(vision, audio)] * model.audio_vision


class _Encoder(nn.Module):
    """Where an LSTM ends in either direction, and a linear layer; zeros where absent."""

    states: int
    width: int
    bidirectional: bool
    dropout: float

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool) -> Float[Array, 'b d']:
        x: Array = BiLSTM(self.states, causal=not self.bidirectional, name='lstm')(*stream, train=train)
        last = jnp.concatenate(last_states(x, stream.mask), -1) if self.bidirectional else pool(x, stream.mask, 'last')
        last = Dense(self.width, name='linear')(Dropout(self.dropout, name='dropout')(last, train=train))
        return jnp.where(jnp.any(stream.mask, -1)[:, None], last, 0)


class _Estimator(nn.Module):
    """The log-likelihood of y under a Gaussian that x gives, up to its normalisation, and y projected."""

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b d'], y: Float[Array, 'b e']
    ) -> tuple[Float[Array, 'b'], Float[Array, 'b f']]:
        def network(name):
            hidden = nn.relu(Dense(y.shape[-1], name=f'{name}_1')(x))
            return Dense(y.shape[-1], name=f'{name}_2')(hidden)

        likelihood = -jnp.sum(jnp.square(network('mean') - y) / (2 * jnp.exp(network('log_variance'))), -1)
        return likelihood, jnp.tanh(Dense(y.shape[-1] // 4, name='project')(y))


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss, the contrasts of every stream with the fused vector, and the likelihoods, weighted."""
    terms = {'label': losses.task(out.logits, batch.labels)}
    for name, vector in out.aux['vectors'].items():
        term = _among_all(vector, out.aux['predicted'][name], out.aux['there'][name])
        terms[f'contrast_{name}'] = term._replace(value=model.contrast_weight * term.value)
    for name, term in likelihood(model, out, batch).items():
        terms[name] = term._replace(value=model.bound_weight * term.value)
    return terms


def likelihood(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """-log-likelihood of each estimated stream where both streams are there; all that stage 0 trains."""
    return {f'likelihood_{name}': losses.Term(jnp.where(both, -value, 0), jnp.asarray(both, value.dtype))
            for name, both, (value, _) in _estimates(model, out)}


def _estimates(model: Model, out: Output) -> list[tuple[str, Bool[Array, 'b'], tuple[Array, Array]]]:
    """Every estimate: its name, where both streams are there, likelihood and projection."""
    there = out.aux['there']
    return [(f'{y}_from_{x}', there[x] & there[y], out.aux['estimates'][f'{y}_from_{x}']) for x, y in pairs(model)]


def _among_all(x: Float[Array, 'b d'], predicted: Float[Array, 'b d'], there: Bool[Array, 'b']) -> losses.Term:
    """Cross entropy of which prediction belongs to each vector, by their cosines."""
    x, predicted = (unit(jnp.where(there[:, None], v, 0)) for v in (x, predicted))
    scores = jnp.where(there[None], x @ predicted.T, -1e30)
    return losses.cross_entropy(scores, Label(jnp.arange(len(x), dtype=jnp.int32), there))


def stages(model: Model) -> tuple[Stage, ...]:
    """The estimators' epochs, and those of everything else."""
    def bounds(model: Model, learner: Learner, batch: Batch) -> Result:
        out = learner.forward(batch)
        return Result(out, likelihood(model, out, batch), learner.memory)

    def task(model: Model, learner: Learner, batch: Batch) -> Result:
        out = learner.forward(batch)
        terms = loss(model, out, batch)
        if not learner.memory:
            return Result(out, terms, learner.memory)
        terms |= entropy(model, out, batch, learner.memory)
        return Result(out, terms, memory_after(model, learner.memory, out, batch))

    return (Stage('bounds', bounds, moves=_is_estimator),
            Stage('task', task, moves=lambda name: not _is_estimator(name)))


def _is_estimator(name: str) -> bool:
    return name.startswith('estimate_')


def memory(model: Model, labels: Label, batch_size: int) -> 'Memory | tuple[()]':
    """The memory before training, for utterances that have one real value each; for others none."""
    return start(model, batch_size) if labels.value.shape[1:] == (1,) else ()


class Memory(NamedTuple):
    """Projections of the n utterances last seen, by the name of the estimate ('vision_from_text').

    rows: [n d]. signs: those of their labels; 0 where there is no row yet, or none that counts, [n].
    """

    rows: dict[str, Float[Array, 'n d']]
    signs: dict[str, Float[Array, 'n']]


def start(model: Model, size: int) -> Memory:
    """An empty memory; the authors' holds one batch."""
    widths = dict(zip(model.streams[1:], model.widths, strict=True))
    names = {f'{y}_from_{x}': widths[y] // 4 for x, y in pairs(model)}
    return Memory({name: jnp.zeros((size, width)) for name, width in names.items()},
                  {name: jnp.zeros(size) for name in names})


def memory_after(model: Model, memory: Memory, out: Output, batch: Batch) -> Memory:
    """The memory with a batch's utterances at its end and as many of the oldest gone."""
    rows: dict[str, Array] = {}
    signs: dict[str, Array] = {}
    for name, both, (_, projected) in _estimates(model, out):
        size = len(memory.signs[name])
        new = jax.lax.stop_gradient(jnp.where(both[:, None], projected, 0))
        rows[name] = jnp.concatenate([memory.rows[name], new])[-size:]
        signs[name] = jnp.concatenate([memory.signs[name], _signs(batch, both)])[-size:]
    return Memory(rows, signs)


def entropy(model: Model, out: Output, batch: Batch, memory: Memory) -> dict[str, losses.Term]:
    """What stage 1 adds to the loss: -the entropies of the estimated streams, weighted.

    Of a Gaussian for the utterances with positive labels and one for those with negative labels, in the memory
    and in the batch: a quarter of the sum of the logarithms of their covariances' determinants.
    """
    terms = {}
    for name, both, (_, projected) in _estimates(model, out):
        rows = jnp.concatenate([memory.rows[name], jnp.where(both[:, None], projected, 0)])
        signs = jnp.concatenate([memory.signs[name], _signs(batch, both)])
        value = (_log_determinant(rows, signs > 0) + _log_determinant(rows, signs < 0)) / 4
        terms[f'entropy_{name}'] = losses.coupled(-model.bound_weight * value, batch.present)
    return terms


def _signs(batch: Batch, there: Bool[Array, 'b']) -> Float[Array, 'b']:
    """Signs of the labels of the utterances that are there."""
    label = losses.target(batch.labels)
    if label.value.ndim != 2 or label.value.shape[1] != 1:
        raise ValueError(f'mmim: label: found shape {label.value.shape}, expected one real value an utterance, '
                         'whose sign the entropies need')
    return jnp.where(there & label.mask, jnp.sign(label.value[:, 0]), 0)


def _log_determinant(x: Float[Array, 'n d'], mask: Bool[Array, 'n']) -> Float[Array, '']:
    """Of the covariance of the rows under the mask; 0 where they are too few for it to be regular."""
    count, width = jnp.sum(mask), x.shape[-1]
    centred = jnp.where(mask[:, None], x - pool(x, mask, 'mean')[None], 0)
    regular = count > width
    covariance = jnp.where(regular, centred.T @ centred / jnp.maximum(count, 1), jnp.eye(width))
    return jnp.linalg.slogdet(covariance)[1]


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of declare-lab/Multimodal-Infomax (text, audio, vision), its BERT kept apart."""
    require_streams('mmim', model.streams, 3)
    reader, (text, audio, vision) = Reader(state, 'mmim'), model.streams
    reader.skip('text_enc.*')
    read = reader.width('cpc_zt.net.weight' if model.predictor_layers == 1 else 'cpc_zt.net.0.weight', 0) or 1
    widths = {text: read} | dict(zip((audio, vision), model.widths, strict=True))
    letters = {text: 't', audio: 'a', vision: 'v'}
    params: Params = {f'fuse_{k}': reader.dense(f'fusion_prj.linear_{k}', inputs, model.width)
                      for k, inputs in ((1, sum(widths.values())), (2, model.width))}
    params['head'] = reader.dense('fusion_prj.linear_3', model.width, model.classes)
    for name, theirs, states in zip((audio, vision), ('acoustic_enc', 'visual_enc'), model.states, strict=True):
        params[f'encode_{name}'] = _encoder(reader, theirs, states, widths[name], model.bidirectional)
    for x, y in pairs(model):
        params[f'estimate_{y}_from_{x}'] = _estimator(reader, f'mi_{letters[x]}{letters[y]}', widths[x], widths[y])
    for name, letter in letters.items():
        for k in range(model.predictor_layers):
            place = f'.{k + (k > 0)}' if model.predictor_layers > 1 else ''
            params[f'predict_{name}_{k}'] = reader.dense(
                f'cpc_z{letter}.net{place}', widths[name] if k else model.width, widths[name])
    reader.close()
    return {'params': params}


def _encoder(reader: Reader, prefix: str, states: int, width: int, bidirectional: bool) -> Params:
    rnn = f'{prefix}.rnn'
    if bidirectional:
        lstm = reader.recurrent('lstm', rnn, None, states, 1)
    else:
        lstm = {'forward_0': reader.lstm(rnn, None, states, 'l0')}
    return {'lstm': lstm, 'linear': reader.dense(f'{prefix}.linear_1', states * (1 + bidirectional), width)}


def _estimator(reader: Reader, prefix: str, inputs: int, width: int) -> Params:
    params = {'project': reader.dense(f'{prefix}.entropy_prj.0', width, width // 4)}
    for ours, theirs in (('mean', 'mlp_mu'), ('log_variance', 'mlp_logvar')):
        params[f'{ours}_1'] = reader.dense(f'{prefix}.{theirs}.0', inputs, width)
        params[f'{ours}_2'] = reader.dense(f'{prefix}.{theirs}.2', width, width)
    return params

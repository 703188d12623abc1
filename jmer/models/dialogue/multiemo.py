"""MultiEMO: attention-based correlation-aware fusion (Shi & Huang, ACL 2023).

Each stream passes a DialogueRNN of its own, in both directions; then every stream reads the others in a
stack of cross-attention layers, in which keys and values stay those of the DialogueRNN. The streams side by
side are scored. Two losses help the cross entropy: the sample-weighted focal contrastive loss on the fused
vectors, and the Soft-HGR correlation of every two streams.

Where this differs from the authors' code: padding and missing modalities are masked in the attention. Soft-
HGR is the published one; theirs takes covariances over the channels, with one more division by the number
of turns, and does so here with `hgr_over_channels`. Their dropout falls on the scores, here in front of
them. With `bidirectional` off and fewer `recurrent` streams the model is theirs for MELD. `causal`
leaves out the backward direction and lets attention see the past only.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader, require_streams, stack
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dialogue_rnn import DialogueRNN
from jmer.layers.dropout import Dropout
from jmer.layers.masked import MaskedDense
from jmer.layers.pooling import turn_mask, turn_vectors
from jmer.layers.transformer import Attention, layer_norm, recomputed
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'multi-head attention', 'coordinated representation', 'contrastive',
        'transformer', 'recurrent', 'context', 'speaker-aware', 'missing modality')
LABELS = ('class',)


class Model(Checked):
    """The defaults are the authors' for IEMOCAP. Attributes:
    classes: number of scores of a turn.
    streams: what is read; the authors' order is text, audio, vision.
    recurrent: the streams that a DialogueRNN reads; others are projected only.
    bidirectional: the DialogueRNNs run in both directions.
    context, context_width, listeners: attention, attention_width and listeners of `layers.dialogue_rnn.DialogueRNN`.
    width: features of a turn in every stream, a multiple of `heads`.
    layers: of cross-attention. hidden: width inside their feed-forward networks.
    hidden_out: width of the layer in front of the scores.
    causal: read the past only.
    dropout: after the DialogueRNNs, of what layers add, and in front of the scores.
    state_dropout: of new states of the DialogueRNNs.
    label_weight, contrast_weight, correlation_weight: of the losses.
    temperature, focus: of the contrastive loss.
    class_counts: turns of each class in the training part; () weighs all classes alike in that loss.
    sample_weight: exponent of the inverse class counts.
    hgr_over_channels: Soft-HGR as the authors' code computes it.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    recurrent: tuple[str, ...] = ('text', 'audio', 'vision')
    bidirectional: bool = True
    context: str = 'simple'
    context_width: int = 100
    listeners: int = 0
    width: int = 256
    heads: int = 4
    layers: int = 6
    hidden: int = 1024
    hidden_out: int = 256
    causal: bool = False
    dropout: float = 0.0
    state_dropout: float = 0.0
    label_weight: float = 0.2
    contrast_weight: float = 0.4
    correlation_weight: float = 0.4
    temperature: float = 0.8
    focus: float = 2.4
    class_counts: tuple[float, ...] = ()
    sample_weight: float = 1.1
    hgr_over_channels: bool = False

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        context = {name: self._context(name, batch, train) for name in self.streams}
        there = {name: turn_mask(batch.streams[name]) & batch.present for name in self.streams}
        fused = {name: self._fuse(name, context, there, batch.present, train) for name in self.streams}
        joined = Dense(self.width, name='join')(jnp.concatenate(list(fused.values()), -1))
        h: Array = nn.relu(Dense(self.hidden_out, name='hidden')(joined))
        h = Dropout(self.dropout, name='dropout_head')(h, train=train)
        logits = Dense(self.classes, name='head')(h)
        return Output(logits, {'fused': fused, 'joined': joined, 'there': there, 'context': context})

    def _context(self, name: str, batch: Batch, train: bool) -> Array:
        x: Array = MaskedDense(self.width, name=f'project_{name}')(turn_vectors(batch.streams[name]), batch.present)
        if name not in self.recurrent:
            return x
        speakers = jnp.zeros(x.shape[:2], int) if batch.speakers is None else batch.speakers
        states = [self.recurrence(f'{name}_{way}')(x, speakers, batch.present, train=train)
                  for way in self.directions()]
        x = states[0]
        if len(states) > 1:
            x = MaskedDense(self.width, name=f'{name}_states')(jnp.concatenate(states, -1), batch.present)
        return nn.relu(Dropout(self.dropout, name=f'dropout_{name}')(x, train=train))

    def _fuse(
        self, name: str, context: dict[str, Array], there: dict[str, Array], present: Array, train: bool
    ) -> Array:
        """A stream that has read the others through all layers, whose weights are stacked."""
        others = [other for other in self.streams if other != name]
        layer_type = recomputed(Layer, keep_dense=False)
        layers = nn.scan(layer_type, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
                         in_axes=nn.broadcast, length=self.layers)
        layer = layers(self.heads, self.hidden, self.causal, self.dropout, train, name=f'{name}_layers')
        sources, seen = [context[other] for other in others], [there[other] for other in others]
        return layer(context[name], sources, seen, present)[0]

    def directions(self) -> tuple[str, ...]:
        return ('forward', 'backward') if self.bidirectional and not self.causal else ('forward',)

    def recurrence(self, name: str, **place: Any) -> DialogueRNN:
        return DialogueRNN(self.width, self.width, self.width, self.context, self.context_width, self.listeners,
                           self.state_dropout, name.endswith('_backward'), name=name, **place)


class Layer(nn.Module):
    """One attention to each source after the other, then a feed-forward network; each added, then normalised."""

    heads: int
    hidden: int
    causal: bool
    dropout: float
    train: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'b u d'],
        sources: list[Float[Array, 'b u d']],
        there: list[Bool[Array, 'b u']],
        present: Bool[Array, 'b u'],
    ) -> tuple[Float[Array, 'b u d'], None]:
        def add(x, y, name):
            y = Dropout(self.dropout, name=f'dropout_{name}')(y, train=self.train)
            return layer_norm(f'norm_{name}')(x + y)

        for k, (source, mask) in enumerate(zip(sources, there, strict=True)):
            seen = present[:, :, None] & mask[:, None]
            seen = jnp.tril(seen) if self.causal else seen
            y = Attention(self.heads, name=f'attention_{k}')(x, source, seen, train=self.train)
            x = add(x, y, f'attention_{k}')
        y = nn.relu(MaskedDense(self.hidden, name='expand')(x, present))
        y = MaskedDense(x.shape[-1], name='contract')(y, present)
        return add(x, y, 'feedforward'), None


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """Cross entropy, the focal contrastive loss of the fused vectors, and minus the streams' correlations."""
    label = losses.target(batch.labels)
    weights = _normalised(model.class_counts, model.sample_weight) if model.class_counts else None
    contrast = losses.swfc(out.aux['joined'], label, temperature=model.temperature, focus=model.focus,
                           class_weights=weights)
    terms = {'label': losses.cross_entropy(out.logits, label), 'contrast': contrast,
             'correlation': losses.coupled(_correlation(model, out, label.mask), label.mask)}
    return losses.weighted(terms, label=model.label_weight, contrast=model.contrast_weight,
                           correlation=model.correlation_weight)


def _normalised(counts: tuple[float, ...], exponent: float) -> tuple[float, ...]:
    """Inverse class counts to a power, with sum 1."""
    weights = [(sum(counts) / max(count, 1)) ** exponent for count in counts]
    return tuple(weight / sum(weights) for weight in weights)


def _correlation(model: Model, out: Output, mask: Bool[Array, 'b u']) -> Float[Array, '']:
    fused, there, value = out.aux['fused'], out.aux['there'], jnp.zeros(())
    for m, n in itertools.combinations(model.streams, 2):
        both = mask & there[m] & there[n]
        part = losses.soft_hgr(fused[m], fused[n], both, over_channels=model.hgr_over_channels)
        value -= part / jnp.maximum(jnp.sum(both), 1) if model.hgr_over_channels else part
    return value


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of TaoShi1998/MultiEMO (three streams)."""
    require_streams('multiemo', model.streams, 3)
    reader, d = Reader(state, 'multiemo'), model.width
    names = dict(zip(model.streams, ('text', 'audio', 'visual'), strict=True))
    params: dict[str, Any] = {}
    for name, key in names.items():
        params[f'project_{name}'] = reader.dense(f'{key}_fc', None, d)
        if name in model.recurrent:
            for way, end in zip(model.directions(), 'fr', strict=False):
                params[f'{name}_{way}'] = reader.dialogue_rnn(
                    f'{key}_dialoguernn.dialog_rnn_{end}.dialogue_cell', model.recurrence(f'{name}_{way}', parent=None))
        if name in model.recurrent and len(model.directions()) > 1:
            params[f'{name}_states'] = reader.dense(f'{key}_dialoguernn.linear', 2 * d, d)
        prefix = f'multiattn.multiattn_{key}.multiattn_layers'
        layers = [_layer(reader, f'{prefix}.{k}', model) for k in range(model.layers)]
        params[f'{name}_layers'] = stack(layers)
    if len(model.directions()) == 1:
        reader.skip('*_dialoguernn.*')          # stored and not used in their runs on MELD
    params['join'] = reader.dense('fc', 3 * d, d)
    params['hidden'] = reader.dense('mlp.linear_1', d, model.hidden_out)
    params['head'] = reader.dense('mlp.linear_2', model.hidden_out, model.classes)
    reader.close()
    return {'params': params}


def _layer(reader: Reader, prefix: str, model: Model) -> Params:
    d = model.width
    params = {
        'expand': reader.dense(f'{prefix}.ff.linear_W1', d, model.hidden),
        'contract': reader.dense(f'{prefix}.ff.linear_W2', model.hidden, d),
        'norm_feedforward': reader.layer_norm(f'{prefix}.add_norm_3.layer_norm', d),
    }
    for k in (0, 1):
        params[f'attention_{k}'] = _attention(reader, f'{prefix}.attn_{k + 1}', model)
        params[f'norm_attention_{k}'] = reader.layer_norm(f'{prefix}.add_norm_{k + 1}.layer_norm', d)
    return params


def _attention(reader: Reader, prefix: str, model: Model) -> Params:
    """Theirs has three linear layers for each head."""
    heads = [f'{prefix}.attention_heads.{k}' for k in range(model.heads)]
    query, key, value = ([reader.dense(f'{head}.{part}_matrix', model.width, model.width // model.heads)
                          for head in heads] for part in ('query', 'key', 'value'))

    def side_by_side(parts: list[Params]) -> Params:
        return {name: jnp.concatenate([part[name] for part in parts], -1) for name in ('kernel', 'bias')}

    return {'query': side_by_side(query), 'key_value': side_by_side([*key, *value]),
            'attention_out': reader.dense(f'{prefix}.projection_matrix', model.width, model.width)}

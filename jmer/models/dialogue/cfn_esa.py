"""CFN-ESA: cross-modal fusion with emotion-shift awareness (Li et al., IEEE TAFFC 2024, arXiv:2307.15432).

Recurrent layers, the same for all streams, read the dialogue. Attention layers follow in which every stream
reads itself, the first one (text) reads the others, and the others read the first. The streams side by side
are scored, and any two turns of a dialogue are asked whether the emotion differs between them.

Where this differs from the authors' code: padding and missing modalities are masked; theirs adds 1 to the
scores of present keys instead. Their text comes in four layers of a language model, of which the corpus has
to supply one, a sum, or all side by side. `causal` lets recurrence and attention read the past only.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader, require_streams, stack
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout, keep_probability
from jmer.layers.masked import MaskedDense
from jmer.layers.pooling import turn_mask, turn_vectors
from jmer.layers.recurrent import BiGRU, BiLSTM
from jmer.layers.transformer import Attention, layer_norm, recomputed
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'multi-head attention', 'transformer', 'recurrent', 'context',
        'missing modality')
LABELS = ('class',)
CELLS = {'gru': BiGRU, 'lstm': BiLSTM}


class Model(Checked):
    """The defaults are the authors' for IEMOCAP. Attributes:
    classes: number of scores of a turn.
    streams: what is read; the first is read by the others. The authors' order is text, vision, audio.
    width: features of a turn in every stream, a multiple of `heads`.
    recurrent_layers: in front of the attention. cell: 'gru' or 'lstm'.
    residual: recurrent layers add their input and have a feed-forward network.
    layers: of attention.
    shift_hidden: width of the layer in front of the scores of two turns.
    causal: read the past only.
    dropout: of what attention layers add, and in front of the scores.
    recurrent_dropout: of what recurrent layers add.
    class_weights: of the cross entropy; () means 1 each.
    shift_weight: of the loss of emotion shifts.
    shift_class_weights: of unchanged and changed emotions in it.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'vision', 'audio')
    width: int = 512
    heads: int = 8
    recurrent_layers: int = 2
    cell: str = 'gru'
    residual: bool = True
    layers: int = 5
    shift_hidden: int = 128
    causal: bool = False
    dropout: float = 0.4
    recurrent_dropout: float = 0.2
    class_weights: tuple[float, ...] = ()
    shift_weight: float = 1.0
    shift_class_weights: tuple[float, float] = (0.8871540099361249, 1.1457378551787352)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if self.cell not in CELLS:
            raise ValueError(f'cfn_esa: cell: found {self.cell!r}, expected one of {", ".join(CELLS)}')
        there = {name: turn_mask(batch.streams[name]) & batch.present for name in self.streams}
        read = self._recur(batch, there, train)
        layer_type = recomputed(Layer, keep_dense=True)
        layers = nn.scan(layer_type, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
                         in_axes=nn.broadcast, length=self.layers)
        attention = layers(self.streams, self.heads, self.causal, self.dropout, train, name='layers')
        join = MaskedDense(self.width, name='join')

        # Of every two turns the second comes from a second pass, which differs by its dropout alone: a dialogue stands
        # there twice.
        passes = 2 if train and keep_probability(self.dropout) < 1 else 1
        twice = jax.tree.map(lambda x: jnp.repeat(x, passes, 0), (read, there, batch.present))
        attended, _ = attention(*twice)
        x: Array = nn.relu(join(jnp.concatenate([attended[name] for name in self.streams], -1), twice[-1]))
        x = Dropout(self.dropout, name='dropout_fused')(x, train=train)
        fused, twin = x[::passes], x[passes - 1::passes]
        aux = {'recurrent': read, 'fused': fused, 'shift': self._shift(fused, twin, train)}
        return Output(Dense(self.classes, name='head')(fused), aux)

    def _recur(self, batch: Batch, there: dict[str, Array], train: bool) -> dict[str, Array]:
        """Every stream read by the recurrent layers, which are shared: the streams pass them as one batch."""
        x: Array = jnp.concatenate([MaskedDense(self.width, name=f'project_{name}')(
            turn_vectors(batch.streams[name]), there[name]) for name in self.streams])
        mask = jnp.concatenate([there[name] for name in self.streams])
        for k in range(self.recurrent_layers):
            layer = Recurrent(self.width, self.cell, self.residual, self.causal, self.recurrent_dropout,
                              name=f'recurrent_{k}')
            x = layer(x, mask, train=train)
        return dict(zip(self.streams, jnp.split(x, len(self.streams)), strict=True))

    def _shift(self, x: Array, twin: Array, train: bool) -> Array:
        """Scores of 'the same' and 'changed' for every two turns, [b u u 2]."""
        first = Dense(self.shift_hidden, name='shift_first')(x)[:, :, None]
        second = Dense(self.shift_hidden, use_bias=False, name='shift_second')(twin)[:, None]
        h = Dropout(self.dropout, name='dropout_shift')(nn.relu(first + second), train=train)
        return Dense(2, name='shift')(h)


class Recurrent(nn.Module):
    """A bidirectional recurrent layer, projected, and a feed-forward network; inputs are added, then normalised."""

    width: int
    cell: str
    residual: bool
    causal: bool
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, 'b u d'], mask: Bool[Array, 'b u'], *, train: bool) -> Float[Array, 'b u d']:
        y = CELLS[self.cell](self.width, causal=self.causal, name='rnn')(x, mask, train=train)
        y = Dropout(self.dropout, name='dropout_rnn')(MaskedDense(self.width, name='project')(y, mask), train=train)
        if not self.residual:
            return y
        y = layer_norm('norm_rnn')(x + y)
        z = FeedForward(self.dropout, name='feedforward')(y, mask, train=train)
        return layer_norm('norm_feedforward')(x + y + z)


class Layer(nn.Module):
    """Each stream reads itself, the first one the others, the others the first; then a feed-forward network."""

    streams: tuple[str, ...]
    heads: int
    causal: bool
    dropout: float
    train: bool

    @nn.compact
    def __call__(
        self, x: dict[str, Float[Array, 'b u d']], there: dict[str, Bool[Array, 'b u']], present: Bool[Array, 'b u']
    ) -> tuple[dict[str, Float[Array, 'b u d']], None]:
        main, *others = self.streams        # x has lost their order
        seen = {name: present[:, :, None] & mask[:, None] for name, mask in there.items()}
        seen = {name: jnp.tril(mask) if self.causal else mask for name, mask in seen.items()}
        own: dict[str, Array] = {name: layer_norm(f'norm_{name}')(h + self._read(name, h, name, h, seen))
                                 for name, h in x.items()}
        found = jnp.concatenate([self._read(main, own[main], name, own[name], seen) for name in others], -1)
        read: dict[str, Array] = {main: nn.relu(MaskedDense(x[main].shape[-1], name='join')(found, present))}
        read |= {name: self._read(name, own[name], main, own[main], seen) for name in others}
        after = {}
        for name, h in x.items():
            y = layer_norm(f'norm_read_{name}')(h + own[name] + read[name])
            z = FeedForward(self.dropout, name=f'feedforward_{name}')(y, present, train=self.train)
            after[name] = layer_norm(f'norm_feedforward_{name}')(h + y + z)
        return after, None

    def _read(self, name: str, x: Array, source: str, y: Array, seen: dict[str, Array]) -> Array:
        read = Attention(self.heads, self.dropout, name=f'{name}_from_{source}')(x, y, seen[source], train=self.train)
        return Dropout(self.dropout, name=f'dropout_{name}_from_{source}')(read, train=self.train)


class FeedForward(nn.Module):
    """Two linear layers, twice as wide inside."""

    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, 'b u d'], mask: Bool[Array, 'b u'], *, train: bool) -> Float[Array, 'b u d']:
        h: Array = nn.relu(MaskedDense(2 * x.shape[-1], name='expand')(x, mask))
        h = Dropout(self.dropout, name='dropout_expand')(h, train=train)
        h = MaskedDense(x.shape[-1], name='contract')(h, mask)
        return Dropout(self.dropout, name='dropout_contract')(h, train=train)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """Cross entropy of the turns, and of the shifts between any two of a dialogue."""
    label = losses.target(batch.labels)
    terms = {'label': losses.cross_entropy(out.logits, label, class_weights=model.class_weights or None),
             'shift': losses.emotion_shift(out.aux['shift'], label, weights=model.shift_class_weights)}
    return losses.weighted(terms, shift=model.shift_weight)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of lijfrank-open/CFN-ESA (three streams)."""
    require_streams('cfn_esa', model.streams, 3)
    reader, d = Reader(state, 'cfn_esa'), model.width
    letter = dict(zip(model.streams, 'tva', strict=True))
    params: dict[str, Any] = {f'project_{name}': reader.dense(f'linear_{letter[name]}', None, d)
                              for name in model.streams}
    for k in range(model.recurrent_layers):
        params[f'recurrent_{k}'] = _recurrent(reader, f'rume.layers.{k}', model)
    params['layers'] = stack([_layer(reader, f'acme.layers.{k}', letter, d) for k in range(model.layers)])
    params['join'] = reader.dense('linear_cat', 3 * d, d)
    kernel = reader.take('emotion_shift.fc.0.weight', model.shift_hidden, 2 * d).T
    params['shift_first'] = {'kernel': kernel[:d], 'bias': reader.take('emotion_shift.fc.0.bias', model.shift_hidden)}
    params['shift_second'] = {'kernel': kernel[d:]}
    params['shift'] = reader.dense('emotion_shift.classify.0', model.shift_hidden, 2)
    params['head'] = reader.dense('smax_fc', d, model.classes)
    reader.close()
    return {'params': params}


def _recurrent(reader: Reader, prefix: str, model: Model) -> Params:
    d = model.width
    params = {'rnn': reader.recurrent(model.cell, f'{prefix}.rnn', d, d, 1),
              'project': reader.dense(f'{prefix}.linear_rnn', 2 * d, d)}
    if not model.residual:
        reader.skip(f'{prefix}.*')      # stored and not used
        return params
    return params | {
        'norm_rnn': reader.layer_norm(f'{prefix}.norm_rnn', d),
        'feedforward': _feed_forward(reader, f'{prefix}.fc', d),
        'norm_feedforward': reader.layer_norm(f'{prefix}.norm_fc', d),
    }


def _layer(reader: Reader, prefix: str, letter: dict[str, str], d: int) -> Params:
    main, *others = letter
    params: Params = {'join': reader.dense(f'{prefix}.linear_cat', 2 * d, d)}
    for name, m in letter.items():
        params[f'{name}_from_{name}'] = reader.attention(f'{prefix}.self_att_{m}', d)
        params[f'norm_{name}'] = reader.layer_norm(f'{prefix}.norm_{m}', d)
        params[f'norm_read_{name}'] = reader.layer_norm(f'{prefix}.norm_{m}1', d)
        params[f'norm_feedforward_{name}'] = reader.layer_norm(f'{prefix}.norm_{m}2', d)
        params[f'feedforward_{name}'] = _feed_forward(reader, f'{prefix}.fc_{m}', d)
    for name in others:
        params[f'{main}_from_{name}'] = reader.attention(f'{prefix}.cross_att_{letter[main]}{letter[name]}', d)
        params[f'{name}_from_{main}'] = reader.attention(f'{prefix}.cross_att_{letter[name]}', d)
    return params


def _feed_forward(reader: Reader, prefix: str, d: int) -> Params:
    return {'expand': reader.dense(prefix, d, 2 * d), 'contract': reader.dense(f'{prefix}1', 2 * d, d)}

"""MulT: a multimodal transformer for unaligned sequences (Tsai et al., ACL 2019).

Every stream reads every other one through a cross-modal encoder, then itself through a memory encoder
over what it has read; the last present steps of all streams, joined, pass a residual block.

Where this differs from the authors' code: padding is masked and invisible (theirs is zeros that attention
sees), a stream may be missing, any number of streams from two on will do, and memory encoders whose
branch is switched off are not built. `kernels`, `positions` and `text_dropout` also cover the
re-implementation in MMSA (kernels 5, 1, 3 and no positions).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer.author import Reader, stack
from jmer.layers.attention import Encoder
from jmer.layers.dropout import Dropout
from jmer.layers.position import positions
from jmer.types import Batch, Output, Variables

TAGS = ('cross-modal attention', 'unaligned', 'deep fusion', 'transformer')


class Model(nn.Module):
    """Attributes (the defaults are the authors' for MOSEI):

    classes: classes or regression targets.
    streams: what is read, in the authors' order; the first one is dropped out as text is.
    branches: the streams that read and are read from at the end; None means all, one gives the
        authors' single-branch variants.
    width: features of every stream after projection, a multiple of `heads`.
    layers: of the cross-modal encoders; memory encoders have at least 3.
    kernels: steps that a projection spans, one a stream, without padding; () means 1 for all.
    text_dropout: of the first stream's features.
    attention_dropout: of attention to the first stream and of every stream to itself.
    attention_dropout_others: of attention to the second stream, the third, ...; 0 where not given.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    branches: tuple[str, ...] | None = None
    width: int = 30
    heads: int = 5
    layers: int = 5
    kernels: tuple[int, ...] = ()
    causal: bool = True
    positions: bool = True
    text_dropout: float = 0.25
    embed_dropout: float = 0.25
    attention_dropout: float = 0.1
    attention_dropout_others: tuple[float, ...] = ()
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1
    out_dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        x, mask = {}, {}
        for i, name in enumerate(self.streams):
            features = jnp.where(batch.streams[name].mask[..., None], batch.streams[name].x, 0)
            if i == 0:
                features = Dropout(self.text_dropout)(features, train=train)
            x[name], mask[name] = self._project(i, features, batch.streams[name].mask)

        crossed, last = {}, {}
        for target in self.branches or self.streams:
            read = []
            for source in self._sources(target):
                name = f'{target}_from_{source}'
                crossed[name] = self._encoder(name, self.layers, self._rate(source))(
                    x[target], mask[target], x[source], mask[source], train=train)
                read.append(crossed[name])
            memory = self._encoder(f'{target}_memory', max(self.layers, 3), self.attention_dropout)
            h = memory(jnp.concatenate(read, -1), mask[target], train=train, last=True)
            last[target] = jnp.where(mask[target].any(-1)[:, None], h[:, 0], 0)

        joined = jnp.concatenate(list(last.values()), -1)
        hidden = nn.relu(_dense(joined.shape[-1], 'residual_in')(joined))
        hidden = Dropout(self.out_dropout)(hidden, train=train)
        hidden = joined + _dense(joined.shape[-1], 'residual_out')(hidden)
        aux = {
            'joined': joined,
            'last': last,
            'crossed': crossed,
            'positions': {name: positions(x[name]) for name in self.streams if self.positions},
        }
        return Output(_dense(self.classes, 'out')(hidden), aux)

    def _check(self) -> None:
        n = len(self.streams)
        if n < 2:
            raise ValueError(f'mult: streams: found {self.streams}, expected at least two')
        for field, size in (('kernels', len(self.kernels) or n),
                            ('attention_dropout_others', len(self.attention_dropout_others) + 1)):
            if size > n or (field == 'kernels' and size < n):
                raise ValueError(f'mult: {field}: found {getattr(self, field)} for {n} streams')
        if self.width % self.heads:
            raise ValueError(f'mult: width: found {self.width}, expected a multiple of {self.heads} heads')
        for name in self.branches or ():
            if name not in self.streams:
                raise ValueError(f'mult: branches: found {name!r}, expected some of {self.streams}')

    def _sources(self, target: str) -> list[str]:
        return [name for name in self.streams if name != target]

    def _rate(self, source: str) -> float:
        rates = (self.attention_dropout, *self.attention_dropout_others)
        return dict(zip(self.streams, rates, strict=False)).get(source, 0.0)

    def _encoder(self, name: str, layers: int, rate: float) -> Encoder:
        return Encoder(self.heads, layers, rate, self.relu_dropout, self.residual_dropout,
                       self.embed_dropout, self.causal, self.positions, name=name)

    def _project(self, i, x, mask):
        """A convolution without bias or padding; none where the width is right already."""
        if x.shape[-1] == self.width:
            return x, mask
        kernel = self.kernels[i] if self.kernels else 1
        short = max(0, kernel - x.shape[1])
        x, mask = jnp.pad(x, ((0, 0), (0, short), (0, 0))), jnp.pad(mask, ((0, 0), (0, short)))
        steps = x.shape[1] - kernel + 1
        windows = jnp.concatenate([x[:, k:k + steps] for k in range(kernel)], -1)
        dense = nn.Dense(self.width, use_bias=False, kernel_init=_uniform, name=f'{self.streams[i]}_in')
        return dense(windows), mask[:, kernel - 1:]


_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def _dense(width: int, name: str) -> nn.Dense:
    return nn.Dense(width, kernel_init=_uniform, name=name)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """The authors' state_dict (theirs or MMSA's) as variables; they know three streams only."""
    if len(model.streams) != 3:
        raise ValueError(f'mult: the authors have three streams, this model has {model.streams}')
    reader, letter = Reader(state, 'mult'), dict(zip(model.streams, 'lav', strict=True))
    reader.skip('trans_*.version', 'trans_*.embed_positions._float_tensor')
    branches, d, params = model.branches or model.streams, model.width, {}
    for i, name in enumerate(model.streams):
        kernel = model.kernels[i] if model.kernels else 1
        projection = reader.take(f'proj_{letter[name]}.weight', d, None, kernel)
        if projection.shape[1] != d:      # the authors store it and do not use it
            params[f'{name}_in'] = {'kernel': projection.transpose(2, 1, 0).reshape(-1, d)}
        memory = _encoder_from_author(reader, f'trans_{letter[name]}_mem', max(model.layers, 3), 2 * d)
        if name not in branches:          # theirs are built all the same
            continue
        params[f'{name}_memory'] = memory
        for source in model._sources(name):
            params[f'{name}_from_{source}'] = _encoder_from_author(
                reader, f'trans_{letter[name]}_with_{letter[source]}', model.layers, d)
    joined = 2 * d * len(branches)
    params['residual_in'] = reader.dense('proj1', joined, joined)
    params['residual_out'] = reader.dense('proj2', joined, joined)
    params['out'] = reader.dense('out_layer', joined, model.classes)
    reader.close()
    return {'params': params}


def _encoder_from_author(reader, prefix, layers, d):
    def layer(p):
        return {
            'attention_norm': reader.layer_norm(f'{p}.layer_norms.0', d),
            'query_key_value': {
                'kernel': reader.take(f'{p}.self_attn.in_proj_weight', 3 * d, d).T,
                'bias': reader.take(f'{p}.self_attn.in_proj_bias', 3 * d),
            },
            'attention_out': reader.dense(f'{p}.self_attn.out_proj', d, d),
            'feedforward_norm': reader.layer_norm(f'{p}.layer_norms.1', d),
            'expand': reader.dense(f'{p}.fc1', d, 4 * d),
            'contract': reader.dense(f'{p}.fc2', 4 * d, d),
        }

    return {'layers': stack([layer(f'{prefix}.layers.{i}') for i in range(layers)]),
            **reader.layer_norm(f'{prefix}.layer_norm', d)}

"""MulT: a multimodal transformer for unaligned sequences (Tsai et al., ACL 2019, arXiv:1906.00295).

Every stream reads every other one through a cross-modal encoder, then all it has read through a memory
encoder; the last present steps of all streams, joined, pass a residual block.

Where this differs from the authors' code: padding is masked (theirs is zeros that attention sees), a
stream may be missing, any number of streams from two on will do, and what a switched-off branch would
need is not built. With `kernels`, `positions` and `text_dropout` it is also the re-implementation in
MMSA, whose convolutions are 5, 1 and 3 steps wide and which adds no positions.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer.author import Reader, require_streams
from jmer.layers.attention import Encoder
from jmer.layers.checked import Checked
from jmer.layers.conv import inside
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.position import positions
from jmer.types import Batch, Output, Stream, Variables

TAGS = ('deep fusion', 'cross-modality attention', 'transformer', 'unaligned', 'missing modality')


class Model(Checked):
    """The defaults are the authors' for MOSEI. Attributes:
    classes: number of scores.
    streams: what is read; the authors' order is text, audio, vision.
    branches: the streams that read the others; () means all. One alone is the authors' `lonly` and kin.
    width: features of a step after projection, a multiple of `heads`; a stream that has this width
        already is not projected.
    layers: of a cross-modal encoder; memory encoders have at least 3.
    kernels: steps that a projection sees, one number a stream, without padding; () means 1 each.
    causal: query t sees key s only if s <= t + |S - T|, with the lengths S and T of the item.
    positions: whether encoders add sinusoids.
    text_dropout: of the features of the first stream.
    attention_dropout: of reading the first stream, and of every memory encoder.
    other_attention_dropout: of reading the second stream, the third, ...; 0 where not given.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    branches: tuple[str, ...] = ()
    width: int = 30
    heads: int = 5
    layers: int = 5
    kernels: tuple[int, ...] = ()
    causal: bool = True
    positions: bool = True
    text_dropout: float = 0.25
    embed_dropout: float = 0.25
    attention_dropout: float = 0.1
    other_attention_dropout: tuple[float, ...] = ()
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1
    out_dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        streams = {name: self._project(name, batch.streams[name], train) for name in self.streams}
        crossed, last = {}, {}
        for name in self._branches():
            x, mask = streams[name]
            read = []
            for source in self._sources(name):
                encoder = self._encoder(f'{name}_from_{source}', self.layers, self._rate(source))
                read.append(encoder(x, mask, *streams[source], train=train))
                crossed[f'{name}_from_{source}'] = read[-1]
            memory = self._encoder(f'{name}_memory', self._memory_layers(), self.attention_dropout)
            last[name] = memory(jnp.concatenate(read, -1), mask, train=train, last=True)[:, 0]

        joined = jnp.concatenate(list(last.values()), -1)
        hidden = nn.relu(_dense(joined.shape[-1], 'residual_in')(joined))
        kept = Dropout(self.out_dropout, name='dropout_out')(hidden, train=train)
        hidden = joined + _dense(joined.shape[-1], 'residual_out')(kept)
        added = {name: positions(stream.x) for name, stream in streams.items()} if self.positions else {}
        return Output(_dense(self.classes, 'head')(hidden),
                      {'joined': joined, 'last': last, 'crossed': crossed, 'positions': added})

    def _project(self, name: str, stream: Stream, train: bool) -> Stream:
        """A convolution over the steps, without bias or padding. A window is present if its last step is."""
        rate = self.text_dropout if name == self.streams[0] else 0.0
        x = Dropout(rate, name=f'dropout_{name}')(
            jnp.where(stream.mask[..., None], stream.x, 0), train=train)
        if x.shape[-1] == self.width:
            return Stream(x, stream.mask)
        windows, mask = inside(Stream(x, stream.mask), self._kernel(name))
        project = Dense(self.width, use_bias=False, kernel_init=_uniform, name=f'project_{name}')
        return Stream(project(windows), mask)

    def _encoder(self, name: str, layers: int, attention_dropout: float) -> Encoder:
        return Encoder(self.heads, layers, attention_dropout, self.relu_dropout, self.residual_dropout,
                       self.embed_dropout, self.causal, self.positions, name=name)

    def _branches(self) -> tuple[str, ...]:
        return self.branches or self.streams

    def _sources(self, branch: str) -> list[str]:
        return [name for name in self.streams if name != branch]

    def _memory_layers(self) -> int:
        return max(self.layers, 3)

    def _kernel(self, stream: str) -> int:
        return self.kernels[self.streams.index(stream)] if self.kernels else 1

    def _rate(self, source: str) -> float:
        rates = (self.attention_dropout, *self.other_attention_dropout)
        return dict(zip(self.streams, rates, strict=False)).get(source, 0.0)

    def _check(self) -> None:
        def fault(field: str, expected: str) -> ValueError:
            return ValueError(f'mult: {field}: found {getattr(self, field)}, expected {expected}')

        if len(set(self.streams)) < max(2, len(self.streams)):
            raise fault('streams', 'two or more, all different')
        if not set(self.branches) <= set(self.streams):
            raise fault('branches', f'some of {self.streams}')
        if self.width % self.heads:
            raise fault('width', f'a multiple of {self.heads} heads')
        if len(self.kernels) not in (0, len(self.streams)):
            raise fault('kernels', f'one for each of {self.streams}, or none')
        if len(self.other_attention_dropout) >= len(self.streams):
            raise fault('other_attention_dropout', f'at most one for each of {self.streams[1:]}')


_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')       # PyTorch's


def _dense(width: int, name: str) -> Dense:
    return Dense(width, kernel_init=_uniform, name=name)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of yaohungt/Multimodal-Transformer, or of MMSA's MULT (three streams)."""
    require_streams('mult', model.streams, 3)
    reader, letter = Reader(state, 'mult'), dict(zip(model.streams, 'lav', strict=True))
    d, params = model.width, {}
    for name in model.streams:
        kernel = reader.take(f'proj_{letter[name]}.weight', d, None, model._kernel(name))
        if kernel.shape[1] != d:            # else the authors store it and do not use it
            params[f'project_{name}'] = {'kernel': kernel.transpose(2, 1, 0).reshape(-1, d)}
        memory = reader.encoder(f'trans_{letter[name]}_mem', model._memory_layers(), 2 * d)
        if name not in model._branches():   # likewise
            continue
        params[f'{name}_memory'] = memory
        for source in model._sources(name):
            params[f'{name}_from_{source}'] = reader.encoder(
                f'trans_{letter[name]}_with_{letter[source]}', model.layers, d)
    joined = 2 * d * len(model._branches())
    params['residual_in'] = reader.dense('proj1', joined, joined)
    params['residual_out'] = reader.dense('proj2', joined, joined)
    params['head'] = reader.dense('out_layer', joined, model.classes)
    reader.close()
    return {'params': params}

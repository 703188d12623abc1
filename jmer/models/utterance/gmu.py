"""GMU: gated multimodal unit (Arevalo et al., ICLR workshop 2017, arXiv:1702.01992).

Each stream is pooled over time, normalised and projected; a gate, which sees all projections, decides
per hidden unit how much of each stream passes; a maxout network reads the fused vector. With two streams
one gate z weighs the first and 1 - z the second; with more, each stream has a gate of its own, as the
paper's section 3.1 has it.

Where this differs from the authors' code: streams may be sequences (pooled first), and an absent stream
neither passes nor is seen by the gate; of two streams the one that is there then passes whole.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer.author import Reader, require_streams
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.norm import BatchNorm
from jmer.layers.pooling import pooled_streams
from jmer.types import Batch, Output, Variables

TAGS = ('deep fusion', 'gated', 'joint representation', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: names of the streams; the single gate of two streams weighs the first.
    hidden: width of the projections and of the maxout layers.
    pieces: linear pieces of a maxout unit.
    pooling: how a stream becomes a vector, see `layers.pooling`.
    dropout: rate on the input of every linear layer but the gate.
    """

    classes: int
    streams: tuple[str, ...] = ('vision', 'text')
    hidden: int = 512
    pieces: int = 2
    pooling: str = 'mean'
    dropout: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        def drop(x, name):
            return Dropout(self.dropout, name=f'dropout_{name}')(x, train=train)

        def norm(x, mask, name):
            return BatchNorm(name=f'norm_{name}')(x, mask, train=train)

        vectors, there = pooled_streams(batch, self.streams, self.pooling)
        projections = []
        for m, (name, x) in enumerate(zip(self.streams, vectors, strict=True)):
            x = drop(norm(x, there[:, m] & batch.present, name), name)
            x = Dense(self.hidden, use_bias=False, name=f'project_{name}')(x)
            projections.append(jnp.where(there[:, m, None], x, 0.0))
        gates = self._gates(jnp.concatenate(projections, -1), there)
        fused = jnp.sum(gates * jnp.tanh(jnp.stack(projections, 1)), 1)

        x = fused
        for k in (1, 2):
            x = drop(norm(x, batch.present, f'fused_{k}'), f'fused_{k}')
            x = Dense(self.hidden * self.pieces, name=f'maxout_{k}')(x)
            x = jnp.max(x.reshape(-1, self.hidden, self.pieces), -1)
        x = drop(norm(x, batch.present, 'fused_3'), 'fused_3')
        logits = Dense(self.classes, name='head')(x)
        return Output(logits, {'gates': gates, 'fused': fused})

    def _gates(self, x, there):
        """Weights of the streams, [b m hidden]; an absent stream has none."""
        bimodal = len(self.streams) == 2
        units = self.hidden * (1 if bimodal else len(self.streams))
        z = nn.sigmoid(Dense(units, use_bias=False, name='gate')(x))
        z = z.reshape(len(x), -1, self.hidden)
        gates = jnp.concatenate([z, 1.0 - z], 1) if bimodal else z
        gates = jnp.where(there[..., None], gates, 0.0)
        if bimodal:
            share = jnp.sum(gates, 1, keepdims=True)   # 1 where both are there
            gates = gates / jnp.where(share > 0, share, 1.0)
        return gates


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from the PyTorch transcription of johnarevalo/gmu-mmimdb (two streams)."""
    require_streams('gmu', model.streams, 2)
    reader, h = Reader(state, 'gmu'), model.hidden
    params, statistics = {}, {}
    for name, norm, project in zip(model.streams, ('bn_v', 'bn_t'), ('visual', 'textual'), strict=True):
        params[f'norm_{name}'], statistics[f'norm_{name}'] = reader.batch_norm(norm, None)
        width = reader.width(f'{norm}.weight', 0)
        params[f'project_{name}'] = reader.dense(project, width, h, bias=False)
    params['gate'] = reader.dense('gate', 2 * h, h, bias=False)
    for k, norm in enumerate(('bn1', 'bn2', 'bnl'), 1):
        params[f'norm_fused_{k}'], statistics[f'norm_fused_{k}'] = reader.batch_norm(norm, h)
    for k in (1, 2):
        params[f'maxout_{k}'] = reader.dense(f'linear{k}.lin', h, h * model.pieces)
    params['head'] = reader.dense('linear3', h, model.classes)
    reader.close()
    return {'params': params, 'batch_stats': statistics}

"""DWFormer: dynamic window transformer for speech emotion (Chen et al., ICASSP 2023).

A transformer layer says how much attention every step receives. Steps above the median of that and steps
below it form windows of changing length; a layer reads within each window, another reads across one vector
per window, and both together say what the next block splits by.

Where this differs from the authors' code: in theirs padding takes part in attention, windows and pooling,
and how much attention a window receives depends on how many windows other clips of the batch have; here
neither is so, unless `attend_padding`. Windows are memberships of a fixed number, which no split exceeds.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.author import Reader
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.graph import softmax
from jmer.layers.pooling import pool
from jmer.layers.postnorm import PostNorm
from jmer.layers.transformer import layer_norm
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('speech', 'transformer', 'multi-head attention')


class Windows(NamedTuple):
    """How steps are split.

    member: True where step t belongs to window w. together: whether two steps share a window.
    strong: whether a step received much attention.
    """

    member: Bool[Array, 'b w t']
    together: Bool[Array, 'b t t']
    strong: Bool[Array, 'b t']


def split(score: Float[Array, 'b t'], threshold: Float[Array, 'b'], mask: Bool[Array, 'b t']) -> Windows:
    """A window ends where the score crosses its threshold, but none is followed by one of a single step.

    Hence there are at most t // 2 + 1 windows; those beyond the last are empty.
    """
    strong = score >= threshold[:, None]
    crossed = (strong[:, 1:] != strong[:, :-1]) & mask[:, 1:] & mask[:, :-1]
    ends = crossed & ~jnp.pad(crossed, ((0, 0), (1, 0)))[:, :-1]
    index = jnp.cumsum(jnp.pad(ends, ((0, 0), (1, 0))), -1)
    windows = jnp.arange(score.shape[1] // 2 + 1)[None, :, None]
    member = (index[:, None] == windows) & mask[:, None]
    together = (index[:, None] == index[:, :, None]) & mask[:, None] & mask[:, :, None]
    return Windows(member, together, strong)


def received(weights: Float[Array, 'b h t s'], queries: Bool[Array, 'b t']) -> Float[Array, 'b s']:
    """Attention that every key gets from all of these queries, averaged over the heads."""
    return jnp.einsum('bhts,bt->bs', weights, queries.astype(weights.dtype)) / weights.shape[1]


class Model(Checked):
    """The defaults are the authors' for IEMOCAP; on MELD they take 2 blocks. Attributes:
    classes: number of scores.
    stream: what is read; its width is that of all layers, a multiple of `heads`.
    heads, hidden: of every transformer layer.
    blocks: how many times windows are formed.
    weak: what steps below the threshold are multiplied by.
    dropout: in the dense layers of the transformer. head_dropout: in the classifier.
    attend_padding: let padding take part and batches matter, as the authors' code does.
    """

    classes: int
    stream: str = 'audio'
    heads: int = 8
    hidden: int = 512
    blocks: int = 3
    weak: float = 0.85
    dropout: float = 0.3
    head_dropout: float = 0.5
    attend_padding: bool = False

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x, present = batch.streams[self.stream]
        mask = jnp.ones_like(present) if self.attend_padding else present
        count = jnp.sum(present, -1)
        median = x.shape[1] - count + count // 2            # its place where absent steps are sorted first
        x = layer_norm('norm_1')(jnp.where(mask[..., None], x, 0))
        x, weights = self._layer('vanilla')(x, mask[:, None] & mask[:, :, None], train=train)
        score = softmax(received(weights, mask), mask)
        steps = [{'out': x, 'score': score}]
        for k in range(1, self.blocks + 1):
            x = layer_norm(f'norm_{k}')(x) if k > 1 else x
            ordered = jnp.sort(jnp.where(mask, score, -jnp.inf), -1)
            threshold = jnp.take_along_axis(ordered, jnp.minimum(median, x.shape[1] - 1)[:, None], -1)[:, 0]
            x, score = self._block(f'block_{k}', x, split(score, threshold, mask), mask, train)
            steps.append({'out': x, 'score': score, 'threshold': threshold})

        x = pool(x, mask, 'mean')
        width = x.shape[-1]
        for k, n in enumerate((width // 2, width // 4), 1):
            x = nn.relu(Dense(n, kernel_init=_xavier, name=f'classifier_{k}')(x))
            x = Dropout(self.head_dropout, name=f'dropout_{k}')(x, train=train)
        return Output(Dense(self.classes, kernel_init=_xavier, name='head')(x), {'blocks': steps})

    def _layer(self, name: str) -> PostNorm:
        return PostNorm(self.heads, self.hidden, hidden_dropout=self.dropout, out_dropout=self.dropout, name=name)

    def _block(
        self, name: str, x: Float[Array, 'b t d'], windows: Windows, mask: Bool[Array, 'b t'], train: bool
    ) -> tuple[Float[Array, 'b t d'], Float[Array, 'b t']]:
        """Reads within windows, then across them; gives the steps and the next score."""
        member = windows.member
        x, weights = self._layer(f'{name}_local')(
            layer_norm(f'{name}_norm_1')(x), windows.together, train=train)
        x = x * jnp.where(windows.strong, 1.0, self.weak)[..., None]
        local = received(weights, mask)[:, None]
        share = softmax(jnp.broadcast_to(local, member.shape), member)       # of a step in its window

        filled = jnp.any(member, -1)
        tokens = layer_norm(f'{name}_norm_2')(jnp.einsum('bwt,btd->bwd', share, x))
        seen = jnp.broadcast_to(filled[:, None], (*filled.shape, filled.shape[1]))
        tokens, weights = self._layer(f'{name}_global')(tokens, seen, train=train)
        importance = softmax(received(weights, self._queries(filled)), filled)
        x = x + jnp.einsum('bwt,bwd->btd', member.astype(x.dtype), tokens)
        # What is sorted and compared has no gradient.
        score = jax.lax.stop_gradient(jnp.einsum('bwt,bw->bt', share, importance))
        return x, softmax(score, mask)

    def _queries(self, filled: Bool[Array, 'b w']) -> Bool[Array, 'b w']:
        """The windows whose attention is counted: in the authors' code as many as any clip has."""
        return jnp.broadcast_to(jnp.any(filled, 0), filled.shape) if self.attend_padding else filled


_xavier = nn.initializers.xavier_uniform()


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of scutcsq/DWFormer, whose unused blocks and positions are passed over."""
    reader = Reader(state, 'dwformer')
    d = reader.width('ln1.weight', 0) or 1
    reader.skip('PE.pe', 'ln4.*', *(f'dt{k}.*' for k in range(model.blocks + 1, 5)),
                *(f'ln{k}.*' for k in range(model.blocks + 1, 4)))
    params = {f'norm_{k}': reader.layer_norm(f'ln{k}', d) for k in range(1, model.blocks + 1)}
    params['vanilla'] = _layer(reader, 'or1', 'or1.mha', model.hidden, d)
    for k in range(1, model.blocks + 1):
        for ours, theirs in (('local', 'DLWT'), ('global', 'DGWT')):
            prefix = f'dt{k}.{theirs}'
            params[f'block_{k}_{ours}'] = _layer(reader, prefix, f'{prefix}.MHSA.mha', model.hidden, d)
        for i in (1, 2):
            params[f'block_{k}_norm_{i}'] = reader.layer_norm(f'dt{k}.ln{i}', d)
    params['classifier_1'] = reader.dense('classifier.fc1', d, d // 2)
    params['classifier_2'] = reader.dense('classifier.fc2', d // 2, d // 4)
    params['head'] = reader.dense('classifier.fc3', d // 4, model.classes)
    reader.close()
    return {'params': params}


def _layer(reader: Reader, prefix: str, attention: str, hidden: int, d: int) -> Params:
    query, key, value = (reader.dense(f'{attention}.{name}_proj', d, d) for name in 'qkv')
    return {
        'query': query,
        'key_value': {part: jnp.concatenate([key[part], value[part]], -1) for part in ('kernel', 'bias')},
        'attention_out': reader.dense(f'{attention}.out_proj', d, d),
        'attention_norm': reader.layer_norm(f'{prefix}.ln1', d),
        'expand': reader.dense(f'{prefix}.FFN.FFN1', d, hidden),
        'contract': reader.dense(f'{prefix}.FFN.FFN2', hidden, d),
        'feedforward_norm': reader.layer_norm(f'{prefix}.ln2', d),
    }

"""DAG-ERC: a directed acyclic graph network over a dialogue (Shen et al., ACL 2021, arXiv:2105.12907).

A turn reads earlier turns, back to its speaker's own last one. In every layer, from the first turn to the
last, attention gathers what those turns have become *in this layer*; two GRU cells, in one of which the turn is
the input and in the other the state, make of it what the turn becomes. All layers together are scored.

Where this differs from the authors' code: nothing in the results. Parts of their scores that softmax cancels
have no parameters here. Turns read only earlier ones, so the system runs online as it is (not with
`attention='global'`). A modality missing in a turn counts as zeros; speakers are only compared, so there may
be any number.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.author import Reader
from jmer.layers import graph
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.pooling import turn_vectors
from jmer.layers.recurrent import gru_cell, gru_hidden, gru_params, recur, torch_uniform
from jmer.types import Array, Batch, Output, Params, Variables

TAGS = ('early fusion', 'joint representation', 'graph-based', 'graph attention', 'recurrent', 'context',
        'speaker-aware', 'missing modality')
KINDS = ('relational', 'linear', 'dot')


class Model(Checked):
    """Attributes:
    classes: number of scores of a turn.
    streams: names of the streams, in the order in which they are concatenated.
    hidden: width of the layers.
    layers: how many of them.
    own_turns: how many of its speaker's own turns a turn reads back to.
    gather: how: 'relational', scores of the sources, with a matrix for the same speaker and one for others;
        'linear' and 'dot', scores with a part for the same speaker, without matrices.
    relations: in 'linear' and 'dot', score the same speaker and others apart.
    attention: of the layers together to those of other turns: '', 'past' or 'global'.
    head_layers: linear layers in front of the scores.
    dropout: rate in front of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text',)
    hidden: int = 300
    layers: int = 4
    own_turns: int = 1
    gather: str = 'relational'
    relations: bool = True
    attention: str = ''
    head_layers: int = 2
    dropout: float = 0.2

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        x: Array = jnp.concatenate([turn_vectors(batch.streams[name]) for name in self.streams], -1)
        speakers = graph.speakers_of(batch, jnp.iinfo(jnp.int32).max)
        edges = graph.predecessors(batch.present, speakers, self.own_turns)
        same = graph.same_speaker(speakers)
        states: list[Array] = [nn.relu(Dense(self.hidden, name='project')(x))]
        for k in range(self.layers):
            layer = Layer(self.hidden, self.gather, self.relations, name=f'layer_{k}')
            states.append(layer(states[-1], edges, same))
        x = jnp.concatenate([*states, x], -1)
        if self.attention:
            seen = graph.window(batch.present, -1, 0 if self.attention == 'past' else -1)
            x = graph.MatchingAttention(name='attention')(x, seen)[0]
        aux = {'layers': x, 'edges': edges}
        for k in range(self.head_layers):
            x = nn.relu(Dense(self.hidden, name=f'hidden_{k}')(x))
        x = Dropout(self.dropout, name='dropout_head')(x, train=train)
        return Output(Dense(self.classes, name='head')(x), aux)

    def _check(self) -> None:
        if self.gather not in KINDS:
            raise ValueError(f'dagerc: gather: found {self.gather!r}, expected one of {", ".join(KINDS)}')
        if self.attention not in ('', 'past', 'global'):
            raise ValueError(f"dagerc: attention: found {self.attention!r}, expected '', 'past' or 'global'")


class Layer(nn.Module):
    """One layer over all turns; the fields are those of the model."""

    hidden: int
    gather: str
    relations: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b u {self.hidden}'], edges: Bool[Array, 'b u u'], same: Bool[Array, 'b u u']
    ) -> Float[Array, 'b u {self.hidden}']:
        d, (b, u, _) = self.hidden, x.shape
        turn = gru_params(self, d, d, 'turn_')          # the turn as input, what it gathers as state
        read = gru_params(self, d, d, 'read_')          # and the other way round
        hidden = gru_hidden(read)
        xs = {
            'turn': x @ turn['input_kernel'] + turn['bias'][None, None],
            'state': x,
            'read': x @ hidden['kernel'] + hidden['bias'][None, None],
            'query': Dense(d, name='query')(x) if self.gather == 'dot' else jnp.ones((b, u, 1), x.dtype),
        }
        weights = {
            'turn': gru_hidden(turn),
            'read': {'kernel': read['input_kernel'], 'bias': read['bias']},
            'key': {'kernel': self.param('key', torch_uniform(d), (d, d if self.gather == 'dot' else 1))},
        }
        if self.gather == 'relational':
            for name in ('same', 'other'):
                weights[name] = {'kernel': self.param(name, torch_uniform(d), (d, d))}
        elif self.relations:
            scores = self.param('relations', torch_uniform(d), (2,))
            xs['relations'] = jnp.broadcast_to(scores.reshape(1, 1, 2), (b, u, 2))
        memory: dict[str, Array] = {'state': jnp.zeros((b, u, d), x.dtype),
                  'key': jnp.zeros((b, u, weights['key']['kernel'].shape[1]), x.dtype)}
        step = _relational_step if self.gather == 'relational' else _plain_step
        made = recur(step, weights, (), {name: value.swapaxes(0, 1) for name, value in xs.items()},
                     (edges.swapaxes(0, 1), same.swapaxes(0, 1)), memory)
        return made['state'].swapaxes(0, 1)


def _relational_step(linear, carry, x, given, memory):
    weights, same = _weights(x, given, memory), given[1]
    own, others = (jnp.einsum('bs,bsd->bd', jnp.where(which, weights, 0), memory['state']) for which in (same, ~same))
    return _update(linear, x, linear('same', own) + linear('other', others))


def _plain_step(linear, carry, x, given, memory):
    return _update(linear, x, jnp.einsum('bs,bsd->bd', _weights(x, given, memory), memory['state']))


def _weights(x, given, memory):
    """Attention of one turn to the turns that it sees, [b s]."""
    seen, same = given
    scores = jnp.einsum('bk,bsk->bs', x['query'], memory['key'])
    if 'relations' in x:
        scores = scores + jnp.where(same, x['relations'][:, 1:], x['relations'][:, :1])
    return graph.softmax(scores, seen)


def _update(linear, x, gathered):
    turn = gru_cell(x['turn'], linear('turn', gathered), gathered)
    read = gru_cell(linear('read', gathered), x['read'], x['state'])
    state = turn + read
    return (), {'state': state, 'key': linear('key', state)}


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of shenwzh3/DAG-ERC (DAGERC_fushion)."""
    reader, d = Reader(state, 'dagerc'), model.hidden
    reader.skip('fcs.*')        # stored, never used
    inputs = reader.width('fc1.weight', 1)
    joined = None if inputs is None else (model.layers + 1) * d + inputs
    params: Params = {'project': reader.dense('fc1', inputs, d)}
    for k in range(model.layers):
        params[f'layer_{k}'] = _layer(reader, k, model)
    if model.attention:
        params['attention'] = {'transform': reader.dense('attentive_node_features.transform', joined, joined or 1)}
    else:
        reader.skip('attentive_node_features.*')        # stored and not used
    for k in range(model.head_layers):
        params[f'hidden_{k}'] = reader.dense(f'out_mlp.{2 * k}', d if k else joined, d)
    params['head'] = reader.dense(f'out_mlp.{2 * model.head_layers + 1}', d, model.classes)
    reader.close()
    return {'params': params}


def _layer(reader: Reader, k: int, model: Model) -> Params:
    """A layer, less what their softmax cancels: biases of scores, and the part of the turn that reads."""
    d, prefix = model.hidden, f'gather.{k}'
    params: Params = {}
    if not model.relations:
        reader.skip(f'{prefix}.rel_emb.weight', f'{prefix}.linear3.*')      # stored and not used
    for ours, theirs in (('turn', 'grus_c'), ('read', 'grus_p')):
        params |= {f'{ours}_{name}': value for name, value in reader.gru(f'{theirs}.{k}', d, d).items()}
    if model.gather == 'dot':
        params['query'] = reader.dense(f'{prefix}.linear1', d, d)
        # The bias of the keys adds the same to all scores of a turn, as that of the relations does.
        params['key'] = reader.dense(f'{prefix}.linear2', d, d)['kernel']
        if model.relations:
            scores = reader.dense(f'{prefix}.linear3', d, 1)['kernel']
            params['relations'] = (reader.take(f'{prefix}.rel_emb.weight', 2, d) @ scores)[:, 0]
        return params
    told = model.gather == 'linear' and model.relations
    kernel = reader.dense(f'{prefix}.linear', (3 if told else 2) * d, 1)['kernel']
    params['key'] = kernel[d:2 * d]
    if told:
        params['relations'] = (reader.take(f'{prefix}.rel_emb.weight', 2, d) @ kernel[2 * d:])[:, 0]
    if model.gather == 'relational':
        for ours, theirs in (('same', 'Wr0'), ('other', 'Wr1')):
            params[ours] = reader.dense(f'{prefix}.{theirs}', d, d, bias=False)['kernel']
    return params

"""IMDer: missing streams recovered by a score-based diffusion model (Wang, Li & Cui, NeurIPS 2023).

Streams are projected to one width. A missing one is drawn from noise by a score network that reads those
that are there, and passes a residual network with channel attention; then all are fused as in MulT. In
training some streams are hidden from some items, and what is drawn is compared with what was hidden.

Streams are taken to be aligned: step t of one goes with step t of another. A missing stream gets the steps
of those from which it is recovered; an item that has none at all stays empty. In evaluation the noise is
always the same (`seed`), for every item of a batch: a step's own, however many there are. In training it
is drawn for every item. Recovery runs only where a stream is missing from an item of the batch.

Where this differs from the authors' code: padding is masked; what is missing is decided for every item and
not for a whole batch; in training the streams that are hidden take turns, and one always stays. The
projections learn in the first of two stages, in which nothing is hidden, and stay in the second (theirs are loaded
from such a training; `frozen_projections`), and from the label's loss alone, lest they make recovery easy.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, PRNGKeyArray

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers import diffusion
from jmer.layers.attention import Encoder
from jmer.layers.checked import Checked
from jmer.layers.conv import inside
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.rcan import ResidualGroup
from jmer.layers.steps import fit
from jmer.stages import Learner, Result, Stage
from jmer.types import Array, Batch, Output, Params, Stream, Variables

TAGS = ('deep fusion', 'data translation', 'diffusion', 'cross-modality attention', 'transformer',
        'missing modality')


class Recovery(NamedTuple):
    """What training says of a stream. score, error [b]: loss of its score network, and squared error of what
    was recovered. hidden [b]: whose stream was hidden, and could be recovered; the others have no loss."""

    score: Float[Array, 'b']
    error: Float[Array, 'b']
    hidden: Bool[Array, 'b']


class Model(Checked):
    """The defaults are the authors' for MOSI. Attributes:
    classes: number of scores.
    streams: two or three, aligned; the authors' order is text, audio, vision.
    width: features of a step after projection; a stream that has this width already is not projected.
    kernel: steps that a projection sees, without padding.
    heads, layers: of the cross-modal encoders; memory encoders have at least 3 layers.
    channels, embed, groups, score_layers: of the score networks (`layers.diffusion.ScoreNetwork`), the last
        being the layers of their encoders; the first of `channels` is `width`.
    sigma, steps: of the diffusion, and of its sampler.
    blocks, reduction: of the residual networks.
    hide: in training, the shares of items from which one stream is hidden, and two.
    seed: of the noise in evaluation.
    frozen_projections: whether projections stay as they are.
    score_weight, error_weight: of the losses of recovery.
    text_dropout: of the features of the first stream. attention_dropout: of reading each stream.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    width: int = 32
    kernel: int = 3
    heads: int = 8
    layers: int = 4
    channels: tuple[int, ...] = (32, 64, 128, 256)
    embed: int = 256
    groups: tuple[int, int] = (4, 32)
    score_layers: int = 2
    sigma: float = 25.0
    steps: int = 100
    blocks: int = 20
    reduction: int = 16
    hide: tuple[float, float] = (0.3, 0.3)
    seed: int = 0
    frozen_projections: bool = False
    score_weight: float = 0.1
    error_weight: float = 0.1
    text_dropout: float = 0.0
    attention_dropout: tuple[float, ...] = (0.0, 0.2, 0.0)
    relu_dropout: float = 0.0
    residual_dropout: float = 0.0
    embed_dropout: float = 0.2
    out_dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        given = self._project(batch, train)
        key = self.make_rng('dropout') if train else jax.random.key(self.seed)
        hidden = self._hide(given, key) if train else {name: jnp.zeros_like(batch.present) for name in given}
        seen = {name: Stream(s.x, s.mask & ~hidden[name][:, None]) for name, s in given.items()}
        full, recovered = {}, {}
        for i, name in enumerate(self.streams):
            own = jax.random.fold_in(key, i + 1)
            drawn, recovery = self._recover(name, given[name], hidden[name], seen, own, train)
            missing = ~jnp.any(seen[name].mask, -1)[:, None]
            full[name] = Stream(jnp.where(missing[..., None], drawn.x, seen[name].x),
                                jnp.where(missing, drawn.mask, seen[name].mask))
            if train:
                recovered[name] = recovery
        logits, read = self._fuse(full, train)
        return Output(logits, read | {'streams': full, 'recovered': recovered})

    def _project(self, batch: Batch, train: bool) -> dict[str, Stream]:
        """The streams at one width and one number of steps."""
        projected = {}
        for name in self.streams:
            mask = batch.streams[name].mask
            x: Array = jnp.where(mask[..., None], batch.streams[name].x, 0)
            if name == self.streams[0]:
                x = Dropout(self.text_dropout, name=f'dropout_{name}')(x, train=train)
            projected[name] = Stream(x, mask)
            if x.shape[-1] != self.width:
                windows, mask = inside(projected[name], self.kernel)
                x = Dense(self.width, use_bias=False, name=f'project_{name}')(windows)
                projected[name] = Stream(jax.lax.stop_gradient(x) if self.frozen_projections else x, mask)
        steps = max(stream.x.shape[1] for stream in projected.values())
        return {name: fit(stream, steps) for name, stream in projected.items()}

    def _hide(self, given: dict[str, Stream], key: PRNGKeyArray) -> dict[str, Bool[Array, 'b']]:
        """Which streams are hidden from which items. They take turns over the rows, from a random start."""
        there = jnp.stack([jnp.any(stream.mask, -1) for stream in given.values()], -1)
        rows = jnp.arange(len(there))
        first, shares = jax.random.split(jax.random.fold_in(key, 0))
        draw = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(shares, row)))(rows)
        one, two = self.hide
        count = jnp.where(draw < two, 2, jnp.where(draw < one + two, 1, 0))
        n = len(self.streams)
        turn = (jnp.arange(n)[None] - rows[:, None] - jax.random.randint(first, (1, 1), 0, n)) % n
        hidden = there & (turn < count[:, None])
        hidden &= jnp.any(there & ~hidden, -1, keepdims=True)       # else nothing would be left to recover from
        return {name: hidden[:, i] for i, name in enumerate(given)}

    def _condition(self, name: str, seen: dict[str, Stream]) -> Stream:
        """What the other streams say, those that are there: one as it is, two joined by a dense layer."""
        others = [(jnp.where(s.mask[..., None], jax.lax.stop_gradient(s.x), 0), s.mask)
                  for other, s in seen.items() if other != name]
        if len(others) == 1:
            return Stream(*others[0])
        (x, x_mask), (y, y_mask) = others
        both = Dense(self.width, name=f'join_without_{name}')(jnp.concatenate([x, y], -1))
        all_there = (jnp.any(x_mask, -1) & jnp.any(y_mask, -1))[:, None, None]
        mask = jnp.asarray(x_mask) | y_mask
        return Stream(jnp.where(mask[..., None], jnp.where(all_there, both, x + y), 0), mask)

    def _recover(
        self, name: str, truth: Stream, hidden: Bool[Array, 'b'], seen: dict[str, Stream], key: PRNGKeyArray,
        train: bool,
    ) -> tuple[Stream, Recovery]:
        """A stream as it is drawn from the others, and how well that goes where the truth is known.

        Zeros, and no work, where no item of the batch misses what could be recovered.
        """
        condition = self._condition(name, seen)
        possible = jnp.any(condition.mask, -1)
        needed = jnp.any(possible & ~jnp.any(seen[name].mask, -1))
        truth = truth._replace(x=jax.lax.stop_gradient(truth.x))

        def draw(model: Model):
            return model._draw(name, truth, condition, key, train)

        def nothing(model: Model):
            return jnp.zeros_like(condition.x), jnp.zeros_like(condition.x, shape=len(hidden))

        x, score = draw(self) if self.is_initializing() else nn.cond(needed, draw, nothing, self)
        both = (truth.mask & condition.mask)[..., None]
        squares = jnp.sum(jnp.where(both, jnp.square(x - truth.x), 0), (1, 2))
        error = squares / (self.width * jnp.maximum(jnp.sum(both, (1, 2)), 1))
        return Stream(x, condition.mask), Recovery(score, error, hidden & possible)

    def _draw(
        self, name: str, truth: Stream, condition: Stream, key: PRNGKeyArray, train: bool
    ) -> tuple[Float[Array, 'b t d'], Float[Array, 'b']]:
        """What is drawn and made good, and the loss of the score network."""
        net, rows = score_network(self, f'score_{name}'), jnp.arange(len(truth.x))
        at, of_z, of_sample = jax.random.split(key, 3)
        score: Array = jnp.zeros(len(rows))
        if train or self.is_initializing():
            t = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(at, row)))(rows)
            t = t * (1 - diffusion.SOONEST) + diffusion.SOONEST
            z = diffusion.noise(of_z, *truth.x.shape)
            score = diffusion.score_matching(net, truth, condition, t, z, self.sigma)
        wide: Array = Dense(2 * self.width, name=f'widen_{name}')(self._sample(net, condition, of_sample, train))
        wide = ResidualGroup(self.blocks, self.reduction, name=f'refine_{name}')(wide, condition.mask)
        return Dense(self.width, name=f'narrow_{name}')(wide), score

    def _sample(
        self, net: diffusion.ScoreNetwork, condition: Stream, key: PRNGKeyArray, train: bool
    ) -> Float[Array, 'b t d']:
        """What the score network draws, without gradient."""
        b, t, d = condition.x.shape
        rows = b if train else 1
        if self.is_initializing():
            return jnp.zeros_like(condition.x)
        # The network as a function: within a loop no module may be called.
        variables, free = jax.lax.stop_gradient(net.variables), net.clone(parent=None)
        condition = condition._replace(x=jax.lax.stop_gradient(condition.x))

        def score(x, time, condition):
            return free.apply(variables, x, time, condition)

        def noises(i):
            own = jax.random.fold_in(key, i)
            return tuple(diffusion.noise(k, rows, t, d) for k in jax.random.split(own))

        start = jnp.broadcast_to(diffusion.noise(jax.random.fold_in(key, self.steps), rows, t, d), (b, t, d))
        return diffusion.sample(score, Stream(start, condition.mask), condition, noises, steps=self.steps,
                                sigma=self.sigma)

    def _fuse(self, full: dict[str, Stream], train: bool) -> tuple[Array, dict[str, Any]]:
        """Scores, and the last steps of what every stream has read of the others, as in MulT."""
        last: dict[str, Array] = {}
        for name, (x, mask) in full.items():
            read = [self._encoder(f'{name}_from_{source}', self.layers, self._rate(source))(
                x, mask, *full[source], train=train) for source in full if source != name]
            memory = self._encoder(f'{name}_memory', self._memory_layers(), self.attention_dropout[0])
            last[name] = memory(jnp.concatenate(read, -1), mask, train=train, last=True)[:, 0]
        joined: Array = jnp.concatenate(list(last.values()), -1)
        inner: Array = nn.relu(Dense(joined.shape[-1], name='residual_in')(joined))
        inner = Dropout(self.out_dropout, name='dropout_out')(inner, train=train)
        whole = joined + Dense(joined.shape[-1], name='residual_out')(inner)
        return Dense(self.classes, name='head')(whole), {'joined': joined, 'last': last}

    def _encoder(self, name: str, layers: int, attention_dropout: float) -> Encoder:
        return Encoder(self.heads, layers, attention_dropout, self.relu_dropout, self.residual_dropout,
                       self.embed_dropout, name=name)

    def _memory_layers(self) -> int:
        return max(self.layers, 3)

    def _rate(self, source: str) -> float:
        return self.attention_dropout[self.streams.index(source)]

    def _check(self) -> None:
        def fault(field: str, expected: str) -> ValueError:
            return ValueError(f'imder: {field}: found {getattr(self, field)}, expected {expected}')

        if len(self.streams) not in (2, 3) or len(set(self.streams)) < len(self.streams):
            raise fault('streams', 'two or three, all different')
        if self.channels[0] != self.width:
            raise fault('channels', f'the width {self.width} first')
        if len(self.attention_dropout) < len(self.streams):
            raise fault('attention_dropout', f'one for each of {self.streams}')


def stages(model: Model) -> tuple[Stage, ...]:
    """A third of the epochs on what is there, then those that learn to recover what is hidden."""
    def complete(model: Model, learner: Learner, batch: Batch) -> Result:
        out = learner.forward(batch, hide=(0.0, 0.0))
        return Result(out, {'label': losses.task(out.logits, batch.labels)}, learner.memory)

    def recovery(model: Model, learner: Learner, batch: Batch) -> Result:
        out = learner.forward(batch)
        return Result(out, loss(model, out, batch), learner.memory)

    return (Stage('complete', complete, 1 / 3),
            Stage('recovery', recovery, 2 / 3, lambda name: not name.startswith('project_')))


def score_network(model: Model, name: str | None = None) -> diffusion.ScoreNetwork:
    """The score network of a stream: with a name a part of the module in whose call this stands."""
    return diffusion.ScoreNetwork(model.channels, model.embed, model.groups, model.heads, model.score_layers,
                                  model.sigma, name=name)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The label's loss and, in training, those of every stream's score network and of its recovery, weighted."""
    terms = {'label': losses.task(out.logits, batch.labels)}
    for name, found in out.aux['recovered'].items():
        weight = (found.hidden & batch.present).astype(jnp.float32)
        terms[f'score_{name}'] = losses.Term(model.score_weight * found.score, weight)
        terms[f'error_{name}'] = losses.Term(model.error_weight * found.error, weight)
    return terms


def score_from_author(reader: Reader, prefix: str, network: diffusion.ScoreNetwork, width: int) -> Params:
    """A `ScoreNet` of mdswyz/IMDer as the parameters of `layers.diffusion.ScoreNetwork`; width: of its streams."""
    params: Params = {'frequencies': reader.take(f'{prefix}embed.0.W', network.embed // 2),
                      'time': reader.dense(f'{prefix}embed.1', network.embed, network.embed)}

    def level(ours: str, number: str, dense: str, norm: str, d: int) -> None:
        params[f'read_{ours}'] = reader.encoder(f'{prefix}attention_{number}', network.layers, d)
        params[f'time_{ours}'] = reader.dense(f'{prefix}{dense}.dense', network.embed, d)
        params[f'norm_{ours}'] = reader.layer_norm(f'{prefix}{norm}', d)

    def transposed(key: str, inputs: int, outputs: int) -> Any:
        return reader.take(f'{prefix}{key}.weight', inputs, outputs, 3).transpose(2, 0, 1)

    inputs = (width, *network.channels)
    for i, d in enumerate(network.channels):
        params[f'down_{i}'] = reader.conv1d(f'{prefix}conv{i + 1}', inputs[i], d, 3, bias=False)
        if i:
            params[f'condition_down_{i}'] = reader.conv1d(f'{prefix}conv{i + 1}_cond', inputs[i], d, 3, bias=False)
        level(f'down_{i}', f'{i + 1}', f'dense{i + 1}', f'gnorm{i + 1}', d)
    levels = len(network.channels)
    for i in range(levels - 1, 0, -1):
        d, below = network.channels[i - 1], network.channels[i]
        params[f'up_{i}'] = {'kernel': transposed(f'tconv{i + 1}', below if i == levels - 1 else 2 * below, d)}
        params[f'condition_up_{i}'] = {'kernel': transposed(f'tconv{i + 1}_cond', below, d)}
        level(f'up_{i}', f't{i + 1}', f'dense{2 * levels - i}', f'tgnorm{i + 1}', d)
    for ours, key, d in (('out', 'tconv1', 2 * inputs[1]), ('condition_out', 'tconv1_cond', inputs[1])):
        # With stride 1 a transposed convolution is one with its kernel turned round.
        params[ours] = {'kernel': transposed(key, d, width)[::-1].reshape(-1, width),
                        'bias': reader.take(f'{prefix}{key}.bias', width)}
    params['read_out'] = reader.encoder(f'{prefix}attention_t1', network.layers, width)
    return params


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of mdswyz/IMDer without its 'Model.' in front; the text's BERT is passed over."""
    require_streams('imder', model.streams, 3)
    reader, letter = Reader(state, 'imder'), dict(zip(model.streams, 'lav', strict=True))
    reader.skip('text_model.*')
    d, params = model.width, {}
    network = score_network(model)
    for (name, mine), pair in zip(letter.items(), ('va', 'lv', 'la'), strict=True):
        kernel = reader.take(f'proj_{mine}.weight', d, None, model.kernel)
        if kernel.shape[1] != d:            # else the authors store it and do not use it
            params[f'project_{name}'] = {'kernel': kernel.transpose(2, 1, 0).reshape(-1, d)}
        params[f'score_{name}'] = score_from_author(reader, f'score_{mine}.', network, d)
        join = reader.conv1d(f'cat_{pair}', 2 * d, d, 1)
        if pair == 'va':                    # the one whose order is not that of the streams
            join['kernel'] = jnp.roll(join['kernel'], d, 0)
        params[f'join_without_{name}'] = join
        params[f'widen_{name}'] = reader.conv1d(f'rec_{mine}.0', d, 2 * d, 1)
        params[f'refine_{name}'] = reader.residual_group(f'rec_{mine}.1.', model.blocks, 2 * d, model.reduction)
        params[f'narrow_{name}'] = reader.conv1d(f'rec_{mine}.2', 2 * d, d, 1)
        params[f'{name}_memory'] = reader.encoder(f'trans_{mine}_mem', model._memory_layers(), 2 * d)
        for source, theirs in letter.items():
            if source != name:
                params[f'{name}_from_{source}'] = reader.encoder(f'trans_{mine}_with_{theirs}', model.layers, d)
    joined = 2 * d * 3
    params['residual_in'] = reader.dense('proj1', joined, joined)
    params['residual_out'] = reader.dense('proj2', joined, joined)
    params['head'] = reader.dense('out_layer', joined, model.classes)
    reader.close()
    return {'params': params}

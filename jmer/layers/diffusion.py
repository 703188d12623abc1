"""Score-based diffusion of sequences: a network, the loss that trains it, and the sampler that uses it.

The variance-exploding stochastic differential equation dx = sigma^t dw (Song et al., ICLR 2021,
arXiv:2011.13456) adds to a sequence noise of a standard deviation that grows with the time t from 0 to 1.
A network learns the score, the gradient of the log density of what is so perturbed; along it the equation
runs backwards, from noise to a sequence. All is conditional on another sequence, as in IMDer (Wang, Li &
Cui, NeurIPS 2023), which perturbs that one too.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from jmer.layers.attention import Encoder
from jmer.layers.conv import windows
from jmer.layers.dense import Dense
from jmer.types import Array, Stream

Score = Callable[[Stream, Float[Array, 'b'], Stream], Float[Array, 'b t d']]
"""The score of a stream at times t under a condition."""

Noises = Callable[[Int[Array, '']], tuple[Float[Array, '#b s d'], Float[Array, '#b t d']]]
"""Normal noise of step i of the sampler: for the condition, and for the sequence."""

SOONEST, LAST = 1e-5, 1e-3
"""The earliest time that is trained, and the one at which the sampler ends: at 0 the score is infinite."""


def deviation(t: Float[Array, '*b'], sigma: float) -> Float[Array, '*b']:
    """Standard deviation of the noise at time t: sqrt((sigma^2t - 1) / (2 ln sigma)), with sigma > 1."""
    log = math.log(sigma)
    return jnp.sqrt(jnp.expm1(2 * log * t) / (2 * log))


def score_matching(
    score: Score,
    x: Stream,
    condition: Stream,
    t: Float[Array, 'b'],
    z: Float[Array, 'b t d'],
    sigma: float,
) -> Float[Array, 'b']:
    """The loss of denoising score matching: |score * std(t) + z|^2, summed over what is present of an item.

    Sequence and condition are perturbed with the same z * std(t), so they need be of one shape.
    """
    std = deviation(t, sigma)[:, None, None]
    found = score(x._replace(x=x.x + z * std), t, condition._replace(x=condition.x + z * std))
    return jnp.sum(jnp.where(x.mask[..., None], jnp.square(found * std + z), 0), (1, 2))


def sample(
    score: Score, start: Stream, condition: Stream, noises: Noises, *, steps: int, sigma: float
) -> Float[Array, 'b t d']:
    """A sequence drawn under a condition: Euler and Maruyama's method, from time 1 to 1e-3 in equal steps.

    In every step the condition is perturbed anew. The last step adds no noise to what it returns.

    Args:
        score: of the sequence, such as a `ScoreNetwork` gives it.
        start: normal noise of unit variance, and a mask that says which steps are wanted; others are zero.
        noises: of each of the `steps` steps.

    Raises:
        ValueError: for fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f'diffusion: found {steps} steps, expected 2 or more')
    times = np.linspace(1, LAST, steps, dtype=np.float32)
    size = float(times[0] - times[1])
    present = start.mask[..., None]

    def step(carry, now):
        i, t = now
        for_condition, for_x = noises(i)
        seen = condition._replace(x=condition.x + for_condition * deviation(t, sigma))
        change = sigma ** t
        x, _ = carry
        ascent = score(start._replace(x=x), jnp.broadcast_to(t, len(x)), seen)
        mean = x + change**2 * size * ascent
        return (jnp.where(present, mean + math.sqrt(size) * change * for_x, 0), mean), None

    x = jnp.where(present, start.x * deviation(jnp.asarray(times[0]), sigma), 0)
    (_, mean), _ = jax.lax.scan(step, (x, x), (jnp.arange(steps), jnp.asarray(times)))
    return mean


def noise(key: PRNGKeyArray, rows: int, steps: int, width: int) -> Float[Array, 'b t d']:
    """Normal noise that a row and a step have to themselves: it does not change with how many there are."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(fold, (0, None))(fold(key, jnp.arange(rows)), jnp.arange(steps))
    return jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (width,))))(keys)


class ScoreNetwork(nn.Module):
    """A U-Net over time whose every level reads a condition through an encoder of MulT.

    Every level but the first is half as long as the one above, and back it goes. Where this differs from
    IMDer's code: padding is masked, in the group normalisation too, and the number of steps is free (theirs has
    to be a multiple of 8, for which both are the same).

    Attributes:
        channels: features of the levels, two or more (theirs are four), multiples of `heads` and of the groups.
            The condition is as wide as the first.
        embed: features of the time, even.
        groups: of the normalisation, on the first level on the way down and everywhere else.
        heads, layers: of the encoders.
        sigma: of the equation.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256)
    embed: int = 256
    groups: tuple[int, int] = (4, 32)
    heads: int = 8
    layers: int = 2
    sigma: float = 25.0

    @nn.compact
    def __call__(
        self, x: Stream, t: Float[Array, 'b'], condition: Stream | None = None
    ) -> Float[Array, 'b t d']:
        """The score of x at times t, zero where x is absent; without a condition nothing of it is read."""
        time = nn.swish(Dense(self.embed, name='time')(self._waves(t)))
        levels, conditions, h = [], [], x
        for i, width in enumerate(self.channels):
            h = _convolve(h, width, f'down_{i}', stride=2 if i else 1)
            if condition is not None and i:
                condition = _convolve(condition, width, f'condition_down_{i}', stride=2)
            h = self._level(h, condition, time, f'down_{i}', self.groups[i > 0])
            levels.append(h)
            conditions.append(condition)
        lowest = len(levels) - 1
        for i in range(lowest, 0, -1):
            above, width = levels[i - 1], self.channels[i - 1]
            h = _widen(_beside(h, levels[i]) if i < lowest else h, width, above, f'up_{i}')
            if condition is not None:
                condition = _widen(condition, width, conditions[i - 1], f'condition_up_{i}')
            h = self._level(h, condition, time, f'up_{i}', self.groups[1])
        width = x.x.shape[-1]
        h = _convolve(_beside(h, levels[0]), width, 'out', bias=True)
        if condition is not None:
            condition = _convolve(condition, width, 'condition_out', bias=True)
        h = self._read(h, condition, 'out')
        return jnp.where(x.mask[..., None], h.x / deviation(t, self.sigma)[:, None, None], 0)

    def _waves(self, t):
        """Sine and cosine of the time at random frequencies, which are drawn once and never learnt."""
        frequencies = self.param('frequencies', nn.initializers.normal(30), (self.embed // 2,))
        angle = 2 * math.pi * t[:, None] * jax.lax.stop_gradient(frequencies)[None]
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)

    def _level(self, h, condition, time, name, groups):
        """What follows a convolution: the condition, the time, normalisation, swish."""
        h = self._read(h, condition, name)
        x = h.x + Dense(h.x.shape[-1], name=f'time_{name}')(time)[:, None]
        x = nn.swish(GroupNorm(groups, name=f'norm_{name}')(x, h.mask))
        return h._replace(x=jnp.where(h.mask[..., None], x, 0))

    def _read(self, h, condition, name):
        if condition is None:
            return h
        encoder = Encoder(self.heads, self.layers, name=f'read_{name}')
        return h._replace(x=h.x + encoder(*h, *condition, train=False))


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He, ECCV 2018) over the present steps of each item.

    groups: of neighbouring features, which share mean and variance; the features are a multiple.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], mask: Array) -> Float[Array, 'b t d']:
        d = x.shape[-1]
        if d % self.groups:
            raise ValueError(f'group normalisation: found {d} features, expected a multiple of {self.groups} groups')
        scale = self.param('scale', nn.initializers.ones, (d,))
        bias = self.param('bias', nn.initializers.zeros, (d,))
        y, present = x.reshape(*x.shape[:2], self.groups, -1), mask[..., None, None]
        count = jnp.maximum(jnp.sum(present, 1, keepdims=True), 1) * y.shape[-1]

        def mean(z):
            return jnp.sum(jnp.where(present, z, 0), (1, 3), keepdims=True) / count

        y = y - mean(y)
        y = y * jax.lax.rsqrt(mean(jnp.square(y)) + 1e-5)
        return y.reshape(x.shape) * scale[None, None] + bias[None, None]


class Upsample(nn.Module):
    """A transposed convolution over three steps with stride 2: two steps for one, without bias.

    Even steps see one step below, odd ones its neighbour too; no zeros are put in between to be multiplied.
    """

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b s d']) -> Float[Array, 'b t e']:
        kernel = self.param('kernel', nn.initializers.lecun_normal(), (3, x.shape[-1], self.width))
        after = jnp.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0)))
        both = jnp.stack([x @ kernel[1], x @ kernel[2] + after @ kernel[0]], 2)
        return both.reshape(len(x), -1, self.width)


def _convolve(stream, width, name, stride=1, bias=False):
    """A convolution over three steps. A result is present if the step in its middle is."""
    seen = windows(stream.x, stream.mask, 3, stride=stride, before=1, after=1)
    return Stream(Dense(width, use_bias=bias, name=name)(seen), stream.mask[:, ::stride])


def _widen(stream, width, above, name):
    """Twice the steps, and those present that are present above."""
    x = Upsample(width, name=name)(jnp.where(stream.mask[..., None], stream.x, 0))
    return Stream(x[:, :above.mask.shape[1]], above.mask)


def _beside(h, skip):
    return h._replace(x=jnp.concatenate([h.x, skip.x], -1))

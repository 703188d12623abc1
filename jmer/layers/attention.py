"""Attention with masks, and the pre-norm encoder of MulT that twenty later systems are built from."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jmer.layers.dropout import dropout
from jmer.layers.position import positions

Weights = dict[str, dict[str, Array]]


def lengths(mask: Bool[Array, '*b t']) -> Int[Array, '*b']:
    """The number of steps up to and including the last present one."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[-1] + 1), 0), axis=-1)


def last_present(x: Float[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Float[Array, 'b d']:
    """The last present step; zeros where there is none."""
    index = jnp.maximum(lengths(mask) - 1, 0)
    step = jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
    return jnp.where(mask.any(-1)[:, None], step, 0)


def visible(
    queries: Bool[Array, 'b t'], keys: Bool[Array, 'b s'], *, causal: bool
) -> Bool[Array, 'b #t s']:
    """Which key each query may see: the present ones; if causal, those with s <= t + |S - T|.

    S and T are the true lengths of the item, so how far a batch is padded changes nothing.
    """
    if not causal:
        return keys[:, None, :]
    offset = jnp.abs(lengths(keys) - lengths(queries))[:, None, None]
    t, s = jnp.arange(queries.shape[1])[None, :, None], jnp.arange(keys.shape[1])[None, None]
    return keys[:, None, :] & (s <= t + offset)


def attend(
    q: Float[Array, 'b t d'],
    k: Float[Array, 'b s d'],
    v: Float[Array, 'b s d'],
    mask: Bool[Array, 'b #t s'],
    *,
    heads: int,
    rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, 'b t d']:
    """Scaled dot-product attention, heads side by side in d. A query that sees no key gets zero.

    rate: dropout of the attention weights, active where a key is given.
    """
    def split(x):
        return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    q, k, v = split(q * (q.shape[-1] // heads) ** -0.5), split(k), split(v)
    score = jnp.einsum('bthd,bshd->bhts', q, k)
    mask = mask[:, None]
    score = jnp.where(mask, score, -jnp.inf)
    top = jnp.max(score, axis=-1, keepdims=True, initial=-1e30)
    weight = jnp.exp(score - jax.lax.stop_gradient(top))
    total = weight.sum(-1, keepdims=True)
    weight = weight / jnp.where(total > 0, total, 1)
    weight = dropout(weight, rate, key)
    out = jnp.einsum('bhts,bshd->bthd', weight, v)
    return out.reshape(*out.shape[:2], -1)


def normalise(x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Zero mean and unit variance over the features: layer normalisation before scale and bias."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)


def _row(weights, x):
    """One number a feature, with as many axes as x."""
    return weights.reshape((1,) * (x.ndim - 1) + (-1,))


def _affine(p, x):
    return x * _row(p['scale'], x) + _row(p['bias'], x)


def _dense(p, x):
    y = x @ p['kernel']
    return y + _row(p['bias'], y)


class Encoder(nn.Module):
    """The encoder of MulT (Tsai et al., ACL 2019): pre-norm layers that read themselves or a source.

    Inputs are scaled by sqrt(d) and get positions. With a source, queries come from x and keys and
    values from the *embedded* source, the same at every layer, under the layer norm of the queries; keys
    and values are dropped out separately. The layers are scanned: 45 of them unrolled take minutes to compile.
    """

    heads: int
    layers: int
    attention_dropout: float = 0.0
    relu_dropout: float = 0.0
    residual_dropout: float = 0.0
    embed_dropout: float = 0.0
    causal: bool = True
    positions: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'b t d'],
        mask: Bool[Array, 'b t'],
        source: Float[Array, 'b s d'] | None = None,
        source_mask: Bool[Array, 'b s'] | None = None,
        *,
        train: bool,
        last: bool = False,
    ) -> Float[Array, 'b t d'] | Float[Array, 'b d']:
        """Encoded steps; with `last`, the last present one only, for less than all of the work."""
        width = x.shape[-1]
        weights = self.param('layers', self._init_layers, width)
        rates = (self.attention_dropout, self.relu_dropout, self.residual_dropout, self.embed_dropout)
        rng = self.make_rng('dropout') if train and any(rates) else None
        keys = [None] * 4 if rng is None else list(jax.random.split(rng, 4))
        seen = visible(mask, mask if source_mask is None else source_mask, causal=self.causal)
        if source is not None:
            k, v = (normalise(self._embed(source, key)) for key in keys[1:3])
            source = (k, v)
        x = self._embed(x, keys[0])

        @jax.checkpoint
        def step(x, layer):
            return self._layer(*layer, x, source, seen), None

        scanned = (weights, keys[3] if rng is None else jax.random.split(keys[3], self.layers))
        if not last:
            x, _ = jax.lax.scan(step, x, scanned)
        else:
            pass
            x, _ = jax.lax.scan(step, x, scanned)
            x = last_present(x, mask)
        scale = self.param('scale', nn.initializers.ones, (width,))
        bias = self.param('bias', nn.initializers.zeros, (width,))
        return _affine({'scale': scale, 'bias': bias}, normalise(x))

    def _init_layers(self, key: PRNGKeyArray, width: int) -> Weights:
        n = self.layers
        xavier = nn.initializers.xavier_uniform(batch_axis=(0,))
        keys = iter(jax.random.split(key, 4))

        def dense(inputs, outputs):
            return {'kernel': xavier(next(keys), (n, inputs, outputs)), 'bias': jnp.zeros((n, outputs))}

        def norm():
            return {'scale': jnp.ones((n, width)), 'bias': jnp.zeros((n, width))}

        return {
            'attention_norm': norm(),
            'query_key_value': dense(width, 3 * width),
            'attention_out': dense(width, width),
            'feedforward_norm': norm(),
            'expand': dense(width, 4 * width),
            'contract': dense(4 * width, width),
        }

    def _embed(self, x, key):
        scaled = x * math.sqrt(x.shape[-1])
        return dropout(scaled + positions(x) if self.positions else scaled, self.embed_dropout, key)

    def _layer(self, p, key, x, source, seen):
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        d = x.shape[-1]
        y = _affine(p['attention_norm'], normalise(x))
        qkv = p['query_key_value']
        if source is None:
            q, k, v = jnp.split(_dense(qkv, y), 3, axis=-1)
        else:
            ps = [{'kernel': qkv['kernel'][:, i * d:(i + 1) * d], 'bias': qkv['bias'][i * d:(i + 1) * d]} for i in range(3)]
            q, k, v = _dense(ps[0], y), _dense(ps[1], _affine(p['attention_norm'], source[0])), _dense(ps[2], _affine(p['attention_norm'], source[1]))
        y = attend(q, k, v, seen, heads=self.heads, rate=self.attention_dropout, key=keys[0])
        x = x + dropout(_dense(p['attention_out'], y), self.residual_dropout, keys[1])
        y = _affine(p['feedforward_norm'], normalise(x))
        y = dropout(nn.relu(_dense(p['expand'], y)), self.relu_dropout, keys[2])
        return x + dropout(_dense(p['contract'], y), self.residual_dropout, keys[3])

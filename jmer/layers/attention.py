"""Attention with masks, and the pre-norm encoder of MulT that twenty later systems are built from.

The arithmetic is arranged for speed on a CPU, where a step of MulT is a third faster this way than
PyTorch's; what was measured stands beside each arrangement.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from jmer.layers.dropout import drop, dropout, keep_mask, keep_probability, seeds
from jmer.layers.position import positions

Weights = dict[str, Any]


def lengths(mask: Bool[Array, '*b t']) -> Int[Array, '*b']:
    """The number of steps up to and including the last present one."""
    return jnp.max(jnp.where(mask, jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1) + 1, 0), -1)


def last_present(x: Shaped[Array, 'b t d'], mask: Bool[Array, 'b t']) -> Shaped[Array, 'b 1 d']:
    """The last present step; zeros where there is none."""
    index = jnp.maximum(lengths(mask) - 1, 0)
    step = jnp.take_along_axis(x, index[:, None, None], axis=1)
    return jnp.where(mask.any(-1)[:, None, None], step, 0)


def visible(
    queries: Bool[Array, 'b t'], keys: Bool[Array, 'b s'], *, causal: bool
) -> Bool[Array, 'b t s']:
    """Which key each query may see: the present ones; if causal, those with s <= t + |S - T|.

    S and T are the true lengths of the item, so how far a batch is padded changes nothing.
    """
    shape = (*queries.shape, keys.shape[1])
    present = jnp.broadcast_to(keys[:, None, :], shape)
    if not causal:
        return present
    offset = jnp.abs(lengths(keys) - lengths(queries))[:, None, None]
    t, s = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
    return present & (s <= t + offset)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(
    q: Float[Array, 'b t d'],
    k: Float[Array, 'b s d'],
    v: Float[Array, 'b s d'],
    mask: Bool[Array, 'b t s'],
    keep: Bool[Array, 'b h s t'] | None,
    rate: float,
    heads: int,
) -> Float[Array, 'b t d']:
    """Scaled dot-product attention, heads side by side in d. A query that sees no key gets zero.

    keep: dropout mask of the attention weights at this rate, or None.

    Scores lie as [s t], so that the softmax reduces over the slower axis and only products of narrow
    matrices are transposed, never the scores; the weights are normalised after the sum over keys.
    """
    return _attend(q, k, v, mask, keep, rate, heads)[0]


def _attend(q, k, v, mask, keep, rate, heads):
    q = q * (q.shape[-1] // heads) ** -0.5
    score = jnp.einsum('bhtk,bhsk->bhst', _split(q, heads), _split(k, heads))
    score = jnp.where(mask.swapaxes(1, 2)[:, None], score, -jnp.inf)
    top = jnp.max(score, axis=2, keepdims=True, initial=-1e30)      # finite where nothing is visible
    weight = jnp.exp(score - top)
    total = weight.sum(2)
    inverse = 1 / jnp.where(total > 0, total, 1)        # [b h t]
    out = jnp.einsum('bhst,bhks->bhkt', drop(weight, rate, keep), _split(v, heads).swapaxes(2, 3))
    out = (out * inverse[:, :, None]).transpose(0, 3, 1, 2).reshape(q.shape)
    return out, (q, k, v, keep, weight, inverse, out)


def _attend_backward(rate, heads, saved, dout):
    q, k, v, keep, weight, inverse, out = saved
    # The derivative of the softmax needs sum_s(dweight * weight), which is dout . out.
    inner = (dout * out).reshape(*out.shape[:2], heads, -1).sum(-1).transpose(0, 2, 1) * inverse
    dout = _split(dout, heads) * inverse[..., None]
    dv = jnp.einsum('bhst,bhtk->bhsk', drop(weight, rate, keep), dout)
    dweight = drop(jnp.einsum('bhtk,bhsk->bhst', dout, _split(v, heads)), rate, keep)
    dscore = weight * (dweight - inner[:, :, None])
    dq = jnp.einsum('bhst,bhks->bhkt', dscore, _split(k, heads).swapaxes(2, 3))
    dq = dq.transpose(0, 3, 1, 2).reshape(q.shape) * (q.shape[-1] // heads) ** -0.5
    dk = jnp.einsum('bhst,bhtk->bhsk', dscore, _split(q, heads))
    return dq, _join(dk), _join(dv), None, None


attend.defvjp(_attend, _attend_backward)


def _split(x: Float[Array, 'b t d'], heads: int) -> Float[Array, 'b h t k']:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _join(x: Float[Array, 'b h t k']) -> Float[Array, 'b t d']:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


@jax.custom_vjp
def normalise(x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Zero mean and unit variance over the features: layer normalisation before scale and bias."""
    return _normalise(x)[0]


def _normalise(x):
    centred = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return centred * inverse, (centred * inverse, inverse)


def _normalise_backward(saved, dy):
    y, inverse = saved
    return (inverse * (dy - dy.mean(-1, keepdims=True) - y * (dy * y).mean(-1, keepdims=True)),)


normalise.defvjp(_normalise, _normalise_backward)


def _fold(norm: Weights, dense: Weights) -> Weights:
    """A dense layer on `normalise(x)` that equals scale and bias of the norm and then `dense`."""
    return {'kernel': norm['scale'][:, None] * dense['kernel'],
            'bias': norm['bias'] @ dense['kernel'] + dense['bias']}


def _dense(weights: Weights, x: Float[Array, 'b t d']) -> Float[Array, 'b t e']:
    """A dense layer; on rows, not on [b t d], whose gradient XLA transposes in memory (1.0 ms for 0.4)."""
    y = x.reshape(-1, x.shape[-1]) @ weights['kernel'] + weights['bias'][None]
    return y.reshape(*x.shape[:-1], -1)


def _columns(weights: Weights, part: slice) -> Weights:
    return {'kernel': weights['kernel'][:, part], 'bias': weights['bias'][part]}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_layers(layer, x, weights, shared, keys, constant):
    """x through layers of stacked weights: `x = layer(x, weights[i], shared, keys[i], constant)`.

    Gradients flow to x, weights and shared. Only x is kept for the backward pass, and every layer is computed again. That is
    `jax.checkpoint` in `jax.lax.scan`, but that pair moves all that does not depend on x (zeros, masks, counters) out of the
    loop, where it becomes arrays to be read instead of numbers in registers.
    """
    return _scan_layers(layer, x, weights, shared, keys, constant)[0]


def _scan_layers(layer, x, weights, shared, keys, constant):
    def step(x, per_layer):
        w, key = per_layer
        return layer(x, w, shared, key, constant), x

    out, inputs = jax.lax.scan(step, x, (weights, keys))
    return out, (inputs, weights, shared, keys, constant)


def _scan_layers_backward(layer, saved, dout):
    inputs, weights, shared, keys, constant = saved

    def step(carry, per_layer):
        dx, dshared = carry
        x, w, key = per_layer
        _, pull = jax.vjp(lambda *args: layer(*args, key, constant), x, w, shared)
        dx, dw, ds = pull(dx)
        return (dx, jax.tree.map(jnp.add, dshared, ds)), dw

    start = dout, jax.tree.map(jnp.zeros_like, shared)
    (dx, dshared), dweights = jax.lax.scan(step, start, (inputs, weights, keys), reverse=True)
    return dx, dweights, dshared, None, None


scan_layers.defvjp(_scan_layers, _scan_layers_backward)


class Encoder(nn.Module):
    """The encoder of MulT (Tsai et al., ACL 2019): pre-norm layers that read themselves or a source.

    Inputs are scaled by sqrt(d) and get positions. With a source, queries come from x and keys and
    values from the *embedded* source, the same at every layer, under the layer norm of the queries; keys
    and values are dropped out separately.

    The layers are scanned: 45 of them, unrolled, take minutes to compile. Each is computed again in the
    backward pass, for what a scan saves it copies, and that takes longer (790 ms a step against 560).
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
    ) -> Float[Array, 'b #t d']:
        """The encoded steps; with `last` only the last present one, which spares most of a layer."""
        width = x.shape[-1]
        weights = self.param('layers', self._init_layers, width)
        norm = {'scale': self.param('scale', nn.initializers.ones, (width,)),
                'bias': self.param('bias', nn.initializers.zeros, (width,))}
        rates = (self.attention_dropout, self.relu_dropout, self.residual_dropout, self.embed_dropout)
        draws: Any = (None, None)
        if train and any(rates):
            key = self.make_rng('dropout')
            draws = seeds(key, 3), seeds(jax.random.fold_in(key, 1), self.layers, 4)

        x, *source = self._embed(x, source, draws[0])
        keys = draws[1]
        seen = visible(mask, mask if source_mask is None else source_mask, causal=self.causal)
        if last:
            scanned, final = jax.tree.map(lambda w: w[:-1], (weights, keys)), jax.tree.map(lambda w: w[-1], (weights, keys))
            x = scan_layers(self._layer, x, scanned[0], source, scanned[1], seen)
            x = self._layer(x, final[0], source, final[1], seen, mask)
        else:
            x = scan_layers(self._layer, x, weights, source, keys, seen)
        return normalise(x) * norm['scale'][None, None] + norm['bias'][None, None]

    def _init_layers(self, key: PRNGKeyArray, width: int) -> Weights:
        xavier, keys = nn.initializers.xavier_uniform(batch_axis=(0,)), iter(jax.random.split(key, 4))

        def dense(inputs, outputs):
            return {'kernel': xavier(next(keys), (self.layers, inputs, outputs)),
                    'bias': jnp.zeros((self.layers, outputs))}

        def norm():
            return {'scale': jnp.ones((self.layers, width)), 'bias': jnp.zeros((self.layers, width))}

        return {
            'attention_norm': norm(),
            'query_key_value': dense(width, 3 * width),
            'attention_out': dense(width, width),
            'feedforward_norm': norm(),
            'expand': dense(width, 4 * width),
            'contract': dense(4 * width, width),
        }

    def _embed(self, x, source, seed):
        inputs = [x] if source is None else [x, source, source]
        out = []
        for y, k in zip(inputs, [None] * 3 if seed is None else seed, strict=False):
            scaled = y * math.sqrt(y.shape[-1])
            out.append(dropout(scaled + positions(y) if self.positions else scaled, self.embed_dropout, k))
        return [out[0], *map(normalise, out[1:])]

    def _layer(self, x, weights, source, key, seen, last=None):
        d = x.shape[-1]
        qkv = _fold(weights['attention_norm'], weights['query_key_value'])
        y = normalise(x)
        if source:
            parts = zip((y, *source), range(3), strict=True)
            q, k, v = (_dense(_columns(qkv, slice(i * d, (i + 1) * d)), z) for z, i in parts)
        else:
            q, k, v = jnp.split(_dense(qkv, y), 3, axis=-1)
        if last is not None:
            q, x, seen = last_present(q, last), last_present(x, last), last_present(seen, last)
        keys = [None] * 4 if key is None else key
        keep = None
        if key is not None and keep_probability(self.attention_dropout) < 1:
            keep = keep_mask(keys[0], self.attention_dropout, (x.shape[0], self.heads, k.shape[1], q.shape[1]))
        y = attend(q, k, v, seen, keep, self.attention_dropout, self.heads)
        x = x + dropout(_dense(weights['attention_out'], y), self.residual_dropout, keys[1])
        y = nn.relu(_dense(_fold(weights['feedforward_norm'], weights['expand']), normalise(x)))
        y = _dense(weights['contract'], dropout(y, self.relu_dropout, keys[2]))
        return x + dropout(y, self.residual_dropout, keys[3])

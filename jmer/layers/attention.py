"""Attention with masks, and the pre-norm encoder of MulT that many later systems are built from.

The arithmetic is arranged for CPUs as much as for accelerators: each arrangement that a reader would not
expect says what it gains; what they gain together, `jmer bench mult-peer` measures.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PRNGKeyArray, UInt32

from jmer.layers.dense import on_rows, product
from jmer.layers.dropout import drop, dropout, keep_mask, keep_probability, seeds
from jmer.layers.pooling import pool
from jmer.layers.position import positions
from jmer.types import Array

Weights = dict[str, Any]


def lengths(mask: Bool[Array, '*b t']) -> Int[Array, '*b']:
    """The number of steps up to and including the last present one."""
    steps = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1) + 1
    return jnp.max(jnp.where(mask, steps, 0), axis=-1, initial=0)


def visible(
    queries: Bool[Array, 'b t'], keys: Bool[Array, 'b s'], *, causal: bool
) -> Bool[Array, 'b t s']:
    """Which key each query may see: the present ones; if causal, those with s <= t + |S - T|.

    S and T are the item's own lengths, so how far a batch is padded changes nothing.
    """
    shape = (*queries.shape, keys.shape[1])
    present = jnp.broadcast_to(keys[:, None], shape)
    if not causal:
        return present
    offset = jnp.abs(lengths(keys) - lengths(queries))[:, None, None]
    t, s = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
    return present & (s <= t + offset)


def attend(
    q: Float[Array, 'b t d'],
    k: Float[Array, 'b s d'],
    v: Float[Array, 'b s d'],
    mask: Bool[Array, 'b t s'],
    *,
    heads: int,
    rate: float = 0.0,
    seed: UInt32[Array, '2'] | None = None,
) -> Float[Array, 'b t d']:
    """Scaled dot-product attention, heads side by side in d. A query that sees no key gets zero.

    mask: True where query t sees key s. What stands under False must be finite, and is not used.
    rate: dropout of the attention weights, active where there is a seed (`dropout.seeds`).
    """
    keep = None
    if seed is not None and keep_probability(rate) < 1:
        keep = keep_mask(seed, rate, (len(q), heads, k.shape[1], q.shape[1]))
    return _attend(q, k, v, mask, keep, rate, heads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, mask, keep, rate, heads):
    """Attention whose backward pass moves less memory than the derived one.

    Scores lie as [b h s t]: the softmax reduces over the slower axis, and of every product only a narrow
    factor is transposed, never the scores. Weights are normalised after the sum over the keys, where
    there are d numbers a query instead of s.
    """
    return _attend_forward(q, k, v, mask, keep, rate, heads)[0]


def _attend_forward(q, k, v, mask, keep, rate, heads):
    q = q * (q.shape[-1] // heads) ** -0.5
    score = _product('bhtk,bhsk->bhst', _split(q, heads), _split(k, heads))
    score = jnp.where(mask.swapaxes(1, 2)[:, None], score, -jnp.inf)
    top = jnp.max(score, axis=2, keepdims=True, initial=-1e30)      # finite where nothing is visible
    weight = jnp.exp(score - top)
    total = weight.sum(2)
    inverse = 1 / jnp.where(total > 0, total, 1)                    # [b h t]
    weight = weight.astype(q.dtype)
    out = _product('bhst,bhks->bhkt', drop(weight, rate, keep), _split(v, heads).swapaxes(2, 3))
    out = _join((out * inverse[:, :, None]).swapaxes(2, 3)).astype(q.dtype)
    return out, (q, k, v, keep, weight, inverse, out)


def _attend_backward(rate, heads, saved, dout):
    q, k, v, keep, weight, inverse, out = saved
    # What the softmax subtracts, the sum over s of weight times its gradient, is dout . out.
    inner = _split(dout * out, heads).sum(-1) * inverse
    dout = (_split(dout, heads) * inverse[..., None]).astype(q.dtype)
    dv = _product('bhst,bhtk->bhsk', drop(weight, rate, keep), dout)
    dweight = drop(_product('bhtk,bhsk->bhst', dout, _split(v, heads)), rate, keep)
    dscore = (weight * (dweight - inner[:, :, None])).astype(q.dtype)
    # Scaled before it is transposed: XLA would otherwise fold the transposition into the product.
    dq = _product('bhst,bhks->bhkt', dscore, _split(k, heads).swapaxes(2, 3))
    dq = (dq * (q.shape[-1] // heads) ** -0.5).swapaxes(2, 3)
    dk = _product('bhst,bhtk->bhsk', dscore, _split(q, heads))
    return *(_join(x).astype(q.dtype) for x in (dq, dk, dv)), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _product(equation: str, *factors: Array) -> Array:
    """A sum of products, summed in float32 whatever the factors are."""
    return jnp.einsum(equation, *factors, preferred_element_type=jnp.float32)


def _split(x: Float[Array, 'b t d'], heads: int) -> Float[Array, 'b h t k']:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _join(x: Float[Array, 'b h t k']) -> Float[Array, 'b t d']:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


@jax.custom_vjp
def normalise(x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Zero mean and unit variance over the features: layer normalisation before scale and bias."""
    return _normalise_forward(x)[0]


def _normalise_forward(x):
    centred = x.astype(jnp.float32)
    centred = centred - centred.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    y = (centred * inverse).astype(x.dtype)
    return y, (y, inverse)


def _normalise_backward(saved, dy):
    y, inverse = saved
    y32, dy = y.astype(jnp.float32), dy.astype(jnp.float32)
    dx = inverse * (dy - dy.mean(-1, keepdims=True) - y32 * (dy * y32).mean(-1, keepdims=True))
    return (dx.astype(y.dtype),)


normalise.defvjp(_normalise_forward, _normalise_backward)


def dense(weights: Weights, x: Float[Array, '*b d']) -> Float[Array, '*b e']:
    """x @ kernel + bias."""
    return on_rows(lambda rows: product(rows, weights['kernel']) + weights['bias'][None], x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_layers(layer: Callable, x: Any, weights: Any, shared: Any, seed: Any, constant: Any) -> Any:
    """Passes x through layers of stacked weights: `x = layer(x, weights[i], shared, seed[i], constant)`.

    Gradients go to x, weights and shared; seed and constant have none. Unrolled, 45 layers take minutes
    to compile. Only the x of every layer is kept for the backward pass, which computes the layer again:
    a scan copies whatever it keeps, and that takes longer.
    `jax.checkpoint` inside `jax.lax.scan` says the same, but moves out of the loop all that does not
    depend on x, so that zeros and counters become large arrays to be read.
    """
    return _scan_forward(layer, x, weights, shared, seed, constant)[0]


def _scan_forward(layer, x, weights, shared, seed, constant):
    def step(x, own):
        return layer(x, own[0], shared, own[1], constant), x

    out, inputs = jax.lax.scan(step, x, (weights, seed))
    return out, (inputs, weights, shared, seed, constant)


def _scan_backward(layer, saved, dout):
    inputs, weights, shared, seed, constant = saved

    def step(carry, own):
        x, w, s = own
        _, pull = jax.vjp(lambda *args: layer(*args, s, constant), x, w, shared)
        dx, dw, dshared = pull(carry[0])
        return (dx, jax.tree.map(jnp.add, carry[1], dshared)), dw

    start = dout, jax.tree.map(jnp.zeros_like, shared)
    (dx, dshared), dweights = jax.lax.scan(step, start, (inputs, weights, seed), reverse=True)
    return dx, dweights, dshared, None, None


scan_layers.defvjp(_scan_forward, _scan_backward)


class Encoder(nn.Module):
    """The encoder of MulT (Tsai et al., ACL 2019): pre-norm layers that read a source, or themselves.

    Inputs are scaled by sqrt(d) and get positions. With a source, queries come from x, keys and values
    from the *embedded* source, the same in every layer, under the layer norm of the queries; keys and
    values are dropped out separately.

    heads: of which d must be a multiple. layers: how many, at least 1. The rates are those of the
    attention weights, of the hidden units, of what is added to x, and of the embedded inputs.
    causal: query t sees key s only if s <= t + |S - T|. positions: whether inputs get any.
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
        """The encoded steps, zero where absent; with `last` only the last present one.

        The last step alone spares most of the last layer, and equals the last of all steps.
        """
        weights = self.param('layers', _init_layers, self.layers, x.shape[-1])
        norm = self.param('norm', _init_norm, x.shape[-1])
        rates = self.attention_dropout, self.relu_dropout, self.residual_dropout
        embed_seed = seed = None
        if train and any((*rates, self.embed_dropout)):
            key = self.make_rng('dropout')
            embed_seed, seed = seeds(key, 3), seeds(jax.random.fold_in(key, 1), self.layers, 4)

        read = []
        if source is not None and source_mask is not None:
            read = [normalise(self._embed(source, source_mask, embed_seed, i)) for i in (1, 2)]
        keys = mask if source_mask is None else source_mask
        seen = visible(mask, keys, causal=self.causal)
        x = self._embed(x, mask, embed_seed, 0)
        layer = functools.partial(_layer, heads=self.heads, rates=rates)
        stacked = _fold_norms(weights)
        if last:
            first, (final, seed) = (jax.tree.map(lambda w, i=i: w[i], (stacked, seed))
                                    for i in (slice(-1), -1))
            if self.layers > 1:
                x = scan_layers(layer, x, first[0], read, first[1], seen)
            # Whatever the lengths are, the causal rule lets the last query see every key.
            x = layer(x, final, read, seed, keys[:, None], last=mask)
            there: Array = jnp.any(mask, -1)[:, None]
        else:
            x, there = scan_layers(layer, x, stacked, read, seed, seen), mask
        x = normalise(x) * norm['scale'][None, None] + norm['bias'][None, None]
        return jnp.where(there[..., None], x, 0)

    def _embed(self, x, mask, seed, i):
        x = jnp.where(mask[..., None], x, 0)       # so that not even a NaN under the mask gets further
        scaled = x * math.sqrt(x.shape[-1])
        embedded = scaled + positions(x) if self.positions else scaled
        return dropout(embedded, self.embed_dropout, None if seed is None else seed[i])


@functools.partial(jax.jit, static_argnames=('heads', 'rates'))
def _layer(x, weights, read, seed, seen, last=None, *, heads, rates):
    """One layer on x or, given the mask of its steps as `last`, on the last of them.

    weights: from `_fold_norms`. read: normalised keys and values of a source, or nothing: x reads itself.
    The `jit` lets encoders of one shape share what is traced; XLA inlines it.
    """
    attention, relu, residual = rates
    seed = [None] * 4 if seed is None else seed
    y = normalise(x)
    keys, values = read or (y, y)
    if last is not None:
        x, y = (pool(z, last, 'last')[:, None] for z in (x, y))
    if read or last is not None:
        thirds = _thirds(weights['query_key_value'])
        q, k, v = (dense(third, z) for third, z in zip(thirds, (y, keys, values), strict=True))
    else:
        q, k, v = jnp.split(dense(weights['query_key_value'], y), 3, -1)
    y = attend(q, k, v, seen, heads=heads, rate=attention, seed=seed[0])
    x = x + dropout(dense(weights['attention_out'], y), residual, seed[1])
    y = nn.relu(dense(weights['expand'], normalise(x)))
    y = dense(weights['contract'], dropout(y, relu, seed[2]))
    return x + dropout(y, residual, seed[3])


def _fold_norms(weights: Weights) -> Weights:
    """The weights of all layers with scale and bias of each norm folded into what reads the norm.

    So they are applied to matrices once and not to every step, and the source is normalised but once.
    """
    return {
        'query_key_value': _fold(weights['attention_norm'], weights['query_key_value']),
        'attention_out': weights['attention_out'],
        'expand': _fold(weights['feedforward_norm'], weights['expand']),
        'contract': weights['contract'],
    }


def _thirds(weights: Weights) -> list[Weights]:
    """The weights of queries, keys and values."""
    parts = zip(*(jnp.split(weights[name], 3, axis=-1) for name in ('kernel', 'bias')), strict=True)
    return [{'kernel': kernel, 'bias': bias} for kernel, bias in parts]


def _fold(norm: Weights, weights: Weights) -> Weights:
    bias = jnp.einsum('nd,nde->ne', norm['bias'], weights['kernel']) + weights['bias']
    return {'kernel': norm['scale'][..., None] * weights['kernel'], 'bias': bias}


def _init_norm(key: PRNGKeyArray, *shape: int) -> Weights:
    return {'scale': jnp.ones(shape), 'bias': jnp.zeros(shape)}


def _init_layers(key: PRNGKeyArray, layers: int, width: int) -> Weights:
    """Stacked weights: Xavier uniform, queries, keys and values as one matrix, and zero biases."""
    xavier, keys = nn.initializers.xavier_uniform(batch_axis=(0,)), iter(jax.random.split(key, 4))

    def linear(inputs: int, outputs: int) -> Weights:
        return {'kernel': xavier(next(keys), (layers, inputs, outputs)), 'bias': jnp.zeros((layers, outputs))}

    return {
        'attention_norm': _init_norm(key, layers, width),
        'query_key_value': linear(width, 3 * width),
        'attention_out': linear(width, width),
        'feedforward_norm': _init_norm(key, layers, width),
        'expand': linear(width, 4 * width),
        'contract': linear(4 * width, width),
    }

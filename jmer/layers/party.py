"""Recurrent layers over the turns of one speaker at a time."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jmer.types import Array


def by_speaker(
    layer: Callable[[Array, Array], Array],
    x: Float[Array, 'b u d'],
    speakers: Int[Array, 'b u'],
    present: Bool[Array, 'b u'],
    count: int,
    *,
    padded: bool = False,
) -> Float[Array, 'b u e']:
    """What `layer` (x [n u d], mask [n u]) makes of every speaker's turns, read as if the others were not there.

    count: speakers below this number are read; the turns of others give zeros, as absent ones do.
    padded: let the layer see zeros behind every speaker's turns, as many as the dialogue has turns of others.
        Two systems do so in their authors' code, where a backward direction starts on those zeros.
    """
    x, speakers, present = (jnp.asarray(a) for a in (x, speakers, present))
    number = jnp.arange(count, dtype=speakers.dtype)[None, :, None]
    own = (speakers[:, None] == number) & present[:, None]      # [b p u]
    each = jnp.where(own[..., None], x[:, None], 0)
    if not padded:
        return _run(layer, each, own).sum(1)
    order = jnp.argsort(~own, axis=-1)                          # stable: own turns first, in their order
    each = jnp.take_along_axis(each, order[..., None], axis=2)
    seen = jnp.arange(x.shape[1])[None, None] < present.sum(-1)[:, None, None]
    y = _run(layer, each, jnp.broadcast_to(seen, own.shape))
    back = jnp.take_along_axis(y, jnp.argsort(order, axis=-1)[..., None], axis=2)
    return jnp.where(own[..., None], back, 0).sum(1)


def _run(layer, x, mask):
    y = layer(x.reshape(-1, *x.shape[2:]), mask.reshape(-1, mask.shape[-1]))
    return y.reshape(*x.shape[:2], *y.shape[1:])

"""Gradient reversal (Ganin & Lempitsky, ICML 2015)."""

import functools

import jax
from jaxtyping import Float

from jmer.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def reverse_gradient(x: Float[Array, '*b d'], weight: float = 1.0) -> Float[Array, '*b d']:
    """x itself; its gradient is multiplied by -weight, so that what is in front works against what follows."""
    return x


reverse_gradient.defvjp(lambda x, weight: (x, None), lambda weight, _, gradient: (-weight * gradient,))

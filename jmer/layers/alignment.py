"""Pseudo-alignment of a sequence to a given number of steps."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jmer.layers.recurrent import BiLSTM
from jmer.types import Array, Stream


class Aligner(nn.Module):
    """An LSTM says for every step to which of `steps` places it belongs (Tsai et al., ACL 2019, CTC).

    The scores train with `losses.ctc` on the places 1, 2, ..., the length of what is aligned to; place 0 is
    "to none". Authors: the module CTCModule of yaohungt/Multimodal-Transformer.

    Attributes:
        steps: places that there are.
        layers: of the LSTM.
    """

    steps: int
    layers: int = 2

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool) -> tuple[Stream, Float[Array, 'b t {self.steps+1}']]:
        """The sums of the steps that belong to each place, and the scores of the places.

        The shares of a place need not add up to 1. All places are present where any step is.
        """
        x, there = stream.x, stream.mask[..., None]
        scores = BiLSTM(self.steps + 1, self.layers, causal=True, name='lstm')(x, stream.mask, train=train)
        shares = jnp.where(there, nn.softmax(scores)[..., 1:], 0)
        aligned = jnp.einsum('btl,btd->bld', shares, jnp.where(there, x, 0))
        mask = jnp.broadcast_to(jnp.any(stream.mask, 1, keepdims=True), aligned.shape[:2])
        return Stream(aligned, mask), scores

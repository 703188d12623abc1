"""Attention and the post-norm layer of Vaswani et al. (NeurIPS 2017), as PyTorch and BERT have them."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers.activation import gelu
from jmer.layers.attention import attend, visible
from jmer.layers.dropout import Dropout, seeds
from jmer.layers.masked import DENSE, MaskedDense
from jmer.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {'relu': nn.relu, 'gelu': gelu}


def layer_norm(name: str, epsilon: float = 1e-5) -> nn.LayerNorm:
    """Layer normalisation by PyTorch's constants; the variance is that of what is centred already."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)


def recomputed(layer: type[nn.Module], *, keep_dense: bool) -> type[nn.Module]:
    """A layer to be scanned that keeps its input for the gradient, or besides what its masked dense layers gave.

    All that a scanned layer keeps is copied, which on a CPU takes longer than to normalise or drop once more,
    and of long dialogues it is most of a step's memory.
    """
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(DENSE) if keep_dense else policies.nothing_saveable
    return nn.remat(layer, prevent_cse=False, policy=policy)


class Attention(nn.Module):
    """Multi-head attention of x to a source, each as wide as x; what sees nothing gets the last layer's bias.

    Attributes:
        heads: of which the width must be a multiple.
        dropout: rate of the attention weights.
    """

    heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], source: Float[Array, 'b s e'], seen: Bool[Array, 'b t s'], *, train: bool
    ) -> Float[Array, 'b t d']:
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f'attention: width {width}, expected a multiple of {self.heads} heads')
        seed = seeds(self.make_rng('dropout')) if train and self.dropout else None
        reading, read = (jnp.any(seen, axis) for axis in (2, 1))
        q = MaskedDense(width, name='query')(x, reading)
        k, v = jnp.split(MaskedDense(2 * width, name='key_value')(source, read), 2, axis=-1)
        y = attend(q, k, v, seen, heads=self.heads, rate=self.dropout, seed=seed)
        return MaskedDense(width, name='attention_out')(y, reading)


class PostNormLayer(nn.Module):
    """Attention, of x to itself or to a source, and a feed-forward network, each with x added, then normalised.

    Attributes:
        heads: of which the width must be a multiple.
        hidden: width inside the feed-forward network.
        activation: 'relu', or 'gelu' by the error function.
        epsilon: added to the variances.
        dropout: rate of the attention weights and of both results.
        hidden_dropout: rate inside the feed-forward network.
    """

    heads: int
    hidden: int
    activation: str = 'relu'
    epsilon: float = 1e-5
    dropout: float = 0.0
    hidden_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'b t d'],
        mask: Bool[Array, 'b t'],
        source: Float[Array, 'b s e'] | None = None,
        source_mask: Bool[Array, 'b s'] | None = None,
        *,
        train: bool,
    ) -> Float[Array, 'b t d']:
        """The steps of x, zero where absent. A step that sees nothing adds zero to itself."""
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f'transformer layer: width {width}, expected a multiple of {self.heads} heads')
        read, there = (x, mask) if source is None or source_mask is None else (source, source_mask)
        seed = seeds(self.make_rng('dropout')) if train and self.dropout else None
        q = MaskedDense(width, name='query')(x, mask)
        k, v = jnp.split(MaskedDense(2 * width, name='key_value')(read, there), 2, axis=-1)
        y = attend(q, k, v, visible(mask, there, causal=False), heads=self.heads, rate=self.dropout, seed=seed)
        y = MaskedDense(width, name='attention_out')(y, mask)
        x = layer_norm('attention_norm', self.epsilon)(x + Dropout(self.dropout, name='dropout_1')(y, train=train))
        y = ACTIVATIONS[self.activation](MaskedDense(self.hidden, name='expand')(x, mask))
        y = Dropout(self.hidden_dropout, name='dropout_2')(y, train=train)
        y = Dropout(self.dropout, name='dropout_3')(MaskedDense(width, name='contract')(y, mask), train=train)
        x = layer_norm('feedforward_norm', self.epsilon)(x + y)
        return jnp.where(mask[..., None], x, 0)

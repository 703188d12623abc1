"""The post-norm layer of `layers.transformer` for systems that look at the attention weights.

It has the same parameters, and says what every query sees by a mask of its own. Weights that nobody looks
at, XLA does not keep.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.graph import softmax
from jmer.layers.transformer import layer_norm
from jmer.types import Array

_xavier = nn.initializers.xavier_uniform()


def weigh(
    q: Float[Array, 'b t d'], k: Float[Array, 'b s d'], mask: Bool[Array, 'b t s'], heads: int
) -> Float[Array, 'b h t s']:
    """Attention weights of every head; all zero for a query that sees no key."""
    q, k = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k))
    scores = jnp.einsum('bthk,bshk->bhts', q * q.shape[-1]**-0.5, k)
    return softmax(scores, jnp.broadcast_to(mask[:, None], scores.shape))


def mix(weights: Float[Array, 'b h t s'], v: Float[Array, 'b s d']) -> Float[Array, 'b t d']:
    """The values, weighed head by head."""
    heads = v.reshape(*v.shape[:2], weights.shape[1], -1)
    return jnp.einsum('bhts,bshk->bthk', weights, heads).reshape(len(v), weights.shape[2], -1)


class PostNorm(nn.Module):
    """One layer of self-attention; gives its attention weights as well.

    Attributes:
        heads: of which d must be a multiple.
        hidden: width of the dense layer in the middle, under a ReLU.
        attention_dropout, attended_dropout, hidden_dropout, out_dropout: of the attention weights, of
            what they gather, of the hidden units, and of what the dense layers add.
    """

    heads: int
    hidden: int
    attention_dropout: float = 0.0
    attended_dropout: float = 0.0
    hidden_dropout: float = 0.0
    out_dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t t'], *, train: bool
    ) -> tuple[Float[Array, 'b t d'], Float[Array, 'b h t t']]:
        """mask: True where query t sees key s."""
        def dense(width, name):
            return Dense(width, kernel_init=_xavier, name=name)

        def drop(x, rate, name):
            return Dropout(rate, name=f'dropout_{name}')(x, train=train)

        d = x.shape[-1]
        q, (k, v) = dense(d, 'query')(x), jnp.split(dense(2 * d, 'key_value')(x), 2, -1)
        weights = weigh(q, k, mask, self.heads)
        attended = mix(drop(weights, self.attention_dropout, 'attention'), v)
        attended = dense(d, 'attention_out')(attended)
        x = layer_norm('attention_norm')(x + drop(attended, self.attended_dropout, 'attended'))
        hidden = drop(nn.relu(dense(self.hidden, 'expand')(x)), self.hidden_dropout, 'hidden')
        added = drop(dense(d, 'contract')(hidden), self.out_dropout, 'out')
        return layer_norm('feedforward_norm')(x + added), weights

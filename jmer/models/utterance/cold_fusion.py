"""COLD Fusion: calibrated and ordinal latent distributions (Tellamekala et al., TPAMI 2023, arXiv:2206.05833).

After the paper. What a recurrent network makes of a stream is not a vector but a normal distribution, and its
variance is to tell how much the stream is worth for this item: the distributions are fused with the inverse
of their variances as weights. So that variances can bear this, training holds them against the errors of the
streams' own predictions: the softmax of the variances over all items and streams is to be the softmax of the
errors, in both directions. A match calibrates the variances (large where the error is) and puts them in order
across the streams.

Read: the abstract, and second-hand the fusion rule, a prediction of each stream and of the fused
distribution that share the task's loss, the softmax over items and streams of errors and of the variances' norms
with the symmetric divergence between them, and a divergence from the standard normal distribution. Inferred:

- One distribution an utterance, from the mean over time of two bidirectional GRU layers; the paper has one for
  every frame of a video. The softmax therefore runs over the utterances of a batch.
- Variances are softplus + 0.001; their norm is divided by the root of the width, so that no width changes it.
- Training draws one sample of every distribution; testing takes the means. An error is the task's own loss, and
  is given: the match moves variances alone.
- All sizes, weights and the temperature.

Padding is masked. An absent stream has no weight, and no part in any loss; with none at all the fused
distribution is the standard normal one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.diffusion import noise
from jmer.layers.mlp import MLP
from jmer.layers.pooling import pool
from jmer.layers.recurrent import BiGRU
from jmer.types import Array, Batch, Label, Output

TAGS = ('deep fusion', 'uncertainty', 'joint representation', 'recurrent', 'unaligned', 'missing modality')
SMALLEST = 1e-3


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: what is read; the paper's are face and voice, and text where there is any.
    states, layers: of the GRU of each stream, its width in one direction.
    width: of the latent distributions.
    hidden: width inside each prediction.
    decision_weight: of the streams' own predictions in the loss.
    match_weight: of the divergence of variances from errors. temperature: of both softmaxes.
    prior_weight: of the divergence from the standard normal distribution.
    dropout: rate between the GRU's layers and in the predictions.
    """

    classes: int
    streams: tuple[str, ...] = ('vision', 'audio', 'text')
    states: int = 128
    layers: int = 2
    width: int = 128
    hidden: int = 64
    decision_weight: float = 1.0
    match_weight: float = 1.0
    temperature: float = 1.0
    prior_weight: float = 1e-3
    dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        """aux: 'mean', 'variance' and 'weights' [b m width], 'uncertainty' and 'there' [b m], 'decisions' [b m c]."""
        there = jnp.stack([jnp.any(batch.streams[name].mask, -1) for name in self.streams], 1)
        parts = [self._distribution(name, batch, train) for name in self.streams]
        mean, variance = (jnp.stack(part, 1) for part in zip(*parts, strict=True))
        fused_mean, fused_variance, weights = fuse(mean, variance, there)

        z = jnp.concatenate([mean, fused_mean[:, None]], 1)
        if train:
            spread = jnp.sqrt(jnp.concatenate([variance, fused_variance[:, None]], 1))
            z = z + spread * noise(self.make_rng('dropout'), *z.shape)
        heads = [MLP((self.hidden, self.classes), self.dropout, name=name)
                 for name in (*(f'decide_{name}' for name in self.streams), 'head')]
        *decisions, logits = (head(z[:, m], train=train) for m, head in enumerate(heads))
        return Output(logits, {'mean': mean, 'variance': variance, 'weights': weights, 'there': there,
                               'uncertainty': uncertainty(variance), 'decisions': jnp.stack(decisions, 1)})

    def _distribution(self, name, batch, train):
        """Mean and variance of a stream, [b width] each."""
        stream = batch.streams[name]
        states = BiGRU(self.states, self.layers, self.dropout, name=f'encode_{name}')(*stream, train=train)
        context = pool(states, stream.mask, 'mean')
        mean, raw = (Dense(self.width, name=f'{part}_{name}')(context) for part in ('mean', 'variance'))
        return mean, nn.softplus(raw) + SMALLEST


def fuse(
    mean: Float[Array, 'b m d'], variance: Float[Array, 'b m d'], there: Bool[Array, 'b m']
) -> tuple[Float[Array, 'b d'], Float[Array, 'b d'], Float[Array, 'b m d']]:
    """The normalised product of the streams' normal distributions: mean, variance, and the weights of the means.

    The standard normal distribution where no stream is there.
    """
    precision = jnp.where(there[..., None], 1 / variance, 0)
    whole = jnp.sum(precision, 1)
    whole = jnp.where(whole > 0, whole, 1)
    weights = precision / whole[:, None]
    return jnp.sum(weights * mean, 1), 1 / whole, weights


def uncertainty(variance: Float[Array, '*b d']) -> Float[Array, '*b']:
    """The norm of the variances, divided by the root of their number."""
    return jnp.sqrt(jnp.mean(jnp.square(variance), -1))


def mismatch(
    errors: Float[Array, '*b'], uncertain: Float[Array, '*b'], mask: Bool[Array, '*b'], temperature: float
) -> Float[Array, '']:
    """KL(p || q) + KL(q || p) of the softmaxes of errors and uncertainties over all entries under the mask."""
    log_p, log_q = (jax.nn.log_softmax(jnp.where(mask, x / temperature, -1e30), axis=None)
                    for x in (errors, uncertain))
    each = (jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)
    return jnp.sum(jnp.where(mask, each, 0))


def from_prior(mean: Float[Array, '*b d'], variance: Float[Array, '*b d']) -> Float[Array, '*b']:
    """KL of a normal distribution from the standard one, in nats, the mean over its features."""
    return 0.5 * jnp.mean(jnp.square(mean) + variance - 1 - jnp.log(variance), -1)


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """The task's loss of the fused and of each stream's prediction, the match and the prior, weighted."""
    label, there = losses.target(batch.labels), out.aux['there']
    labelled = there & jnp.asarray(label.mask)[:, None]
    terms = {'label': losses.task(out.logits, batch.labels)}
    for m, name in enumerate(model.streams):
        own = {name: Label(label.value, labelled[:, m])}
        terms[f'label_{name}'] = losses.task(out.aux['decisions'][:, m], own)
    errors = jax.lax.stop_gradient(jnp.stack([terms[f'label_{name}'].value for name in model.streams], 1))
    found = mismatch(errors, out.aux['uncertainty'], labelled, model.temperature)
    terms['match'] = losses.coupled(found, jnp.any(labelled, 1))

    counts = there & batch.present[:, None]
    apart = jnp.sum(jnp.where(counts, from_prior(out.aux['mean'], out.aux['variance']), 0), 1)
    streams = jnp.sum(counts, 1)
    terms['prior'] = losses.Term(apart / jnp.maximum(streams, 1), (streams > 0).astype(apart.dtype))
    weights = {f'label_{name}': model.decision_weight for name in model.streams}
    return losses.weighted(terms, match=model.match_weight, prior=model.prior_weight, **weights)

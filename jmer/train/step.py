"""The training step: (state, batch, key) -> (state, sums), pure, the same for every model.

The loss is a sum of terms, each a weighted mean over the *global* batch: all devices, all parts of an
accumulated batch. So neither padding nor the way a batch is cut up can bias it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jmer.collectives import total
from jmer.losses import Term
from jmer.types import Batch, Output, Params

Loss = Callable[[nn.Module, Output, Batch], dict[str, Term]]
Augment = Callable[[Batch, jax.Array], Batch]
Sums = dict[str, Any]


class TrainState(NamedTuple):
    """All that training changes. step: updates done; model_state: batch statistics and their like."""

    step: jax.Array
    params: Params
    model_state: dict[str, Any]
    opt_state: optax.OptState


def init_states(
    model: nn.Module, optimizer: optax.GradientTransformation, batch: Batch, seeds: Sequence[int]
) -> TrainState:
    """Fresh states, one for each seed, stacked on a leading axis; `batch` gives the shapes.

    One by one: a vmapped initialisation with orthogonal matrices can deadlock on CPU.
    """
    init = jax.jit(lambda key: model.init(key, batch, train=False))

    def fresh(seed):
        variables = dict(init(jax.random.key(seed)))
        params = variables.pop('params')
        return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))

    return jax.tree.map(lambda *leaves: np.stack(leaves), *[fresh(seed) for seed in seeds])


def init_state(model: nn.Module, optimizer: optax.GradientTransformation, batch: Batch, seed: int) -> TrainState:
    """A fresh state of one seed; `batch` gives the shapes."""
    return jax.tree.map(lambda x: jnp.asarray(x[0]), init_states(model, optimizer, batch, [seed]))


def make_step(
    model: nn.Module,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    metric_sums: Callable[[Output, Batch], Any],
    augment: Augment = lambda batch, key: batch,
    accumulate: int = 1,
    compute_dtype: str = 'float32',
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Sums]]:
    """The step of an experiment.

    metric_sums: what is measured on the training batch, as sums over it.
    augment: change of a batch at random: modality dropout, noise.
    accumulate: parts a batch is split into; their gradients add up to those of the whole.
    compute_dtype: of the forward and backward pass.

    The sums hold the weighted sum and the weight of every loss term, the metric sums, the norm of the
    gradients, and whether all was finite: a step that is not leaves the state unchanged.
    """

    def forward(params, model_state, batch, key):
        """Loss terms as {name: (weighted sum, weight)}, metric sums and the new model state."""
        augment_key, dropout_key = jax.random.split(key)
        batch = augment(batch, augment_key)
        variables = {'params': cast(params, compute_dtype), **model_state}
        out, changed = model.apply(variables, cast_streams(batch, compute_dtype), train=True,
                                   rngs={'dropout': dropout_key}, mutable=list(model_state))
        out = cast(out, 'float32')
        terms = {name: (jnp.sum(term.value * term.weight), jnp.sum(term.weight))
                 for name, term in loss(model, out, batch).items()}
        return terms, (metric_sums(out, batch), dict(changed))

    def weights(params, model_state, parts, keys):
        """Weight of every loss term over all parts, which each part's gradient has to be divided by.

        A forward pass in writing only: weights hang on labels and masks, the compiler drops the rest.
        """
        terms = jax.lax.map(lambda part: forward(params, model_state, *part)[0], (parts, keys))
        return {name: jax.lax.stop_gradient(total(jnp.sum(w))) for name, (_, w) in terms.items()}

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Sums]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), accumulate)
        parts = jax.tree.map(lambda x: _split(x, accumulate), batch)
        whole = weights(state.params, state.model_state, parts, keys) if accumulate > 1 else None

        def objective(params, model_state, batch, key):
            terms, (measured, changed) = forward(params, model_state, batch, key)
            divisors = whole or {name: jax.lax.stop_gradient(total(w)) for name, (_, w) in terms.items()}
            value = sum(s / jnp.maximum(divisors[name], 1e-9) for name, (s, _) in terms.items())
            return value, (terms, measured, changed)

        def part_step(carry, part):
            gradient, model_state = carry
            (_, (terms, measured, changed)), new = jax.value_and_grad(objective, has_aux=True)(
                state.params, model_state, *part)
            return (jax.tree.map(jnp.add, gradient, new), changed), (terms, measured)

        zero = jax.tree.map(jnp.zeros_like, state.params)
        (gradient, model_state), (terms, measured) = jax.lax.scan(
            part_step, (zero, state.model_state), (parts, keys))
        gradient = total(gradient)
        terms, measured = total(jax.tree.map(lambda x: jnp.sum(x, 0), (terms, measured)))

        norm = optax.tree.norm(gradient)
        # A huge input can overflow the batch statistics, or the loss, and leave every gradient finite.
        told = jax.tree.leaves((norm, terms, model_state))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in told]))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), model_state, opt_state)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return new, {'loss': terms, 'metrics': measured, 'gradient_norm': norm, 'finite': finite}

    return step


def _split(x: jax.Array, parts: int) -> jax.Array:
    """[b ...] to [parts, b/parts, ...]. Strided, so that each device keeps an equal share of every part."""
    if x.shape[0] % parts:
        raise ValueError(f'a batch of {x.shape[0]} cannot be accumulated in {parts} parts')
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)


def cast(tree: Any, dtype: str) -> Any:
    """The tree with its floating-point leaves in another precision."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree)


def cast_streams(batch: Batch, dtype: str) -> Batch:
    """The batch with its features in another precision; labels stay."""
    return batch._replace(streams=cast(batch.streams, dtype))

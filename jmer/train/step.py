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
from jmer.stages import TEACHER, Learner, Objective
from jmer.train.optimizers import matches
from jmer.types import Batch, Output, Params

Augment = Callable[[Batch, jax.Array], Batch]
Sums = dict[str, Any]


class TrainState(NamedTuple):
    """All that training changes. step: updates done; model_state: batch statistics and their like; memory: see
    `jmer.stages`."""

    step: jax.Array
    params: Params
    model_state: dict[str, Any]
    opt_state: optax.OptState
    memory: Any = ()


class Perturbation(NamedTuple):
    """Adversarial training (the fast gradient method, Miyato et al., ICLR 2017): a second pass at other weights.

    names: patterns over the names of the weights that are moved. by: how far, along their own gradients.
    """

    names: tuple[str, ...]
    by: float


def init_states(
    model: nn.Module, optimizer: optax.GradientTransformation, batch: Batch, seeds: Sequence[int],
    teacher: nn.Module | None = None, memory: Any = (),
) -> TrainState:
    """Fresh states, one for each seed, stacked on a leading axis; `batch` gives the shapes.

    One by one: a vmapped initialisation with orthogonal matrices can deadlock on CPU.
    """
    @jax.jit
    def init(key):
        variables = dict(model.init(key, batch, train=False))
        beside = teacher.init(jax.random.fold_in(key, 1), batch, train=False) if teacher else {}
        return variables | {name: {**variables.get(name, {}), TEACHER: value} for name, value in beside.items()}

    def fresh(seed):
        variables = dict(init(jax.random.key(seed)))
        params = variables.pop('params')
        return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params), memory)

    return jax.tree.map(lambda *leaves: np.stack(leaves), *[fresh(seed) for seed in seeds])


def init_state(model: nn.Module, optimizer: optax.GradientTransformation, batch: Batch, seed: int) -> TrainState:
    """A fresh state of one seed; `batch` gives the shapes."""
    return jax.tree.map(lambda x: jnp.asarray(x[0]), init_states(model, optimizer, batch, [seed]))


def make_step(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    metric_sums: Callable[[Output, Batch], Any],
    augment: Augment = lambda batch, key: batch,
    accumulate: int = 1,
    compute_dtype: str = 'float32',
    perturbation: Perturbation | None = None,
    teacher: nn.Module | None = None,
    steps_per_epoch: int = 1,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Sums]]:
    """The step of an experiment, or of one of its stages.

    objective: see `jmer.stages`, where one is made of a loss.
    metric_sums: what is measured on the training batch, as sums over it.
    augment: change of a batch at random: modality dropout, noise.
    accumulate: parts a batch is split into; their gradients add up to those of the whole.
    compute_dtype: of the forward and backward pass.
    perturbation: adds the gradient at weights moved against the loss; the moved ones keep their own.
    teacher: a module whose variables stand beside the model's.

    The sums hold the weighted sum and the weight of every loss term, the metric sums, the norm of the
    gradients, and whether all was finite: a step that is not leaves the state unchanged.
    """
    forward = _forward(model, objective, metric_sums, augment, compute_dtype, teacher)
    gradients = _gradients(forward, accumulate > 1)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Sums]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), accumulate)
        parts = jax.tree.map(lambda x: _split(x, accumulate), batch)
        rest = ((state.model_state, state.memory), parts, keys, 1 + state.step // steps_per_epoch)
        gradient, (model_state, memory), (terms, measured) = gradients(state.params, *rest)
        if perturbation is not None:
            chosen = _chosen(gradient, perturbation.names)
            moved = gradients(_perturbed(state.params, gradient, chosen, perturbation.by), *rest)[0]
            gradient = jax.tree.map(lambda g, m, own: g if own else g + m, gradient, moved, chosen)

        norm = optax.tree.norm(gradient)
        # A huge input can overflow the batch statistics, or the loss, and leave every gradient finite.
        told = jax.tree.leaves((norm, terms, model_state))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in told]))

        def update(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return TrainState(state.step + 1, params, model_state, opt_state, memory)

        # A branch and not a choice between two states, for which a CPU would read and write them twice.
        new = jax.lax.cond(finite, update, lambda state: state, state)
        return new, {'loss': terms, 'metrics': measured, 'gradient_norm': norm, 'finite': finite}

    return step


def _gradients(forward: Callable, several: bool) -> Callable:
    """The gradient of a batch that comes in parts, `several` or one, see `_forward`."""
    def weights(params, carry, parts, keys, epoch):
        """Weight of every loss term over all parts, which each part's gradient has to be divided by.

        A forward pass in writing only: weights hang on labels and masks, the compiler drops the rest.
        """
        terms = jax.lax.map(lambda part: forward(params, *carry, *part, epoch)[0], (parts, keys))
        return {name: jax.lax.stop_gradient(total(jnp.sum(w))) for name, (_, w) in terms.items()}

    def gradients(params, carry, parts, keys, epoch):
        """Gradient of the whole batch, the model's state and memory behind it, the terms and what was measured."""
        whole = weights(params, carry, parts, keys, epoch) if several else None

        def value(params, carry, batch, key):
            terms, measured, carry = forward(params, *carry, batch, key, epoch)
            divisors = whole or {name: jax.lax.stop_gradient(total(w)) for name, (_, w) in terms.items()}
            parts = (s / jnp.maximum(divisors[name], 1e-9) for name, (s, _) in terms.items())
            return sum(parts), (terms, measured, carry)

        def of_part(so_far, part):
            gradient, carry = so_far
            (_, (terms, measured, carry)), new = jax.value_and_grad(value, has_aux=True)(params, carry, *part)
            return (jax.tree.map(jnp.add, gradient, new), carry), (terms, measured)

        zero = jax.tree.map(jnp.zeros_like, params)
        (gradient, carry), found = _over_parts(of_part, (zero, carry), (parts, keys))
        return total(gradient), carry, total(jax.tree.map(lambda x: jnp.sum(x, 0), found))

    return gradients


def _forward(model, objective, metric_sums, augment, compute_dtype, teacher) -> Callable:
    """A pass over a part of a batch.

    It gives the loss terms as {name: (weighted sum, weight)}, the metric sums, and the new model state and memory.
    """
    def forward(params, model_state, memory, batch, key, epoch):
        augment_key, dropout_key = jax.random.split(key)
        variables = {'params': cast(params, compute_dtype), **model_state}
        changed = dict(model_state)

        def ask(batch, **fields):
            out, new = (model.clone(**fields) if fields else model).apply(
                variables, cast_streams(batch, compute_dtype), train=True, rngs={'dropout': dropout_key},
                mutable=list(model_state))
            changed.update({name: _beside(value, model_state[name]) for name, value in new.items()})
            return cast(out, 'float32')

        def teach(batch, *, train):
            own = {name: value[TEACHER] for name, value in variables.items() if TEACHER in value}
            mutable = [name for name in own if name != 'params'] if train else []
            out, new = teacher.apply(own, cast_streams(batch, compute_dtype), train=train,
                                     rngs={'dropout': dropout_key}, mutable=mutable)
            changed.update({name: changed[name] | {TEACHER: value} for name, value in new.items()})
            return cast(out, 'float32')

        learner = Learner(ask, teach, memory, epoch, jax.random.fold_in(dropout_key, 1))
        batch = augment(batch, augment_key)
        out, terms, memory = objective(model, learner, batch)
        summed = {name: (jnp.sum(term.value * term.weight), jnp.sum(term.weight)) for name, term in terms.items()}
        return summed, metric_sums(out, batch), (changed, jax.lax.stop_gradient(memory))

    return forward


def _beside(new: Any, old: Any) -> Any:
    """A collection that the model has changed, with the teacher's part of it as it was."""
    return {**new, TEACHER: old[TEACHER]} if TEACHER in old else new


def _chosen(tree: Any, patterns: Sequence[str]) -> Any:
    """Which leaves the patterns name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: matches(path, patterns), tree)


def _perturbed(params: Any, gradient: Any, chosen: Any, by: float) -> Any:
    """Weights moved so far along their gradients, each by itself."""
    def move(p, g, own):
        return p + by * g / jnp.maximum(jnp.linalg.norm(g.ravel()), 1e-12) if own else p

    return jax.tree.map(move, params, gradient, chosen)


def _over_parts(function: Callable, carry: Any, parts: Any) -> tuple[Any, Any]:
    """`lax.scan`, but for one part no loop, within which XLA's convolutions on a CPU are many times slower."""
    if jax.tree.leaves(parts)[0].shape[0] > 1:
        return jax.lax.scan(function, carry, parts)
    carry, found = function(carry, jax.tree.map(lambda x: x[0], parts))
    return carry, jax.tree.map(lambda x: x[None], found)


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

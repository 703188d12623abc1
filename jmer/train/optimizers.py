"""From the optimiser's settings to optax."""

import fnmatch
from collections.abc import Callable, Sequence

import jax
import optax

from jmer.train.experiment import Optimizer


def make(
    settings: Optimizer, steps: int, moves: Callable[[str], bool] | None = None
) -> optax.GradientTransformation:
    """The optimiser of a run, or of a stage of it, of `steps` steps.

    moves: whether the parameter of a name is its affair; every one is, if None.
    """
    rate = schedule(settings, steps)
    rules = {
        'adam': lambda: optax.adam(rate),
        'adamw': lambda: optax.adamw(rate, weight_decay=settings.weight_decay, mask=_decays),
        'sgd': lambda: optax.sgd(rate),
    }
    if settings.name not in rules:
        raise ValueError(f'optimizer.name: found {settings.name!r}, expected one of {", ".join(rules)}')
    clip = optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity()
    rule = optax.chain(clip, rules[settings.name]())
    if not settings.freeze and moves is None:
        return rule

    def moving(path):
        return (moves is None or moves(_name(path))) and not matches(path, settings.freeze)

    def labels(params):
        names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in settings.freeze:
            if not fnmatch.filter(names, pattern):
                raise ValueError(f'optimizer.freeze: no parameter matches {pattern!r}; they are '
                                 + ', '.join(names))
        return jax.tree_util.tree_map_with_path(
            lambda path, _: 'moving' if moving(path) else 'frozen', params)

    return optax.partition({'moving': rule, 'frozen': optax.set_to_zero()}, labels)


def in_turn(optimizers: Sequence[optax.GradientTransformation], k: int) -> optax.GradientTransformation:
    """The optimiser number k of several, each with a state of its own; the others' states wait."""
    if len(optimizers) == 1:
        return optimizers[0]

    def update(gradient, states, params=None):
        updates, new = optimizers[k].update(gradient, states[k], params)
        return updates, (*states[:k], new, *states[k + 1:])

    return optax.GradientTransformation(lambda params: tuple(one.init(params) for one in optimizers), update)


def schedule(settings: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate at every step: a linear rise, then flat, linear or cosine."""
    warmup = round(settings.warmup * steps)
    rest = max(steps - warmup, 1)
    shapes = {
        'constant': lambda: optax.constant_schedule(settings.rate),
        'linear': lambda: optax.linear_schedule(settings.rate, 0.0, rest),
        'cosine': lambda: optax.cosine_decay_schedule(settings.rate, rest),
    }
    if settings.schedule not in shapes:
        raise ValueError(
            f'optimizer.schedule: found {settings.schedule!r}, expected one of {", ".join(shapes)}')
    shape = shapes[settings.schedule]()
    if not warmup:
        return shape
    return optax.join_schedules([optax.linear_schedule(0.0, settings.rate, warmup), shape], [warmup])


def _decays(params):
    """Weight decay is for kernels: biases and the scales of norms keep their freedom."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key.rpartition('_')[2] not in ('bias', 'scale'), params)


def matches(path, patterns) -> bool:
    """Whether one of the patterns is that of a parameter's path."""
    return any(fnmatch.fnmatchcase(_name(path), pattern) for pattern in patterns)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')

"""What a computation costs: its floating-point operations, counted before it runs.

Counted from the traced program, so that the figure depends on shapes alone and not on compiler or machine. A
product of matrices [m k] and [k n] is 2 m k n operations, a convolution likewise, without the zeros that a stride
puts between the numbers of its gradient; everything else is one operation for each element of its result (of its
operand, for reductions). Loops count as often as they run. What no result depends on does not count.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

FREE = frozenset((
    'broadcast_in_dim', 'concatenate', 'convert_element_type', 'copy', 'device_put', 'dynamic_slice',
    'dynamic_update_slice', 'gather', 'iota', 'pad', 'random_bits', 'random_fold_in', 'random_split', 'random_unwrap',
    'random_wrap', 'reshape', 'rev', 'scatter', 'slice', 'split', 'squeeze', 'stop_gradient', 'threefry2x32',
    'transpose', 'bitcast_convert_type', 'shift_right_logical', 'shift_left', 'random_seed', 'sharding_constraint'))
"""Primitives that move or draw numbers and compute nothing with them."""
Makers = Mapping[core.Var, core.JaxprEqn]
"""The equation that makes a variable."""


def flops(function: Callable[..., Any], *arguments: Any, branch: Callable[..., int] = max) -> int:
    """Floating-point operations of `function(*arguments)`; arrays or their `jax.ShapeDtypeStruct`s will do.

    The branches of a condition count as the dearest of them, or as `branch` chooses; a loop of unknown length counts as
    often as it can run, if it ends at the smaller of something and a constant, else as one pass.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used, branch)


def _count(jaxpr: core.Jaxpr, branch: Callable[..., int]) -> int:
    makers = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    return sum(_of(equation, branch, makers) for equation in jaxpr.eqns)


def _of(equation: core.JaxprEqn, branch: Callable[..., int], makers: Makers) -> int:
    name, params = equation.primitive.name, equation.params
    if name == 'scan':
        return params['length'] * _count(params['jaxpr'].jaxpr, branch)
    if name == 'while':
        return _most_passes(equation, makers) * _count(params['body_jaxpr'].jaxpr, branch)
    if name == 'cond':
        return branch(_count(one.jaxpr, branch) for one in params['branches'])
    inner = next((params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr', 'call') if params.get(key)), None)
    if inner is not None:
        return _count(getattr(inner, 'jaxpr', inner), branch)
    result = sum(_size(x) for x in equation.outvars)
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        return 2 * result * math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
    if name == 'conv_general_dilated':
        kernel = _shape(equation.invars[1])
        products = math.prod(kernel) // kernel[params['dimension_numbers'].rhs_spec[0]]
        return 2 * result * products // math.prod(params['lhs_dilation'])
    if name in FREE:
        return 0
    return sum(_size(x) for x in equation.invars) if name.startswith(('reduce', 'cum', 'arg')) else result


def _most_passes(loop: core.JaxprEqn, makers: Makers) -> int:
    """The constant of `jax.lax.fori_loop(0, jax.lax.min(steps, constant), ...)`, else 1."""
    constants = loop.params['cond_nconsts'] + loop.params['body_nconsts']
    _, *others = loop.invars[constants:]            # the counter, where it ends, and what is computed
    end = makers.get(others[0]) if others and isinstance(others[0], core.Var) else None
    limits = end.invars if end is not None and end.primitive.name == 'min' else []
    return next((int(x.val) for x in limits if isinstance(x, core.Literal)), 1)


def _size(variable: Any) -> int:
    return math.prod(_shape(variable))


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, 'shape', ())

"""What every model of the zoo refuses, before it reads a batch.

A model's folder says what goes in, its fields say which streams it reads. Whatever is wrong with a batch can so be
told in one place, in words, instead of from deep within a layer.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from jmer.types import Batch, Stream


class Checked(nn.Module):
    """A model that checks its batches, at no cost under jit: `check` runs while the program is traced."""

    def __init_subclass__(cls, **options: Any):
        if '__call__' in vars(cls):
            # Before Flax, which wraps what it finds.
            cls.__call__ = _checked(cls.__call__)   # type: ignore[method-assign]
        super().__init_subclass__(**options)


def _checked(call: Callable) -> Callable:
    @functools.wraps(call)
    def checked(self, batch, *arguments, **options):
        check(self, batch)
        return call(self, batch, *arguments, **options)

    return checked


def streams_of(model: nn.Module) -> tuple[str, ...]:
    """The streams that a model cannot do without: those of its fields `streams`, `texts`, `stream`, ..."""
    several = (name for field in ('streams', 'texts') for name in getattr(model, field, ()))
    single = (getattr(model, field, '') for field in ('stream', 'intra', 'inter', 'discourse'))
    return tuple(dict.fromkeys(name for name in (*several, *single) if name))


def check(model: nn.Module, batch: Batch) -> None:
    """Raises ValueError naming the model, what is wrong with its batch, what was found and what was expected.

    A stream that the model reads has to be there (missing in all items, it is a stream whose mask is False
    everywhere) and laid out as the model's family has it, with at least one step; masks have to be boolean.
    """
    *folders, name = type(model).__module__.split('.')
    dialogue = 'dialogue' in folders[-1:]

    def refuse(what: str, found: object, expected: str) -> ValueError:
        return ValueError(f'{name}: {what}: found {found}, expected {expected}')

    items = np.shape(batch.present)
    if len(items) != 1 + dialogue:
        raise refuse('present', f'shape {items}', 'dialogues [b u]' if dialogue else 'one value for every item, [b]')
    if dialogue and not items[1]:
        raise refuse('present', f'shape {items}', 'dialogues of at least one turn')
    who = batch.speakers if dialogue else None
    if who is not None and (np.shape(who) != items or who.dtype.kind not in 'iu'):
        raise refuse('speakers', f'{who.dtype} {np.shape(who)}', f'whole numbers {items}, one for every turn')
    for stream in streams_of(model):
        if stream not in batch.streams:
            raise refuse(f'stream {stream!r}', f'only {", ".join(sorted(batch.streams)) or "none"}',
                         'it in the batch, with a mask of False where it is missing')
        _check_stream(batch.streams[stream], items, functools.partial(refuse, f'stream {stream!r}'))


def _check_stream(stream: Stream, items: tuple[int, ...], refuse: Callable[[str, str], ValueError]) -> None:
    shape, mask = np.shape(stream.x), stream.mask
    if len(items) == 2:
        fits, expected = len(shape) in (3, 4), f'a vector a turn, {[*items, "d"]}, or steps in it, {[*items, "t", "d"]}'
    else:
        fits, expected = len(shape) == 3, f'steps of every item, {[*items, "t", "d"]}'
    if not fits or shape[:len(items)] != items:
        raise refuse(f'shape {shape}', expected.replace("'", ''))
    if 0 in shape[1:-1]:
        raise refuse(f'shape {shape}', 'at least one step')
    if np.shape(mask) != shape[:-1] or mask.dtype != bool:
        raise refuse(f'a mask {mask.dtype} {np.shape(mask)}', f'bool {shape[:-1]}')

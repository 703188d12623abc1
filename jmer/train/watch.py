"""Reading batches ahead of the devices, and knowing whether the devices ever waited for them."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from jmer import parallel
from jmer.types import Batch


class Watch:
    """Reads batches ahead in a thread, and knows how long the devices waited for them."""

    def __init__(self) -> None:
        self._start, self._idle = time.perf_counter(), 0.0

    def ahead(
        self, make: Callable[[int], Batch], start: int, stop: int, busy: Callable[[], bool]
    ) -> Iterator[Batch]:
        """Batches `start` to `stop` - 1, two being made while one is used.

        make: gives the batch of a step.
        busy: whether the devices still work on the step before; what they work on they do not wait for.
        """
        with ThreadPoolExecutor(1, 'jmer batches') as reader:
            queue = deque(reader.submit(make, k) for k in range(start, min(start + 2, stop)))
            for step in range(start + 2, stop + 2):
                before = time.perf_counter()
                batch = queue.popleft().result()
                if not busy():
                    self._idle += time.perf_counter() - before
                if step < stop:
                    queue.append(reader.submit(make, step))
                yield batch

    def figures(self, steps: int) -> dict[str, float]:
        """Milliseconds a step, the share of them in which the devices waited for input, at most; memory so far."""
        seconds = time.perf_counter() - self._start
        return {'time/ms_per_step': 1e3 * seconds / steps, 'time/input_wait': self._idle / seconds,
                'memory/peak_bytes': float(parallel.peak_memory())}

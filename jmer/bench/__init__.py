"""What the figures of the documentation claim, measured: `jmer bench`.

Every benchmark is a function in this package and prints rows of (figure, found, goal). Seconds on a
shared machine are noisy; ratios within one run are what to quote.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One figure. found and goal are words, with units."""

    figure: str
    found: str
    goal: str


def benchmarks() -> dict[str, Callable[[Path | None], list[Row]]]:
    """All benchmarks by name; each takes the folder of RAVDESS, which only some need."""
    from jmer.bench import start

    return {
        'import': start.import_time,
        'first-step': start.first_step,
        'first-command': start.first_command,
        'input-wait': start.input_wait,
        'mult-peer': start.mult_peer,
        'seeds': start.seeds,
    }


def run(names: Sequence[str], data: Path | None, console: Console) -> None:
    """Runs the benchmarks of these names, all that can run if none; prints a table.

    Raises ValueError for an unknown name, or one that needs what is not here.
    """
    known = benchmarks()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f'no benchmark is called {", ".join(unknown)}; they are {", ".join(known)}')
    table = Table('benchmark', 'figure', 'found', 'goal', title='jmer bench')
    for name in names or known:
        try:
            rows = known[name](data)
        except (ImportError, ValueError) as fault:
            if names:
                raise ValueError(f'{name} cannot run here: {fault}') from fault
            rows = [Row('-', f'not run: {fault}', '')]
        for row in rows:
            table.add_row(name, *row)
    console.print(table)

"""How a training step of the conversation systems grows with the turns of a dialogue: `jmer bench --turns`.

    python -m jmer.bench.turns NAME TURNS [--json FILE]

The step is that of `jmer.bench.systems`, at the authors' sizes where their table has the system, on one dialogue
without padding. The growth of time and memory is the exponent of a power of the turns, fitted to the lengths
from FITTED on: below it what a step costs without any turn, the optimizer above all, hides the rest.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jmer.bench import machine, systems
from jmer.bench.authors import DIALOGUES, Timing, model_of

TURNS = (8, 32, 128, 512)
FITTED = 32
SECONDS = 5.0
WIDTH = 300
"""Of the streams of systems that the authors' table does not have."""


def dialogue_of(name: str, turns: int) -> Timing:
    """A dialogue of so many turns for a system, and its fields, a table of positions as long as need be."""
    from jmer import zoo

    known = [timing for key, timing in DIALOGUES.items() if model_of(key) == name]
    timing = known[0] if known else Timing('', None, 1, {}, 6, kind='class')
    model = zoo.create(name, classes=timing.classes, **timing.fields)
    longer = {'max_turns': turns} if getattr(model, 'max_turns', turns) < turns else {}
    streams = {stream: (turns, timing.streams.get(stream, (turns, WIDTH))[1]) for stream in zoo.streams_of(model)}
    return timing._replace(batch=1, streams=streams, fields={**timing.fields, **longer})


def growth(turns: Sequence[int], costs: Sequence[float]) -> float:
    """The exponent a of the power law c * turns^a nearest to the costs, in logarithms."""
    x, y = [math.log(n) for n in turns], [math.log(cost) for cost in costs]
    centre_x, centre_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - centre_x) ** 2 for a in x)
    if not spread:
        raise ValueError(f'growth: found costs at {sorted(set(turns))} turns, expected two lengths or more')
    return sum((a - centre_x) * (b - centre_y) for a, b in zip(x, y, strict=True)) / spread


def run(names: Sequence[str], console: Console, lengths: Sequence[int] = TURNS) -> dict[str, Any]:
    """Measures these systems, all conversation systems if none are named, prints a table, gives all figures."""
    from jmer import zoo

    names = names or zoo.list_models('dialogue')
    wrong = [name for name in names if name not in zoo.list_models('dialogue')]
    if wrong:
        raise ValueError(f'not a conversation system: {", ".join(wrong)}; they are '
                         f'{", ".join(zoo.list_models("dialogue"))}')
    found = {}
    for name in names:
        found[name] = {turns: _at(name, turns) for turns in lengths}
        console.print(f'{name}: {", ".join(map(_short, found[name].values()))}', style='dim', highlight=False)
    console.print(table(found))
    return {'turns': found, 'growth': {name: exponents(one) for name, one in found.items()}}


def _at(name: str, turns: int) -> dict[str, Any]:
    try:
        return machine.apart('jmer.bench.turns', name, str(turns))
    except ValueError as fault:
        return {'fault': str(fault)}


def exponents(found: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Growth of time and memory; none where a length failed or fewer than two are left to be fitted."""
    fitted = {turns: one for turns, one in found.items() if turns >= FITTED}
    if len(fitted) < 2 or any('fault' in one for one in fitted.values()):
        return {}
    return {kind: growth(list(fitted), [float(one[kind]) for one in fitted.values()]) for kind in ('seconds', 'memory')}


def table(figures: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Table:
    """Time and memory at every length, and the exponents."""
    lengths = list(next(iter(figures.values())))
    shown = Table('system', *(f'{turns} turns' for turns in lengths), 'growth of time', 'of memory',
                  title='CPU ms and MB of a training step of one dialogue, one thread')
    for name, found in figures.items():
        shown.add_row(name, *map(_short, found.values()), *_growth(exponents(found)))
    return shown


def _short(found: Mapping[str, Any]) -> str:
    return found['fault'] if 'fault' in found else f'{1000 * found["seconds"]:.0f} ms, {found["memory"] / 1e6:.0f} MB'


def _growth(fitted: Mapping[str, float]) -> Iterator[str]:
    yield from (f'{fitted[kind]:.2f}' if fitted else '-' for kind in ('seconds', 'memory'))


def main(argv: list[str] | None = None) -> None:
    """Measures one system at one length in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('name', metavar='NAME')
    parser.add_argument('turns', type=int, metavar='TURNS')
    parser.add_argument('--json', type=Path, help='write the figures to this file, not to the screen')
    options = parser.parse_args(argv)
    machine.hold_to_one_thread()
    found = systems.measure(options.name, dialogue_of(options.name, options.turns), SECONDS)
    machine.tell(found, options.json)


if __name__ == '__main__':
    main()

"""RESULTS.md: the table of all published weights, written from their cards and from nothing else.

The same cards give the same bytes, so that a check can say whether the file is in step with them. A card
without test results is listed as having none; fields that older cards lack leave their cell empty.
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jmer import checkpoint
from jmer.train.evaluate import LOWER

SHOWN = {
    'class': ('accuracy', 'uar', 'weighted_f1', 'macro_f1', 'ece15'),
    'multilabel': ('micro_f1', 'macro_f1', 'mosei_weighted_accuracy', 'subset_accuracy', 'hamming_loss'),
    'regression': ('mae', 'pearson', 'ccc', 'acc2_non0', 'acc2_has0', 'acc7_round'),
    'distribution': ('kl', 'js', 'chebyshev', 'clark', 'canberra', 'cosine'),
}
"""The metrics that a table shows of each label kind; the first leads."""

LEADING = {'meld': 'weighted_f1'}
"""The corpora whose literature reports another metric first."""

HEAD = """# Results

Written by `jmer results` from the cards under `checkpoints/`, never by hand; `jmer results --check` says whether the
two are in step.

A figure is the mean ± standard deviation over the runs, which differ in their test part, their seed or both; the
test side was opened once a run, after the epoch had been chosen as stated. The 95 % interval is a bootstrap over the
speakers, videos or dialogues of the test side. *Seeds as one*: their mean scores, as an ensemble. Where a figure was
chosen *on* the test side, it stands in a table of its own.
"""

SELECTED = """Not to be compared with the figures above: **what the literature would print** of the same runs, the best
epoch *on the test side*, and by how much that flatters them (the selection gap).
"""

TITLES = {
    'uar': 'UAR', 'nll': 'NLL', 'ece15': 'ECE', 'brier_multiclass': 'Brier score', 'mae': 'MAE', 'rmse': 'RMSE',
    'ccc': 'CCC', 'pearson': 'Pearson', 'kl': 'KL', 'js': 'JS', 'bce': 'BCE', 'mosei_weighted_accuracy':
    'weighted accuracy (MOSEI)', 'mosei_weighted_f1': 'weighted F1 (MOSEI)',
}

Number = int | float

_SHARE = re.compile(r'accuracy|^acc\d|uar|f1|recall|precision|hamming|^ece')


class Row(NamedTuple):
    """One published model. name: what `jmer.load` takes. runs: the test figures of each run, command and all."""

    name: str
    card: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]


def render(folder: Path) -> str:
    """The whole of RESULTS.md, from <folder>/<model>/<dataset>/card.json.

    Raises ValueError naming the card and the field where one is damaged or incomplete.
    """
    tables: dict[tuple[str, str, str], list[Row]] = {}
    for path in sorted(Path(folder).glob('*/*/card.json')):
        row = _row(path)
        target = row.card['target']
        tables.setdefault((row.card['corpus'], target['name'], target['kind']), []).append(row)
    return '\n'.join([HEAD, *(_section(key, rows) for key, rows in sorted(tables.items()))]).rstrip() + '\n'


def check(folder: Path, path: Path) -> None:
    """Raises ValueError naming the first line in which `path` differs from what the cards say."""
    found, expected = Path(path).read_text('utf-8').splitlines(), render(folder).splitlines()
    for number in range(max(len(found), len(expected))):
        pair = [repr(lines[number]) if number < len(lines) else 'the end' for lines in (found, expected)]
        if pair[0] != pair[1]:
            raise ValueError(f'{path}, line {number + 1}: found {pair[0]}, expected {pair[1]}; '
                             'the cards have changed or the file was edited: run `jmer results`')


def title(metric: str) -> str:
    """A metric's name as a reader expects it, with its unit where it has one: 'weighted F1, %'."""
    words = TITLES.get(metric) or re.sub(r'\bf1\b', 'F1', metric.replace('_', ' '))
    return f'{words}, %' if is_share(metric) else words


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1 and is shown in percent."""
    return bool(_SHARE.search(metric))


def number(metric: str, value: Number | None) -> str:
    """A figure in the unit of its title; '-' for none."""
    if value is None or math.isnan(value):
        return '-'
    return f'{100 * value:.1f}' if is_share(metric) else f'{value:.3f}'


def short(value: Number | None, unit: str = '') -> str:
    """A large number in three digits with the SI prefix: 1.17 M, 3.2 GFLOP; '' for None."""
    if value is None:
        return ''
    power = min(max(int(math.log10(value) // 3), 0), 4) if value >= 1 else 0
    scaled = value / 1000 ** power
    digits = 0 if scaled >= 100 or (power == 0 and scaled == int(scaled)) else 1 if scaled >= 10 else 2
    return f'{scaled:.{digits}f} {" kMGT"[power].strip()}{unit}'.strip()


def headline(card: Mapping[str, Any]) -> str:
    """The metric by which the literature compares systems on a card's corpus; else the first of its kind."""
    return LEADING.get(card['corpus'], SHOWN[card['target']['kind']][0])


def test_runs(card: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The test figures of every run of a card: those of the runs published with it, or its own."""
    if card.get('results'):
        return card['results']
    own = card.get('metrics', {}).get('test')
    return [{'command': card['command'], 'test': card['data']['protocol']['test'], **own}] if own else []


def spread(values: Sequence[Number | None]) -> tuple[float, float | None] | None:
    """Mean and standard deviation (with n - 1; None for a single run); None where a run has no value."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return None
    return statistics.fmean(present), statistics.stdev(present) if len(present) > 1 else None


def listing(names: Sequence[str]) -> str:
    """'a, b, c', or how many there are where there are many."""
    return ', '.join(names) if len(names) <= 8 else f'{names[0]}, {names[1]}, ... {names[-1]} ({len(names)})'


def chosen_by(card: Mapping[str, Any]) -> str:
    """How the epoch was chosen, in words."""
    by = (card.get('selected') or {}).get('by', '')
    if by == 'step':
        return 'last'
    return f'best {by.split("/")[0]} {title(by.split("/")[-1]).removesuffix(", %")}' if by else ''


def _row(path: Path) -> Row:
    card = checkpoint.read_json(path)
    for field in ('corpus', 'target', 'parameters'):
        if field not in card:
            raise ValueError(f'{path}: found no field {field!r}')
    if card['target'].get('kind') not in SHOWN:
        raise ValueError(f'{path}: target kind: found {card["target"].get("kind")!r}, '
                         f'expected one of {", ".join(SHOWN)}')
    return Row('/'.join(path.parts[-3:-1]), card, test_runs(card))


def _section(key: tuple[str, str, str], rows: Sequence[Row]) -> str:
    corpus, target, kind = key
    lead = headline(rows[0].card)
    tested = sorted((row for row in rows if row.runs), key=lambda row: _rank(row, lead))
    parts = [f'## {corpus}: {target}\n']
    if tested:
        parts += [_table(_columns(tested, lead, kind)), *_classes(tested), *_gaps(tested, lead), _commands(tested)]
    if untested := [f'`{row.name}`' for row in rows if not row.runs]:
        parts.append(f'Without test results: {", ".join(untested)}.\n')
    return '\n'.join(parts)


def _rank(row: Row, metric: str):
    """Best first; rows without the metric last; then by name."""
    found = _spread(row.runs, metric)
    if found is None:
        return (1, 0.0, row.name)
    return (0, found[0] if metric in LOWER else -found[0], row.name)


def _columns(rows: Sequence[Row], lead: str, kind: str) -> dict[str, list[str]]:
    costs = [row.card.get('cost') or {} for row in rows]
    others = [metric for metric in SHOWN[kind] if metric != lead]
    columns = {
        'weights': [f'`{row.name}`' for row in rows],
        f'**{title(lead)}**': [_figure(row.runs, lead) for row in rows],
        '95 % interval': [_interval(row.card, lead) for row in rows],
        'seeds as one': [_ensemble(row.card, lead) for row in rows],
        **{title(metric): [_figure(row.runs, metric) for row in rows] for metric in others},
        'runs': [str(len(row.runs)) for row in rows],
        'tested on': [listing(sorted({part for run in row.runs for part in run['test']})) for row in rows],
        'epoch': [chosen_by(row.card) for row in rows],
        'parameters': [short(row.card['parameters']) for row in rows],
        'FLOP a step': [short(cost.get('flops_per_step')) for cost in costs],
        'ms a step': [_plain(cost.get('ms_per_step')) for cost in costs],
    }
    return {name: cells for name, cells in columns.items() if any(cells)}


def _ensemble(card: Mapping[str, Any], metric: str) -> str:
    value = (card.get('ensemble') or {}).get(metric)
    return '' if value is None else number(metric, value)


def _classes(rows: Sequence[Row]) -> list[str]:
    """The F1 of every class, of the rows that have it; nothing where two classes leave little to tell."""
    names = rows[0].card['target'].get('names', ())
    found = [(row.name, [run['per_class']['f1'] for run in row.runs]) for row in rows
             if all('f1' in (run.get('per_class') or {}) for run in row.runs)]
    if len(names) < 3 or not found:
        return []
    return ['F1 of each class, %:\n', _table({
        'weights': [f'`{name}`' for name, _ in found],
        **{name: [_figure([{'f1': run.get(name)} for run in runs], 'f1') for _, runs in found] for name in names},
    })]


def _gaps(rows: Sequence[Row], lead: str) -> list[str]:
    """The figures chosen on the test side, of the rows that have some; nothing where none has."""
    found = []
    for row in rows:
        runs = [run for run in row.runs if (run.get('test_selected') or {}).get(lead) is not None]
        if runs:
            found.append((row.name, runs))
    if not found:
        return []
    return [SELECTED, _table({
        'weights': [f'`{name}`' for name, _ in found],
        f'test-selected {title(lead)}': [_figure([run['test_selected'] for run in runs], lead) for _, runs in found],
        f'honest {title(lead)}, same runs': [_figure(runs, lead) for _, runs in found],
        'selection gap': [_gap(runs, lead) for _, runs in found],
        'runs': [str(len(runs)) for _, runs in found],
    })]


def _gap(runs, metric) -> str:
    gap = statistics.fmean(run['test_selected'][metric] - run[metric] for run in runs)
    return f'{100 * gap:+.1f}' if is_share(metric) else f'{gap:+.3f}'


def _commands(rows: Sequence[Row]) -> str:
    lines = [f'- `{row.name}`: `{joined([run["command"] for run in row.runs])}`' for row in rows]
    return '\n'.join(['Commands (braces: one run for each of the words in them):\n', *lines, ''])


def joined(commands: Sequence[str]) -> str:
    """Commands that differ in the values of some options as one line: 'jmer train x --set seed={0,1}'."""
    split = [command.split() for command in dict.fromkeys(commands)]
    if len({len(words) for words in split}) > 1:
        return '`, `'.join(dict.fromkeys(commands))
    return ' '.join(_braces(list(dict.fromkeys(words))) for words in zip(*split, strict=True))


def _braces(words: Sequence[str]) -> str:
    if len(words) == 1:
        return words[0]
    keys = {word.partition('=')[0] for word in words}
    if len(keys) > 1:
        return f'{{{",".join(words)}}}'
    return f'{keys.pop()}={{{",".join(word.partition("=")[2] for word in words)}}}'


def _spread(runs: Sequence[Mapping[str, Any]], metric: str):
    return spread([run.get(metric) for run in runs])


def _figure(runs: Sequence[Mapping[str, Any]], metric: str) -> str:
    found = _spread(runs, metric)
    if found is None:
        return ''
    mean, deviation = found
    return number(metric, mean) + (f' ± {number(metric, deviation)}' if deviation is not None else '')


def _interval(card: Mapping[str, Any], metric: str) -> str:
    low, high = (card.get('interval') or {}).get(metric) or (None, None)
    return '' if low is None or high is None else f'{number(metric, low)} to {number(metric, high)}'


def _plain(value: Number | None) -> str:
    return '' if value is None else f'{value:.3g}' if value < 1000 else f'{value:.0f}'


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    rules = ['---' if name in ('weights', 'tested on', 'epoch') else '---:' for name in columns]
    rows = [list(columns), rules, *zip(*columns.values(), strict=True)]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', r'\|') for cell in row) + ' |' for row in rows) + '\n'

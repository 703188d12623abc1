"""What a person sees at the end of a command."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jmer.data.corpus import Corpus


def print_cards(cards: Sequence[Mapping[str, Any]], corpus: Corpus, console: Console) -> None:
    """The figures of a finished run, over folds and seeds; of a corpus with a known law, what can be reached.

    Over several results a figure is the mean and the standard deviation between them.
    """
    first = cards[0]
    sides = list(first['metrics'])
    best = ceiling(first, corpus) if len(cards) == 1 else {}
    counted = f', {len(cards)} results' if len(cards) > 1 else ''
    table = Table(title=f'{first["model"]} on {first["corpus"]}, {first["target"]["name"]}{counted}')
    table.add_column('metric')
    for side in sides:
        table.add_column(side, justify='right')
    if best:
        table.add_column('Bayes ceiling (test)', justify='right')
    if 'test_selected' in first:
        table.add_column('chosen on the test: not a result', justify='right', style='dim')
    for name in first['metrics'][sides[0]] if sides else ():
        cells = [_spread([card['metrics'][side][name] for card in cards]) for side in sides]
        cells += [_number(best[name]) if name in best else ''] if best else []
        if 'test_selected' in first:
            cells.append(_spread([card['test_selected'].get(name) for card in cards]) if name != 'n' else '')
        table.add_row(name, *cells)
    console.print(table)


def _spread(values: Sequence[Any]) -> str:
    """A value, or mean and deviation of several."""
    if len(values) == 1 or None in values:
        return _number(values[0]) if len(values) == 1 else '-'
    return f'{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}'


def ceiling(card: Mapping[str, Any], corpus: Corpus) -> dict[str, int | float]:
    """The figures of the Bayes classifier on the test items of a toy corpus; none for real data."""
    if not corpus.spec.name.startswith('toy') or 'test' not in card['metrics']:
        return {}
    from jmer.data import bayes, synthetic

    groups = set(card['groups']['test'])
    items = [item for item in corpus.items if item.group in groups]
    context: bayes.Context = 'offline' if corpus.spec.layout == 'dialogue' else 'none'
    return bayes.ceiling(synthetic.Law(), items, card['data']['streams'], context)


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """The figures of an evaluation, over all and per class."""
    table = Table(title=f'{result["checkpoint"]} on {result["corpus"]} ({result["split"]}), n = {result["n"]}')
    table.add_column('metric')
    table.add_column('value', justify='right')
    for name, value in result['metrics'].items():
        table.add_row(name, _number(value))
    console.print(table)
    figures = result.get('per_class', {})
    if figures:
        table = Table()
        table.add_column('')
        for figure in figures:
            table.add_column(figure, justify='right')
        for name in next(iter(figures.values())):
            table.add_row(name, *(_number(figures[figure][name]) for figure in figures))
        console.print(table)
    if result['seen_in_training']:
        console.print(f'Not an honest test: {result["seen_in_training"]} of {result["items"]} items are of groups '
                      'that the weights were trained or chosen on.', style='yellow')


def print_predictions(predictions: Sequence[Mapping[str, Any]], console: Console) -> None:
    """One line an utterance or turn."""
    for line in predictions:
        scores = line.get('probabilities') or line['values']
        best = sorted(scores.items(), key=lambda pair: -pair[1])[:3]
        shown = '  '.join(f'{name} {value:.3f}' for name, value in best)
        console.print(f'{line["id"]}\t{shown}', highlight=False, markup=False)


def _number(value: Any) -> str:
    if value is None:
        return '-'
    return str(int(value)) if float(value).is_integer() and abs(value) > 1 else f'{value:.4f}'

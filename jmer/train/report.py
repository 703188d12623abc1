"""What a person sees at the end of a command."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jmer.data.corpus import Corpus


def print_card(card: Mapping[str, Any], corpus: Corpus, console: Console) -> None:
    """The figures of a finished run; beside those of a corpus with a known law, what can be reached."""
    sides = list(card['metrics'])
    best = ceiling(card, corpus)
    table = Table(title=f'{card["model"]} on {card["corpus"]}, {card["target"]["name"]}')
    table.add_column('metric')
    for side in sides:
        table.add_column(side, justify='right')
    if best:
        table.add_column('Bayes ceiling (test)', justify='right')
    for name in card['metrics'][sides[0]] if sides else ():
        cells = [_number(card['metrics'][side][name]) for side in sides]
        table.add_row(name, *cells, *([_number(best[name]) if name in best else ''] if best else []))
    console.print(table)


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

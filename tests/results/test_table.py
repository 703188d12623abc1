"""RESULTS.md from cards: the figures, the order, what is kept apart, and the check."""

import json
import statistics
from pathlib import Path

import pytest

from jmer.results import table

CHECKPOINTS = Path(__file__).parents[2] / 'checkpoints'


def card(corpus, kind='class', monitor='accuracy', runs=(), **more):
    results = [{'command': f'jmer train x --set seed={seed}', 'test': ['fold1'], 'n': 10, **run}
               for seed, run in enumerate(runs)]
    return {'corpus': corpus, 'parameters': 1_234_567, 'target': {'name': 'emotion', 'kind': kind, 'names': ['a', 'b']},
            'training': {'monitor': monitor}, 'selected': {'step': 7, 'by': f'validation/{monitor}'}, 'metrics': {},
            'results': results, **more}


@pytest.fixture
def cards(tmp_path):
    """Writes cards by name ('model/dataset') and returns their folder."""

    def write(**by_name):
        for name, value in by_name.items():
            place = tmp_path / name.replace('__', '/') / 'card.json'
            place.parent.mkdir(parents=True)
            place.write_text(json.dumps(value))
        return tmp_path

    return write


def cells(text, name):
    """The first row of a table that begins with this name, by column."""
    lines = text.splitlines()
    row = next(n for n, line in enumerate(lines) if line.startswith(f'| `{name}`'))
    head = max(n for n in range(row) if lines[n].startswith('| weights'))
    split = [[cell.strip() for cell in lines[n].strip('|').split(' | ')] for n in (head, row)]
    return dict(zip(*split, strict=True))


def test_figures_are_means_and_deviations_over_the_runs(cards):
    cost = {'flops_per_step': 3.21e9, 'ms_per_step': 12.34, 'peak_bytes': None}
    folder = cards(gmu__c=card('c', runs=[{'accuracy': a, 'nll': 1.0} for a in (0.5, 0.7, 0.9)], cost=cost,
                               interval={'accuracy': [0.41, 0.93]}))
    found = cells(table.render(folder), 'gmu/c')
    assert found['**accuracy, %**'] == '70.0 ± 20.0'
    assert found['95 % interval'] == '41.0 to 93.0'
    assert (found['runs'], found['tested on'], found['epoch']) == ('3', 'fold1', 'best validation accuracy')
    assert (found['parameters'], found['FLOP a step'], found['ms a step']) == ('1.23 M', '3.21 G', '12.3')
    assert 'UAR, %' not in found   # a column that no card fills is not shown


@pytest.mark.parametrize(('corpus', 'kind', 'lead', 'best'), [
    ('meld', 'class', 'weighted_f1', 'high'), ('mosi', 'class', 'accuracy', 'high'),
    ('c', 'multilabel', 'micro_f1', 'high'), ('c', 'regression', 'mae', 'low'), ('c', 'distribution', 'kl', 'low')])
def test_the_best_comes_first_and_the_untested_last(cards, corpus, kind, lead, best):
    folder = cards(low__c=card(corpus, kind, runs=[{lead: 0.2, 'uar': 0.9}]), none__c=card(corpus, kind),
                   high__c=card(corpus, kind, runs=[{lead: 0.6, 'uar': 0.1}]))
    text = table.render(folder)
    other = {'low': 'high', 'high': 'low'}[best]
    assert text.index(f'| `{best}/c`') < text.index(f'| `{other}/c`') < text.index('Without test results: `none/c`')
    assert '| `none/c`' not in text


def test_corpora_and_targets_have_tables_of_their_own(cards):
    sentiment = card('b', 'regression', 'mae', [{'mae': 0.8}])
    sentiment['target']['name'] = 'sentiment'
    text = table.render(cards(x__a=card('a', runs=[{'accuracy': 0.5}]), y__b=card('b', runs=[{'accuracy': 0.5}]),
                              z__b=sentiment))
    assert [line for line in text.splitlines() if line.startswith('## ')] == [
        '## a: emotion', '## b: emotion', '## b: sentiment']
    assert '**MAE**' in cells(text, 'z/b') and '**accuracy, %**' in cells(text, 'y/b')


def test_what_was_chosen_on_the_test_side_stands_apart(cards):
    runs = [{'accuracy': 0.50, 'test_selected': {'accuracy': 0.53}}, {'accuracy': 0.99},
            {'accuracy': 0.60, 'test_selected': {'accuracy': 0.65}}]
    text = table.render(cards(x__a=card('a', runs=runs), y__a=card('a', runs=[{'accuracy': 0.9}])))
    honest, printed = text.split('what the literature would print')
    assert '59.0' not in honest and cells(honest, 'x/a')['runs'] == '3'
    found = cells(printed, 'x/a')
    assert found['test-selected accuracy, %'] == '59.0 ± 8.5'
    assert found['honest accuracy, %, same runs'] == '55.0 ± 7.1'
    assert (found['selection gap'], found['runs']) == ('+4.0', '2')
    assert '| `y/a`' not in printed


def test_every_class_has_its_f1_where_there_are_several(cards):
    def runs(*values):
        return [{'accuracy': 0.5, 'per_class': {'f1': {'joy': value, 'fear': 0.0, 'calm': None}}} for value in values]

    three = {'target': {'name': 'emotion', 'kind': 'class', 'names': ['joy', 'fear', 'calm']}}
    folder = cards(gmu__c=card('c', runs=runs(0.5, 0.7)) | three, old__c=card('c', runs=[{'accuracy': 0.4}]) | three,
                   two__d=card('d', runs=runs(0.5)))
    text = table.render(folder)
    section = text[text.index('F1 of each class, %:'):text.index('Commands')]
    assert '| weights | joy | fear | calm |' in section
    assert '| `gmu/c` | 60.0 ± 14.1 | 0.0 ± 0.0 |  |' in section
    assert 'old/c' not in section and text.count('F1 of each class') == 1


def test_a_run_without_a_figure_gives_no_mean_of_the_others(cards):
    runs = [{'accuracy': 0.5, 'uar': None}, {'accuracy': 0.7, 'uar': 0.9}]
    found = cells(table.render(cards(x__a=card('a', runs=runs))), 'x/a')
    assert 'UAR, %' not in found and found['**accuracy, %**'] == '60.0 ± 14.1'


def test_a_card_that_was_published_alone_counts_as_one_run(cards):
    alone = card('a', metrics={'test': {'n': 9, 'accuracy': 0.25}}, command='jmer train a/x',
                 data={'protocol': {'test': ['test']}})
    del alone['results']
    found = cells(table.render(cards(x__a=alone)), 'x/a')
    assert (found['**accuracy, %**'], found['runs'], found['tested on']) == ('25.0', '1', 'test')


def test_commands_are_joined():
    assert table.joined(['t --set a=0 b=1', 't --set a=1 b=1', 't --set a=2 b=1']) == 't --set a={0,1,2} b=1'
    assert table.joined(['t x', 't x']) == 't x'
    assert table.joined(['t x', 't x y']) == 't x`, `t x y'


@pytest.mark.parametrize(('value', 'expected'), [
    (0, '0'), (999, '999'), (1000, '1.00 k'), (12_345, '12.3 k'), (181_442, '181 k'), (4.5e9, '4.50 G'),
    (12.34, '12.3'), (None, '')])
def test_short_numbers(value, expected):
    assert table.short(value) == expected


def test_the_shipped_cards_render_as_they_say():
    text = table.render(CHECKPOINTS)
    assert text == table.render(CHECKPOINTS) and text.endswith('\n')
    paths = list(CHECKPOINTS.glob('*/*/card.json'))
    assert paths
    for path in paths:
        stored = json.loads(path.read_text())
        lead = table.headline(stored)
        values = [run[lead] for run in stored['results']]
        found = cells(text, '/'.join(path.parts[-3:-1]))
        assert found[f'**{table.title(lead)}**'].startswith(table.number(lead, statistics.fmean(values)))
        assert found['runs'] == str(len(values))


def test_check_names_the_first_line_that_differs(cards, tmp_path_factory):
    folder, path = cards(x__a=card('a', runs=[{'accuracy': 0.5}])), tmp_path_factory.mktemp('out') / 'RESULTS.md'
    path.write_text(table.render(folder))
    table.check(folder, path)
    lines = path.read_text().splitlines()
    row = next(n for n, line in enumerate(lines) if line.startswith('| `x/a`'))
    path.write_text('\n'.join([*lines[:row], lines[row].replace('50.0', '90.0'), *lines[row + 1:]]) + '\n')
    with pytest.raises(ValueError, match=rf'RESULTS\.md, line {row + 1}: found .*90\.0.*expected .*50\.0'):
        table.check(folder, path)
    path.write_text('\n'.join(lines[:-1]) + '\n')
    with pytest.raises(ValueError, match=rf'line {len(lines)}: found the end'):
        table.check(folder, path)


def test_damaged_cards_are_named(cards):
    broken = card('a')
    del broken['target']
    with pytest.raises(ValueError, match=r"x/a/card\.json: found no field 'target'"):
        table.render(cards(x__a=broken, y__a=card('a')))

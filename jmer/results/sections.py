"""What a report says of the systems of one corpus and target, section by section.

A section is a pure function of the systems; it gives None where it makes no sense for the target, or where no
system has the data for it.
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jmer import calibration
from jmer.results import plots
from jmer.results.collect import Result, logged
from jmer.results.page import Picture, Section, escape, table
from jmer.results.systems import System
from jmer.results.table import Number, chosen_by, is_share, joined, listing, number, short, spread, title
from jmer.train.evaluate import LOWER


def chapter(systems: Sequence[System]) -> list[Section]:
    """All sections that have something to say; pictures are named after corpus and target."""
    prefix = _slug(f'{systems[0].corpus}-{systems[0].target.name}')
    found = [section for part in PARTS if (section := part(systems)) is not None and section.parts]
    return [Section(heading, [part._replace(name=f'{prefix}-{part.name}') if isinstance(part, Picture) else part
                              for part in parts]) for heading, parts in found]


def _setup(systems: Sequence[System]) -> Section:
    """What was run, and how the weights were chosen."""
    rows = {name: [describe(system) for system in systems] for name, describe in SETUP.items()}
    shown = [[name, *cells] for name, cells in rows.items() if any(cells)]
    return Section('What was run', [table(_labels(systems), shown, 'setup')])


def _runs(system: System) -> str:
    cards = system.cards
    seeds = len({card['seed'] for card in cards})
    parts = len({tuple(card['data']['protocol']['test']) for card in cards})
    return f'{len(cards)} ({_many(parts, "test part")}, {_many(seeds, "seed")})' if len(cards) > 1 else '1'


def _sides(system: System) -> str:
    """How many items and groups each side has, over the runs."""
    lines = []
    for side in ('train', 'validation', 'test'):
        groups = [len(card['groups'][side]) for card in system.cards if card.get('groups', {}).get(side)]
        words = [f'{_range(groups)} groups'] if groups else []
        if items := [one['n'] for one in system.figures(side) if 'n' in one]:
            words.insert(0, f'{_range(items)} items')
        if words:
            lines.append(f'{side}: {" of ".join(words)}')
    return '<br>'.join(lines)


def _tested_on(system: System) -> str:
    parts = sorted({part for card in system.cards for part in card['data']['protocol']['test']})
    return escape(listing(parts))


def _choice(system: System) -> str:
    epochs = [line['epoch'] for result in system.results for line in result.log
              if line['step'] == _chosen_step(result)]
    by = chosen_by(system.cards[0])
    words = [f'epoch {_range(epochs)}' if epochs else '', f'the {by}' if by else '']
    return escape(', '.join(filter(None, words)))


def _chosen_step(result: Result) -> int | None:
    return (result.card.get('selected') or {}).get('step')


def _training(system: System) -> str:
    training, data = system.cards[0].get('training'), system.cards[0]['data']
    if training is None:
        return ''
    optimizer = training['optimizer']
    return escape(f'{training["epochs"]} epochs at most, batches of {data["batch_size"]}; {optimizer["name"]}, '
                  f'rate {optimizer["rate"]:g}, decay {optimizer["weight_decay"]:g}')


SETUP: dict[str, Callable[[System], str]] = {
    'model': lambda system: escape(system.cards[0]['model']),
    'from': lambda system: escape(system.cards[0].get('paper', '')),
    'reads': lambda system: escape(', '.join(system.cards[0]['data'].get('streams', ()))),
    'parameters': lambda system: short(system.cards[0].get('parameters')),
    'finished runs': _runs,
    'tested on': _tested_on,
    'sides': _sides,
    'training': _training,
    'weights kept': _choice,
    'licence': lambda system: escape(system.cards[0].get('licence', '')),
    'command': lambda system: f'<code>{escape(joined([card.get("command", "") for card in system.cards]))}</code>',
}


def _headline(systems: Sequence[System]) -> Section:
    """All metrics, mean ± deviation over the runs, and the interval."""
    side = 'test' if any(system.figures('test') for system in systems) else 'validation'
    names = dict.fromkeys([systems[0].lead, *(name for system in systems for one in system.figures(side)
                                              for name in one if name != 'n')])
    rows = []
    for name in names:
        cells = [_figure_cell(system, name, side) for system in systems]
        if any(cells):
            rows.append([_metric_name(name, name == systems[0].lead), *cells])
    note = ('Mean ± standard deviation over the runs' if max(len(s.results) for s in systems) > 1 else 'One run each')
    if side == 'validation':
        note += '; <strong>of the validation side</strong>, which chose the weights: these runs were not tested'
    elif any(system.bands for system in systems):
        note += '; below it the 95 % interval, from drawing the test side\'s speakers, videos or dialogues anew'
    note += '. ↓: less is better.'
    return Section('Figures', [table(_labels(systems), rows, 'figures'), f'<p class="note">{note}</p>',
                               _single_runs(systems, side)])


def _figure_cell(system: System, name: str, side: str) -> str:
    found = spread([one.get(name) for one in system.figures(side)])
    if found is None:
        return ''
    mean, deviation = found
    cell = number(name, mean) + (f' <small>± {number(name, deviation)}</small>' if deviation is not None else '')
    band = system.bands.get(name) if side == 'test' else None
    return cell + (f'<br><small>{_span(name, band)}</small>' if band else '')


def _span(name: str, band: plots.Band) -> str:
    return f'[{number(name, band.low)}, {number(name, band.high)}]'


def _metric_name(name: str, leads: bool = False) -> str:
    text = escape(title(name)) + (' ↓' if name in LOWER else '')
    return f'<strong>{text}</strong>' if leads else text


def _single_runs(systems: Sequence[System], side: str) -> str:
    """Every run by itself, folded away; nothing where there is only one each."""
    lead = systems[0].lead
    if max(len(system.results) for system in systems) == 1:
        return ''
    rows = [[escape(system.label), escape('+'.join(card['data']['protocol']['test'])), str(card['seed']),
             str(card['metrics'][side].get('n', '')), number(lead, card['metrics'][side].get(lead))]
            for system in systems for card in system.cards if card.get('metrics', {}).get(side)]
    shown = table(['', 'tested on', 'seed', 'items', _metric_name(lead)], rows, 'figures', words=2)
    return f'<details><summary>Every run</summary>{shown}</details>'


def _learning(systems: Sequence[System]) -> Section | None:
    """The training loss, the headline on the validation side, and what chose the weights."""
    logs = {system.label: [result.log for result in system.results if result.log] or None for system in systems}
    chosen = {system.label: [_chosen_step(result) or 0 for result in system.results if result.log]
              for system in systems}
    known = {key for runs in logs.values() for run in runs or () for line in run for key in line}
    watched = sorted(card['selected']['by'] for system in systems for card in system.cards if card.get('selected'))
    band = 'Line: mean over the runs that got so far; band: the lowest and the highest of them.'
    several = any(len(runs) > 1 for runs in logs.values() if runs)
    words = {'train/loss': f'Training loss. {band if several else ""}'}
    for key in (f'validation/{systems[0].lead}', *(key for key in watched if '/' in key)):
        words[key] = f'Validation {_metric_name(key.split("/")[-1])}. Dots: the weights that were kept.'
    return Section('Learning curves', [
        Picture(f'learning-{_slug(key)}',
                plots.png(plots.learning_curves(logs, key, chosen if key.startswith('validation') else {})), caption)
        for key, caption in words.items() if key in known])


def _confusion(systems: Sequence[System]) -> Section | None:
    if systems[0].target.kind != 'class':
        return None
    return Section('Confusion', [
        Picture(f'confusion-{_slug(system.label)}', plots.png(plots.confusion(counts(system), system.target.names)),
                f'<strong>{escape(system.label)}</strong>. Percent of the true class, and how many'
                f'{", all runs together" if len(system.tests) > 1 else ""}.')
        for system in systems if system.tests])


def _agreement(systems: Sequence[System]) -> Section | None:
    """Predicted against true values, of every dimension."""
    if systems[0].target.kind != 'regression':
        return None
    parts = []
    for system in systems:
        sides = [side for _, side in system.tests]
        for k, name in enumerate(system.target.names if sides else ()):
            truth, said = (np.concatenate([getattr(side, field)[:, k] for side in sides])
                           for field in ('truth', 'scores'))
            parts.append(Picture(f'agreement-{_slug(system.label)}-{_slug(name)}',
                                 plots.png(plots.agreement(truth, said)),
                                 f'<strong>{escape(system.label)}</strong>, {escape(name)}.'))
    return Section('Predicted against true', parts)


def counts(system: System) -> np.ndarray:
    """Truth by prediction, over all test sides, [c c]."""
    counts = np.zeros((len(system.target.names),) * 2, int)
    for _, side in system.tests:
        np.add.at(counts, (side.truth, side.scores.argmax(-1)), 1)
    return counts


EACH = {'class': 'f1', 'multilabel': 'f1', 'regression': 'mae'}
"""The figure by class, label or dimension that is drawn."""


def _per_class(systems: Sequence[System]) -> Section | None:
    """A table of each system and a figure over all; nothing for a target of one dimension."""
    target = systems[0].target
    shown = [system for system in systems if system.bands]
    if target.kind not in EACH or not shown or len(target.names) == 1:
        return None
    drawn = EACH[target.kind]
    bands = {system.label: [system.bands[f'{drawn}/{name}'] for name in target.names] if system.bands else None
             for system in systems}
    what = {'class': 'class', 'multilabel': 'label', 'regression': 'dimension'}[target.kind]
    picture = Picture('each', plots.png(plots.per_class(bands, target.names, drawn)),
                      f'Each {what} with its 95 % interval.')
    return Section(f'By {what}', [picture, *(_class_table(system, len(systems) > 1) for system in shown)])


def _class_table(system: System, named: bool) -> str:
    names = system.target.names
    figures = [figure for figure in dict.fromkeys(key.split('/')[0] for key in system.bands if '/' in key)
               if figure != 'support']
    rows = []
    for name in names:
        bands = [(figure, system.bands[f'{figure}/{name}']) for figure in figures]
        cells = [f'{number(figure, band.value)}<br><small>{_span(figure, band)}</small>' for figure, band in bands]
        support = system.bands.get(f'support/{name}')
        rows.append([escape(name), *cells, *([f'{support.value:.0f}'] if support else [])])
    head = ['', *map(_metric_name, figures), *(['items'] if f'support/{names[0]}' in system.bands else [])]
    return (f'<h4>{escape(system.label)}</h4>' if named else '') + table(head, rows, 'figures')


def _robustness(systems: Sequence[System]) -> Section | None:
    """What disturbances and missing streams cost."""
    lead = systems[0].lead
    found = {s.label: s.robustness if lead in (s.robustness or {}).get('clean', {}) else None for s in systems}
    if not any(found.values()):
        return None
    parts: list[str | Picture] = []
    clean, limits = [one['clean'][lead] if one else None for one in found.values()], _limits(found, lead)
    for name, curves in _disturbances(found, lead).items():
        figure = plots.levels(curves, lead, name, clean, limits)
        parts.append(Picture(f'robustness-{_slug(name)}', plots.png(figure), f'{escape(name)}. Dotted: undisturbed.'))
    sets = {label: _by_streams(measured, lead) if measured else None for label, measured in found.items()}
    if any(sets.values()):
        figure = plots.bars(sets, title(lead), 1 if is_share(lead) else 2)
        parts.append(Picture('robustness-streams', plots.png(figure), 'With these streams, the others missing.'))
    return Section('Robustness', [*parts, *_warnings(found), _area_table(found, lead)])


def _limits(found: Mapping[str, Mapping[str, Any] | None], lead: str) -> tuple[Number, Number]:
    """The lowest and the highest figure of all curves: on scales of their own, small falls would look large."""
    values = [value for one in found.values() if one for value in (
        one['clean'][lead], *(v for curve in one['curves'] for v in curve['metrics'][lead])) if value is not None]
    return min(values, default=0.0), max(values, default=1.0)


def _by_streams(measured: Mapping[str, Any], lead: str) -> dict[str, Number]:
    """The figure for every set of streams, small sets first."""
    rows = sorted(measured['patterns'], key=lambda row: len(row['streams']))
    return {' + '.join(row['streams']): _scaled(lead, row['metrics'][lead]) for row in rows
            if row['metrics'][lead] is not None}


def _disturbances(found: Mapping[str, Mapping[str, Any] | None], lead: str) -> dict[str, dict[str, Any]]:
    """The curves of each figure by line. One system: a line for each stream; several: one for each system."""
    drawn: dict[str, dict[str, Any]] = {}
    alone = len(found) == 1
    for label, measured in found.items():
        curves = measured['curves'] if measured else ()
        for curve in curves:
            streams = ' + '.join(curve['streams'])
            several = sum(other['name'] == curve['name'] for other in curves) > 1
            where = f' of {streams}' if several and not alone else ''
            name = f'{curve["name"]}{where}, {curve["unit"]}'
            lines = drawn.setdefault(name, {} if alone else dict.fromkeys(found))
            lines[streams if alone else label] = (curve['levels'], curve['metrics'][lead])
    return drawn


def _area_table(found: Mapping[str, Mapping[str, Any] | None], lead: str) -> str:
    rows = [[escape(label), escape(curve['name']), escape(', '.join(curve['streams'])),
             number(lead, curve['area'][lead]), number(lead, curve['worst'][lead])]
            for label, measured in found.items() for curve in (measured or {}).get('curves', ())]
    return table(['', 'disturbance', 'of', f'area, {_metric_name(lead)}', 'worst'], rows, 'figures', words=3)


def _warnings(found: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """What a reader must know: traces of missing streams, items seen in training, parts left out."""
    lines = []
    for label, measured in found.items():
        if not measured:
            continue
        lines.append(f'<strong>{escape(label)}</strong>: {"mean of " if measured["runs"] > 1 else ""}'
                     f'{_many(measured["runs"], "run")} on {escape(measured["split"])}, {measured["items"]} items.')
        if measured.get('trace'):
            lines.append(f'<strong>{escape(label)}</strong>: what stands under a mask changes the scores by up to '
                         f'{measured["trace"]:.2g}; it should not.')
        if measured.get('seen_in_training'):
            lines.append(f'<strong>{escape(label)}</strong>: not an honest test: {measured["seen_in_training"]} of '
                         f'{measured["items"]} items are of groups that the weights were trained or chosen on.')
        lines += [f'{escape(label)}, left out: {escape(line)}.' for line in measured.get('left_out', ())]
    return [f'<p class="note">{line}</p>' for line in lines]


def _contribution(systems: Sequence[System]) -> Section | None:
    """Which modality did the work."""
    lead = systems[0].lead
    found = {s.label: s.contribution if lead in (s.contribution or {}).get('all', {}) else None for s in systems}
    if not any(found.values()):
        return None
    sign = 'below 0 is a help, since less is better' if lead in LOWER else 'above 0 is a help'
    unit = f'{title(lead).removesuffix(", %")}, points' if is_share(lead) else title(lead)
    parts: list[str | Picture] = []
    for key, words in SHARES_OF_WORK.items():
        values = {label: _of_streams(one[key], lead) if one else None for label, one in found.items()}
        figure = plots.bars(values, unit, 1 if is_share(lead) else 2)
        parts.append(Picture(f'contribution-{key}', plots.png(figure), f'{words} ({sign}).'))
    return Section('Which modality did the work', [*parts, *_warnings(found), _streams_table(found, lead)])


SHARES_OF_WORK = {
    'shapley': 'Shapley values: what each stream adds, on average over all orders in which they may join',
    'shuffled': 'What is lost when one stream is dealt out anew among the items',
}


def _of_streams(values: Mapping[str, Mapping[str, Any]], lead: str) -> dict[str, Number]:
    return {stream: _scaled(lead, row[lead]) for stream, row in values.items() if row[lead] is not None}


def _streams_table(found: Mapping[str, Mapping[str, Any] | None], lead: str) -> str:
    rows = [[escape(label), escape(stream), *(number(lead, one[key][stream][lead])
                                              for key in ('alone', 'shapley', 'shuffled')),
             f'{one["gates"][stream]:.2f}' if one.get('gates') else '']
            for label, one in found.items() if one for stream in one['shapley']]
    head = ['', 'stream', f'alone, {_metric_name(lead)}', 'Shapley value', 'lost when shuffled', 'mean gate']
    return table(head, rows, 'figures', words=2)


class Scaled(NamedTuple):
    """All test items of a system: probabilities as trained and with each run's temperature, [n c]; truth [n].

    temperatures: of the runs; none where they are not known.
    """

    before: np.ndarray
    after: np.ndarray
    truth: np.ndarray
    temperatures: Sequence[float]


def _calibration(systems: Sequence[System]) -> Section | None:
    """Reliability and abstention."""
    scaled = {s.label: _scale(s) if s.target.kind == 'class' and s.tests else None for s in systems}
    if not any(scaled.values()):
        return None
    curves = {label: calibration.abstention(one.after, one.truth) if one else None for label, one in scaled.items()}
    drawn = {label: curve[:2] if curve else None for label, curve in curves.items()}
    rows = [_calibration_row(label, one, curve) for (label, one), curve in
            zip(scaled.items(), curves.values(), strict=True) if one and curve]
    head = ['', 'ECE, %', 'with temperature', 'temperature', 'area under the risk, %', 'errors at half, %', 'at 80 %']
    return Section('Calibration and abstention', [
        *(_reliability(label, one) for label, one in scaled.items() if one),
        Picture('abstention', plots.png(plots.abstention(drawn)),
                'Errors when only the surest items are answered, probabilities with temperature.'),
        table(head, rows, 'figures'),
        '<p class="note">Temperatures were fitted on the validation side. ECE: calibration error of the predicted '
        'class in 15 bins, of all test items together.</p>'])


def _scale(system: System) -> Scaled:
    temperatures = [_temperature(result) for result, _ in system.tests]
    after = [side.scores if t is None else calibration.apply_temperature(side.scores, t)
             for (_, side), t in zip(system.tests, temperatures, strict=True)]
    before, truth = ([getattr(side, field) for _, side in system.tests] for field in ('scores', 'truth'))
    return Scaled(np.concatenate(before), np.concatenate(after), np.concatenate(truth),
                  [t for t in temperatures if t is not None])


def _reliability(label: str, scaled: Scaled) -> Picture:
    before, after = (calibration.reliability(scores, scaled.truth) for scores in scaled[:2])
    figure = plots.reliability(before, after if scaled.temperatures else None)
    return Picture(f'reliability-{_slug(label)}', plots.png(figure),
                   f'<strong>{escape(label)}</strong>. On the diagonal, probabilities mean what they say.')


def _calibration_row(label: str, scaled: Scaled, curve: calibration.Abstention) -> list[str]:
    errors = [_ece(calibration.reliability(scores, scaled.truth)) for scores in scaled[:2]]
    risks = [curve.aurc, *np.interp((0.5, 0.8), curve.coverage, curve.risk).tolist()]
    return [escape(label), *(number('ece15', error) for error in errors),
            _range([round(t, 2) for t in scaled.temperatures]), *(number('accuracy', risk) for risk in risks)]


def _temperature(result: Result) -> float | None:
    """That of the card, or fitted anew on the validation side; None without either."""
    stored = (result.card.get('calibration') or {}).get('temperature')
    validation = result.sides.get('validation')
    if stored is not None or validation is None or not len(validation.ids):
        return stored
    return calibration.fit_temperature(validation.scores, validation.truth)


def _ece(bins: calibration.Reliability) -> float:
    items = np.asarray(bins[2])   # a tuple has a method called count
    return float(np.nansum(items * np.abs(bins.accuracy - bins.confidence)) / items.sum())


def _selection_gap(systems: Sequence[System]) -> Section | None:
    """What the literature would print, apart from the honest figures."""
    lead = systems[0].lead
    pairs: dict[str, Any] = {}
    rows = []
    for system in systems:
        found = [(card['metrics']['test'][lead], card['test_selected'][lead]) for card in system.cards
                 if (card.get('test_selected') or {}).get(lead) is not None
                 and (card.get('metrics', {}).get('test') or {}).get(lead) is not None]
        pairs[system.label] = tuple(zip(*found, strict=True)) if found else None
        if found:
            honest, selected = (statistics.fmean(column) for column in zip(*found, strict=True))
            rows.append([escape(system.label), number(lead, honest), number(lead, selected),
                         f'{_scaled(lead, selected - honest):+.{1 if is_share(lead) else 3}f}', str(len(found))])
    if not rows:
        return None
    note = ('<p>The figures above chose their weights without the test side. Choosing the best epoch <em>on the test '
            'side</em>, as much of the literature does, would have printed:</p>')
    name = _metric_name(lead)
    shown = table(['', f'{name}, honest', 'test-selected', 'selection gap', 'runs'], rows, 'figures')
    picture = Picture('selection-gap', plots.png(plots.selection_gap(pairs, lead)), 'Every run, honest and flattered.')
    return Section('Selection gap', [note, shown, picture])


COSTS = {'FLOP a step': 'flops_per_step', 'ms a step': 'ms_per_step', 'peak memory, bytes': 'peak_bytes'}


LOGGED = {'ms_per_step': 'time/ms_per_step', 'peak_bytes': 'memory/peak_bytes'}
"""What the logs call the costs that runs measure."""


def _cost(systems: Sequence[System]) -> Section | None:
    """What a training step costs: bars where there is something to compare, else a table."""
    values = {system.label: {'parameters': system.cards[0].get('parameters'),
                             **{name: _costs(system, key) for name, key in COSTS.items()}} for system in systems}
    if not any(row[name] is not None for row in values.values() for name in COSTS):
        return None
    about = 'Of a training step on a whole batch, the median of the runs. Only runs on one kind of machine compare.'
    if len(systems) > 1:
        return Section('Cost', [Picture('cost', plots.png(plots.cost(values)), about)])
    row = next(iter(values.values()))
    shown = [[escape(name), short(value)] for name, value in row.items() if value is not None]
    return Section('Cost', [table(_labels(systems), shown, 'figures'), f'<p class="note">{about}</p>'])


def _costs(system: System, key: str) -> float | None:
    """The median over the runs: of the cards, or of the logs."""
    found = [value for card in system.cards if (value := (card.get('cost') or {}).get(key)) is not None]
    if not found:
        return logged(system.results, LOGGED.get(key, key))
    return float(statistics.median(found))


PARTS: tuple[Callable[[Sequence[System]], Section | None], ...] = (
    _setup, _headline, _learning, _confusion, _agreement, _per_class, _robustness, _contribution, _calibration,
    _selection_gap, _cost)
"""The parts of a chapter, in order; each None where it makes no sense."""


def _labels(systems: Sequence[System]) -> list[str]:
    """The head of a table with a column for each system."""
    return ['', *(escape(system.label) for system in systems)]


def _slug(text: str) -> str:
    return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-') or 'unnamed'


def _scaled(metric: str, value: Number) -> Number:
    return 100 * value if is_share(metric) else value


def _many(count: int, word: str) -> str:
    return f'{count} {word}{"" if count == 1 else "s"}'


def _range(values: Sequence[Number]) -> str:
    """'7', or '3 to 9'; '' for none."""
    if not values:
        return ''
    low, high = min(values), max(values)
    return f'{low:g}' if low == high else f'{low:g} to {high:g}'

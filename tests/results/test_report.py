"""The report: a page that stands alone, says what the predictions say, and leaves out what makes no sense."""

import base64
import html.parser
import json
import re
import shutil
import sys

import matplotlib
import numpy as np
import pytest
from sklearn import metrics as sk

from jmer import calibration
from jmer.results import plots, report, sections, systems
from jmer.results.collect import collect
from tests.results import leaves

HOSTILE = '<img src=x onerror=alert(1)> & "$x_1$"'


@pytest.fixture(autouse=True, scope='module')
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, 'SAMPLES', 40)
        yield


class Page(html.parser.HTMLParser):
    """What a page holds: tags that are open, addresses, headings, tables, text."""

    VOID = ('meta', 'img', 'br')

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.images, self.addresses, self.headings, self.rows = [], set(), [], [], [], []
        self.source = path.read_text('utf-8')
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        found = dict(attributes)
        assert not [name for name in found if name.startswith('on')]
        self.addresses += [found[name] for name in ('src', 'href') if name in found]
        if tag == 'img':
            self.images.append(found)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')
        if tag == 'br':
            self.handle_data(' ')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ('h1', 'h2', 'h3'):
            self.headings.append(data)
        if 'tr' in self.open:
            self.rows[-1][-1] += data

    def row(self, *start):
        """The one row that begins with these cells."""
        found = [row for row in self.rows if row[:len(start)] == list(start)]
        assert len(found) == 1, (start, found)
        return found[0]


def edit(folder, **fields):
    """Changes a leaf's card."""
    path = folder / 'weights' / 'card.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def experiment(folder, model, folds=2, seeds=2, kind='class', **options):
    rng = np.random.default_rng(len(model))
    for fold in range(folds):
        for seed in range(seeds):
            leaves.leaf(folder / f'fold{fold}-seed{seed}', model=model, seed=seed, fold=f'fold{fold}', rng=rng,
                        kind=kind, **options)
    return folder


def curve(name, streams, levels, values):
    return {'name': name, 'unit': 'rate', 'streams': streams, 'levels': levels, 'metrics': {'accuracy': values},
            'area': {'accuracy': 0.61}, 'worst': {'accuracy': 0.42}}


ROBUSTNESS = {'split': 'test', 'clean': {'accuracy': 0.8}, 'trace': 0.5, 'items': 40, 'seen_in_training': 7,
              'patterns': [{'streams': ['text'], 'metrics': {'accuracy': 0.7}},
                           {'streams': ['audio', 'text'], 'metrics': {'accuracy': 0.8}}],
              'curves': [curve('missing frames', ['audio', 'text'], [0.0, 0.5], [0.8, 0.6]),
                         curve('noise', ['audio'], [0.0, 1.0], [0.8, 0.7]),
                         curve('noise', ['text'], [0.0, 1.0], [0.8, 0.5])],
              'left_out': ['sound: none']}
CONTRIBUTION = {'split': 'test', 'all': {'accuracy': 0.8}, 'none': {'accuracy': 0.3}, 'items': 40,
                'seen_in_training': 0, 'gates': {},
                'shapley': {'text': {'accuracy': 0.4}, 'audio': {'accuracy': 0.1}},
                'shuffled': {'text': {'accuracy': 0.35}, 'audio': {'accuracy': -0.02}},
                'alone': {'text': {'accuracy': 0.7}, 'audio': {'accuracy': 0.45}}}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Two systems of two folds and two seeds each; the first with everything that a run can leave."""
    place = tmp_path_factory.mktemp('runs')
    found = [experiment(place / 'gmu', 'gmu'), experiment(place / 'other', HOSTILE, skill=0.4)]
    for k, leaf in enumerate(sorted(found[0].iterdir())):
        honest = json.loads((leaf / 'weights' / 'card.json').read_text())['metrics']['test']['accuracy']
        edit(leaf, test_selected={'accuracy': honest + 0.01 * (k + 1)}, calibration={'temperature': 0.5 + 0.25 * k},
             cost={'flops_per_step': 2e9, 'ms_per_step': 10.0 + k, 'peak_bytes': None})
    (found[0] / 'robustness.json').write_text(json.dumps(ROBUSTNESS))
    (found[0] / 'contribution.json').write_text(json.dumps(CONTRIBUTION))
    return found


@pytest.fixture(scope='module')
def written(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp('out')
    report.write(folders, out / 'deep' / 'report.html', out / 'report')
    return out


@pytest.fixture(scope='module')
def page(written):
    return Page(written / 'deep' / 'report.html')


def test_the_page_stands_alone(page, written):
    assert not page.open and not page.tags & {'script', 'link', 'iframe', 'object'}
    assert page.addresses and all(address.startswith('data:image/png;base64,') for address in page.addresses)
    assert 'url(' not in page.source and '@import' not in page.source and 'http' not in page.source
    embedded = {base64.b64decode(address.split(',')[1]) for address in page.addresses}
    assert embedded == {path.read_bytes() for path in (written / 'report').glob('*.png')}
    assert all(image['alt'] for image in page.images)


def test_names_from_cards_are_text(page):
    assert page.row('model')[1:] == ['gmu', HOSTILE]
    assert '<img src=x' not in page.source


def test_every_word_of_a_card_is_escaped(tmp_path):
    folder = leaves.leaf(tmp_path / 'run', rng=np.random.default_rng(0))
    target = {'name': f'{HOSTILE}t', 'kind': 'class', 'names': [f'{HOSTILE}{k}' for k in range(3)]}
    edit(folder, target=target, corpus=f'{HOSTILE}c', paper=HOSTILE, licence=HOSTILE, command=f'jmer {HOSTILE}')
    (folder / 'robustness.json').write_text(json.dumps(ROBUSTNESS | {'split': HOSTILE, 'left_out': [HOSTILE]}))
    report.write([folder], tmp_path / 'r.html', tmp_path / 'png')
    found = Page(tmp_path / 'r.html')
    assert '<img src=x' not in found.source and found.source.count('&lt;img src=x onerror=alert(1)&gt;') > 10
    assert found.row('command')[1] == f'jmer {HOSTILE}' and found.row(f'{HOSTILE}2')
    assert len(list((tmp_path / 'png').iterdir())) == len(found.images)


def test_all_parts_are_there_in_order(page):
    assert page.headings == [
        'toy: emotion', 'What was run', 'Figures', 'Learning curves', 'Confusion', 'By class', 'Robustness',
        'Which modality did the work', 'Calibration and abstention', 'Selection gap', 'Cost']


def test_the_headline_is_the_mean_over_the_runs(page, folders):
    values = [(side.scores.argmax(-1) == side.truth).mean() for side in predictions_of(folders[0])]
    cell = page.row('accuracy, %')[1]
    found = re.fullmatch(r'(\S+) ± (\S+) \[(\S+), (\S+)\]', cell)
    assert found, cell
    mean, deviation, low, high = map(float, found.groups())
    assert mean == pytest.approx(100 * np.mean(values), abs=0.051)
    assert deviation == pytest.approx(100 * np.std(values, ddof=1), abs=0.051)
    assert low < mean < high


def predictions_of(folder):
    return [result.sides['test'] for result in collect(folder)]


def test_figures_by_class_are_those_of_the_predictions(page, folders):
    sides = predictions_of(folders[0])
    truth = [np.concatenate([side.truth for side in sides[seed::2]]) for seed in range(2)]
    said = [np.concatenate([side.scores.argmax(-1) for side in sides[seed::2]]) for seed in range(2)]
    expected = np.mean([sk.f1_score(*pair, average=None) for pair in zip(truth, said, strict=True)], 0)
    rows = [row for row in page.rows if row[0] == 'class1']
    assert len(rows) == 2   # one of each system
    value, low, high = map(float, re.findall(r'[\d.]+', rows[0][3]))
    assert value == pytest.approx(100 * expected[1], abs=0.051) and low <= value <= high
    assert rows[0][4] == str(sum((side.truth == 1).sum() for side in sides[::2]))


def test_confusion_counts_every_prediction(folders):
    sides = predictions_of(folders[0])
    expected = sum(sk.confusion_matrix(side.truth, side.scores.argmax(-1)) for side in sides)
    [[system]] = systems.chapters(folders[:1])
    np.testing.assert_array_equal(sections.counts(system), expected)
    axes, = plots.confusion(expected, system.target.names).axes
    np.testing.assert_allclose(axes.images[0].get_array(), 100 * expected / expected.sum(1, keepdims=True))
    assert {str(count) for count in expected.ravel()} <= {text.get_text() for text in axes.texts}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('predicted', 'true')


def test_the_selection_gap_stands_apart(page):
    before, after = page.source.split('<h3>Selection gap</h3>')
    honest = page.row('accuracy, %')[1].split(' ')[0]
    row = page.row('gmu', honest)
    assert row[3:] == ['+2.5', '4'] and float(row[2]) == pytest.approx(float(honest) + 2.5, abs=0.11)
    assert 'test-selected' in after and 'test-selected' not in before


def test_what_must_be_known_about_robustness_is_said(page):
    assert 'changes the scores by up to 0.5; it should not' in page.source
    assert 'not an honest test: 7 of 40 items' in page.source and 'left out: sound: none' in page.source
    assert page.row('gmu', 'missing frames')[3:] == ['61.0', '42.0']
    assert page.row('gmu', 'audio')[2:5] == ['45.0', '10.0', '-2.0']


def test_measurements_of_several_runs_are_averaged(tmp_path):
    folder = experiment(tmp_path / 'run', 'gmu', folds=1)
    for leaf, area in zip(sorted(folder.iterdir()), (0.5, 0.7), strict=True):
        one = curve('missing frames', ['text'], [0.0, 1.0], [0.8, area]) | {'area': {'accuracy': area}}
        (leaf / 'robustness.json').write_text(json.dumps(ROBUSTNESS | {'curves': [one], 'trace': 1 - area}))
    report.write([folder], tmp_path / 'r.html', None)
    found = Page(tmp_path / 'r.html')
    assert found.row('gmu', 'missing frames')[3] == '60.0'
    assert 'mean of 2 runs on test, 80 items' in found.source and 'scores by up to 0.5' in found.source
    assert 'not an honest test: 14 of 80' in found.source
    (leaf / 'robustness.json').write_text(json.dumps(ROBUSTNESS))
    with pytest.raises(ValueError, match=r'run: robustness\.json of its runs: found lists of different lengths'):
        report.write([folder], tmp_path / 'r.html', None)


def test_temperatures_are_those_of_the_cards_or_fitted_on_validation(page, folders):
    sides = [result.sides['validation'] for result in collect(folders[1])]
    fitted = [round(calibration.fit_temperature(side.scores, side.truth), 2) for side in sides]
    found = {row[0]: row[3] for row in page.rows if len(row) == 7}
    assert found['gmu'] == '0.5 to 1.25'
    assert found[HOSTILE] == f'{min(fitted):g} to {max(fitted):g}'


def test_the_same_runs_give_the_same_bytes(folders, tmp_path):
    for name in ('a', 'b'):
        report.write(folders[1:], tmp_path / f'{name}.html', None)
    assert (tmp_path / 'a.html').read_bytes() == (tmp_path / 'b.html').read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.html', 'b.html']


@pytest.mark.parametrize(('kind', 'there', 'missing'), [
    ('multilabel', ['By label'], ['Confusion', 'Calibration and abstention']),
    ('regression', ['By dimension', 'Predicted against true'], ['Confusion', 'Calibration and abstention']),
    ('distribution', [], ['Confusion', 'Calibration and abstention', 'By class']),
])
def test_other_targets_have_the_parts_that_make_sense(tmp_path, kind, there, missing):
    report.write([experiment(tmp_path / 'run', 'gmu', folds=1, kind=kind)], tmp_path / 'r.html', None)
    headings = Page(tmp_path / 'r.html').headings
    assert headings[1:4] == ['What was run', 'Figures', 'Learning curves'] and set(there) <= set(headings)
    assert not {*missing, 'Robustness', 'Selection gap', 'Cost'} & set(headings)


def test_runs_without_predictions_still_have_their_cards(tmp_path):
    folder = experiment(tmp_path / 'old', 'gmu', folds=1)
    for path in folder.rglob('predictions.npz'):
        path.unlink()
    report.write([folder], tmp_path / 'r.html', None)
    found = Page(tmp_path / 'r.html')
    assert found.headings[1:] == ['What was run', 'Figures', 'Learning curves']
    assert re.fullmatch(r'\S+ ± \S+', found.row('accuracy, %')[1])


def test_seeds_with_other_test_items_have_no_interval(tmp_path):
    folder = experiment(tmp_path / 'run', 'gmu', folds=1)
    leaves.leaf(folder / 'more', seed=7, fold='fold9', rng=np.random.default_rng(0))
    report.write([folder], tmp_path / 'r.html', None)
    found = Page(tmp_path / 'r.html')
    assert re.fullmatch(r'\S+ ± \S+', found.row('accuracy, %')[1]) and 'By class' not in found.headings
    assert 'Confusion' in found.headings


def test_corpora_have_chapters_of_their_own(tmp_path):
    here, there = (experiment(tmp_path / name, 'gmu', folds=1, seeds=1) for name in ('here', 'there'))
    edit(there / 'fold0-seed0', corpus='meld')
    report.write([here, there], tmp_path / 'r.html', tmp_path / 'png')
    found = Page(tmp_path / 'r.html')
    assert [heading for heading in found.headings if ':' in heading] == [
        'meld: emotion and toy: emotion', 'meld: emotion', 'toy: emotion']
    names = {path.name.split('-')[0] for path in (tmp_path / 'png').iterdir()}
    assert names == {'meld', 'toy'} and len(list((tmp_path / 'png').iterdir())) == len(found.images)


def test_two_of_one_model_go_by_their_folders_and_two_models_of_one_folder_by_their_names(tmp_path):
    rng = np.random.default_rng(0)
    for place, model, seed in (('one', 'gmu', 0), ('two', 'gmu', 0), ('both/a', 'gmu', 0), ('both/b', 'mult', 0)):
        leaves.leaf(tmp_path / place, model=model, seed=seed, rng=rng)
    report.write([tmp_path / 'one', tmp_path / 'two'], tmp_path / 'a.html', None)
    assert ['', 'one', 'two'] in Page(tmp_path / 'a.html').rows
    leaves.leaf(tmp_path / 'both' / 'other', model='gmu', rng=rng)
    edit(tmp_path / 'both' / 'other', fields={'hidden': 3})
    report.write([tmp_path / 'both'], tmp_path / 'c.html', None)
    assert ['', 'a', 'b', 'other'] in Page(tmp_path / 'c.html').rows   # another recipe of the same model
    shutil.rmtree(tmp_path / 'both' / 'other')
    report.write([tmp_path / 'both'], tmp_path / 'b.html', None)
    assert Page(tmp_path / 'b.html').row('finished runs')[1:] == ['1', '1']
    assert ['', 'gmu', 'mult'] in Page(tmp_path / 'b.html').rows


def test_what_cannot_be_reported_is_said(tmp_path):
    with pytest.raises(ValueError, match='found none, expected at least one folder'):
        report.write([], tmp_path / 'r.html', None)
    with pytest.raises(ValueError, match='found no finished run'):
        report.write([tmp_path], tmp_path / 'r.html', None)
    folder = experiment(tmp_path / 'run', 'gmu', folds=1, seeds=2)
    edit(folder / 'fold0-seed1', seed=0)
    with pytest.raises(ValueError, match='fold0-seed1: found a second run of seed 0 on fold0, expected the folds'):
        report.write([folder], tmp_path / 'r.html', None)
    (folder / 'fold0-seed1' / 'predictions.npz').write_bytes(b'PK no zip')
    with pytest.raises(ValueError, match=r'predictions\.npz: damaged'):
        report.write([folder], tmp_path / 'r.html', None)
    assert not (tmp_path / 'r.html').exists()


def test_without_matplotlib_a_report_says_what_to_install(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(ValueError, match=r"pip install 'jmer\[plots\]'"):
        report.write(folders[1:], tmp_path / 'r.html', None)


def test_bands_run_from_the_lowest_run_to_the_highest():
    logs = {'a': [[{'step': e, 'epoch': e, 'validation/uar': v} for e, v in enumerate(run, 1)]
                  for run in ((0.1, 0.4, 0.9), (0.3, 0.2))], 'b': None}
    before = dict(matplotlib.rcParams)
    figure = plots.learning_curves(logs, 'validation/uar', {'a': [2, 1]})
    assert dict(matplotlib.rcParams) == before
    axes, = figure.axes
    mean, *dots = axes.lines
    np.testing.assert_allclose(mean.get_ydata(), [20, 30, 90])
    assert [(d.get_xdata()[0], pytest.approx(d.get_ydata()[0])) for d in dots] == [(2, 40), (1, 30)]
    edges = axes.collections[0].get_paths()[0].vertices
    assert {(1, 10), (1, 30), (2, 20), (2, 40), (3, 90)} <= {(round(x), round(y)) for x, y in edges}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('epoch', 'validation UAR, %')


def test_a_system_keeps_its_colour_where_another_has_nothing():
    both = plots.abstention({'a': (np.linspace(0.1, 1, 30), np.zeros(30)), 'b': (np.linspace(0.1, 1, 30), np.ones(30))})
    alone = plots.abstention({'a': None, 'b': (np.linspace(0.1, 1, 30), np.ones(30))})
    assert both.axes[0].lines[1].get_color() == alone.axes[0].lines[0].get_color() != both.axes[0].lines[0].get_color()


def test_reliability_draws_only_bins_that_hold_items():
    bins = np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 0.25, 1.0]), np.array([0, 3, 1])
    above, below = plots.reliability(bins).axes
    np.testing.assert_allclose(above.lines[1].get_xydata(), [[50, 25], [90, 100]])
    np.testing.assert_allclose(below.patches[0].get_data().values, [0, 75, 25])


def test_one_system_has_its_costs_in_a_table(folders, tmp_path):
    report.write(folders[:1], tmp_path / 'r.html', None)
    found = Page(tmp_path / 'r.html')
    assert (found.row('FLOP a step')[1], found.row('ms a step')[1]) == ('2.00 G', '11.5')
    assert not [row for row in found.rows if row[0].startswith('peak memory')]   # it was not measured


def test_levels_that_count_down_run_from_weak_to_strong():
    axes, = plots.levels({'a': ([20.0, 10.0, 0.0], [0.8, None, 0.5])}, 'uar', 'noise, dB', [0.9], (0.1, 0.9)).axes
    left, right = axes.get_xlim()
    assert left > 20 and right < 0
    assert axes.get_ylim() == (pytest.approx(6), pytest.approx(94)) and axes.get_ylabel() == 'UAR, %'
    assert axes.lines[1].get_ydata()[0] == 90   # undisturbed

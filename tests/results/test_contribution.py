"""Shapley values, shuffled and unimodal controls, gates: against theory, by hand, and on known models."""

import io
import itertools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from rich.console import Console

from jmer import zoo
from jmer.data.corpus import Item, Spec, StreamSpec, Target
from jmer.layers.pooling import turn_vectors
from jmer.results import contribution, robustness
from jmer.train.experiment import Data
from jmer.types import Output
from tests import batches
from tests.results import subjects


def by_orders(worth, players):
    """Shapley values by their definition: the mean marginal worth over all orders of joining."""
    values = np.zeros((players, *worth.shape[1:]))
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        coalition = 0
        for player in order:
            values[player] += worth[coalition | 1 << player] - worth[coalition]
            coalition |= 1 << player
    return values / len(orders)


@pytest.mark.parametrize('players', [1, 2, 3, 4])
def test_shapley_values_are_the_mean_over_all_orders(players):
    worth = np.random.default_rng(players).normal(size=(2**players, 5))
    values = contribution.shapley(worth)
    np.testing.assert_allclose(values, by_orders(worth, players), atol=1e-12)
    np.testing.assert_allclose(values.sum(0), worth[-1] - worth[0], atol=1e-12)
    single = contribution.shapley(worth[:, 0])
    np.testing.assert_allclose(single, values[:, 0], atol=1e-12)


def test_shapley_values_of_known_games():
    """Gloves (a left and two right ones): 2/3, 1/6, 1/6; a player who adds nothing gets nothing."""
    sets = robustness.patterns(3)
    gloves = (sets[:, 0] & (sets[:, 1] | sets[:, 2])).astype(float)
    np.testing.assert_allclose(contribution.shapley(gloves), [2 / 3, 1 / 6, 1 / 6], atol=1e-12)
    dummy = sets[:, 0] * 3.0 + sets[:, 2] * 1.0
    np.testing.assert_allclose(contribution.shapley(dummy), [3, 0, 1], atol=1e-12)
    with pytest.raises(ValueError, match='found 6 coalitions'):
        contribution.shapley(np.zeros(6))


@pytest.fixture(scope='module')
def found():
    return contribution.contributions(subjects.subject(60), draws=8)


def test_the_values_add_up_for_every_metric_and_class(found):
    assert set(found['shapley']) == set(subjects.STREAMS)
    for name, whole in found['all'].items():
        total = sum(values[name] for values in found['shapley'].values())
        assert total == pytest.approx(whole - found['none'][name], abs=1e-9), name
    # Without any stream the first class wins: its recall is 1 and that of the others 0, with all it is 1.
    totals = {c: sum(values[c] for values in found['shapley_recall'].values()) for c in subjects.CLASSES}
    assert totals == pytest.approx({'angry': 0, 'happy': 1, 'sad': 1}, abs=1e-9)


def test_contributions_of_a_known_model(found):
    """Worth of text 1, of audio 0.7, of both 1, of vision and of nothing 1/3."""
    values = {name: figures['accuracy'] for name, figures in found['shapley'].items()}
    sound, chance = 42 / 60, 1 / 3
    assert values == pytest.approx(
        {'vision': 0, 'text': (1 - chance + 1 - sound) / 2, 'audio': (sound - chance) / 2}, abs=1e-9)
    alone = {name: figures['accuracy'] for name, figures in found['alone'].items()}
    assert alone == pytest.approx({'text': 1, 'audio': sound, 'vision': chance})
    assert found['none']['accuracy'] == pytest.approx(chance) and found['all']['accuracy'] == 1


def test_the_shuffled_control(found):
    """Text of another item is right in one of three; as it drowns the others, shuffling those loses nothing."""
    lost = {name: figures['accuracy'] for name, figures in found['shuffled'].items()}
    assert lost['text'] == pytest.approx(2 / 3, abs=0.08)
    assert lost['audio'] == lost['vision'] == 0
    assert found['shuffled']['text']['nll'] < 0, 'a metric of which less is better grows'


def test_every_draw_mixes_all_items():
    """Sorted by length, items of one class share a batch; shuffling within it would lose nothing."""
    judged = subjects.subject(24)
    items = [item._replace(streams={name: np.repeat(x[:1], 1 + k // 8, 0) for name, x in item.streams.items()},
                           labels={'emotion': np.array(k // 8, np.int32)})
             for k, item in enumerate(judged.items)]
    for k, item in enumerate(items):
        item.streams['text'][:] = np.eye(3, dtype=np.float32)[k // 8]
    found = contribution.contributions(judged._replace(items=tuple(items)), draws=4)
    assert found['shuffled']['text']['accuracy'] > 0.4


def test_mean_gates_are_named_in_the_model_s_order(found):
    """Vision comes first in the model, audio last; what stands in for another stream has no gate there."""
    assert found['gates'] == pytest.approx({'vision': 0.5, 'text': 0.3, 'audio': 0.1})
    judged = subjects.subject(13, stand_ins=(('audio', 'text'),))   # 13 items: absent rows fill the batches
    items = [item._replace(streams={'audio': item.streams['audio']}) if k < 4 else item
             for k, item in enumerate(judged.items)]
    judged = judged._replace(items=tuple(items))
    made = [batch for _, batch in robustness.batches(judged).sweep()]
    assert contribution.mean_gates(judged, made) == pytest.approx(
        {'vision': 0.5 * 9 / 13, 'text': 0.3 * 9 / 13, 'audio': 0.1 * 4 / 13})
    early = zoo.create('early', classes=3, hidden=(4,))
    variables = jax.jit(lambda key: early.init(key, made[0], train=False))(jax.random.key(0))
    assert contribution.mean_gates(judged._replace(model=early, variables=variables), made) == {}


def test_gates_and_attention_by_name():
    batch = batches.utterances()
    found = contribution.exports(subjects.Listener(), {}, batch._replace(
        streams={name: stream._replace(x=stream.x[..., :3]) for name, stream in batch.streams.items()}))
    assert {name: x.shape for name, x in found.items()} == {'gates': (3, 3, 4), 'attention/text/0': (3, 3, 4)}
    for name, options, shapes in (
        ('bclstm', {'streams': ('text',), 'width': 4, 'hidden': 6, 'attention': True}, {'attention': (3, 6, 6)}),
        ('early', {'hidden': (4,)}, {}),
    ):
        model, batch = zoo.create(name, classes=3, **options), batches.of(zoo.family(name))
        variables = jax.jit(lambda key, m=model, b=batch: m.init(key, b, train=False))(jax.random.key(0))
        exported = contribution.exports(model, variables, batch)
        assert {name: x.shape for name, x in exported.items()} == shapes
        for weights in exported.values():
            np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


class Mood(nn.Module):
    """The sentiment of a turn: what text and audio say, added."""

    @nn.compact
    def __call__(self, batch, *, train):
        return Output(sum(turn_vectors(batch.streams[name]) for name in ('audio', 'text')), {})


def test_dialogues_and_a_target_without_classes():
    """Text says half of the sentiment, audio the other half; the worth is minus the error that is left."""
    rng = np.random.default_rng(0)
    items = []
    for k in range(5):
        mood = rng.uniform(-3, 3, (3 + k, 1)).astype(np.float32)
        labels = np.where(np.arange(3 + k)[:, None] == 1, np.float32(np.nan), mood)   # one turn is not labelled
        items.append(Item(f'd{k}', f'd{k}', 'test', {'text': mood / 2, 'audio': mood / 2}, {'sentiment': labels},
                          speakers=np.zeros(3 + k, np.int32)))
    spec = Spec('moods', '1', 'dialogue', (StreamSpec('text', 1), StreamSpec('audio', 1)),
                (Target('sentiment', 'regression', ('sentiment',)),))
    data = Data('moods', ('text', 'audio'), target='sentiment', batch_size=2, standardise=False)
    card = {'model': 'mood', 'groups': {'train': [], 'validation': [], 'test': []}}
    judged = robustness.Subject('mood', Mood(), {}, card, data, spec, {}, tuple(items))
    found = contribution.contributions(judged, draws=2)
    truth = np.concatenate([np.delete(item.labels['sentiment'], 1, 0) for item in items])
    assert found['n'] == len(truth) == 20
    for values in found['shapley'].values():
        assert values['mae'] == pytest.approx(-np.abs(truth).mean() / 2, rel=1e-5)
        assert np.isnan(values['pearson']), 'a constant correlates with nothing'
    assert found['shapley_recall'] == {'audio': {}, 'text': {}} and found['gates'] == {}
    assert found['shuffled']['text']['mae'] < -0.5
    curves = robustness.perturb(judged, seeds=1)
    assert curves['trace'] == 0.0 and curves['clean']['mae'] == pytest.approx(0, abs=1e-6)
    result = robustness.to_json({**robustness.about(judged, 'test'), 'draws': 2, **found})
    console = Console(file=io.StringIO(), width=160)
    contribution.show(result, console, 'pearson')
    assert ' - ' in console.file.getvalue(), 'NaN is shown as nothing'


def test_the_result_by_name_and_its_tables(monkeypatch):
    judged = subjects.subject(12)
    monkeypatch.setattr(robustness, 'subject', lambda *_: judged)
    result = contribution.measure('hand', None, 'test', draws=1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result['n'], result['items'], result['seen_in_training']) == (12, 12, 3)
    console = Console(file=io.StringIO(), width=160)
    contribution.show(result, console, 'uar')
    text = console.file.getvalue()
    for part in ('uar', 'mean gate', f'{result["shapley"]["text"]["uar"]:.4f}', 'happy', 'Not an honest test: 3 of 12'):
        assert part in text

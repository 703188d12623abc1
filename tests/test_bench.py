"""The benchmarks: the table of the authors' code fits the zoo, figures are put together rightly. No timings."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import cli, losses, zoo
from jmer.bench import authors, machine, systems, turns
from jmer.train.step import TrainState

NAMES = sorted(authors.TIMINGS)


@pytest.mark.parametrize('name', NAMES)
def test_the_table_names_systems_that_can_be_built(name):
    timing = authors.TIMINGS[name]
    model = systems.model_for(name, timing)
    assert timing.part or zoo.name_of(model) == authors.model_of(name)
    assert timing.seconds is None or timing.seconds > 0
    assert timing.kind in losses.LOSSES
    assert (name in authors.DIALOGUES) == (zoo.family(authors.model_of(name)) == 'dialogue')


@pytest.mark.parametrize('name', ['gmu', 'sdumc', 'mag/gate', 'headfusion', 'deer', 'm3net', 'sacl_lstm', 'gcnet'])
def test_a_step_at_the_authors_sizes_can_be_traced(name):
    timing = authors.TIMINGS[name]
    batch = systems.batch_of(timing, name in authors.DIALOGUES)
    model, optimizer, step = systems.step_of(name, timing)

    def trained(key, batch):
        variables = dict(model.init(key, batch, train=False))
        params = variables.pop('params')
        state = TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))
        return params, *step(state, batch, key)

    before, after, sums = jax.eval_shape(trained, jax.random.key(0), batch)
    assert jax.tree.map(lambda x: x.shape, after.params) == jax.tree.map(lambda x: x.shape, before)
    assert sums['loss']


def test_a_batch_has_one_full_dialogue_and_no_step_behind_the_others():
    timing = authors.DIALOGUES['dialoguernn']
    batch = systems.batch_of(timing, True)
    lengths = batch.present.sum(1)
    assert batch.present.shape == (30, 110) and lengths[0] == 110 and 35 < lengths[1:].mean() < 65
    for stream in batch.streams.values():
        np.testing.assert_array_equal(stream.mask, batch.present)
    assert set(np.unique(batch.speakers)) == {0, 1}


def test_word_pieces_are_numbers_of_the_vocabulary():
    text = systems.batch_of(authors.TIMINGS['mag/bert'], False).streams['text'].x
    np.testing.assert_array_equal(text, text.astype(int))
    assert text.min() >= 0 and text.max() < 30522


def test_names_of_the_table():
    assert authors.named() == list(authors.TIMINGS)
    assert authors.named(['shiftser/rnn_shift', 'mmgcn']) == ['shiftser/rnn_shift', 'mmgcn/64_layers', 'mmgcn/4_layers']
    with pytest.raises(ValueError, match="called 'nobody'; they are mult/iemocap, "):
        authors.named(['nobody'])


def test_roofline_and_means():
    peak = machine.Peak(flops=1e9, bytes=1e8)
    assert systems.roofline({'flops': 5e8, 'moved': 1e6, 'seconds': 2.0}, peak) == pytest.approx(0.25)
    assert systems.roofline({'flops': 1e6, 'moved': 1e8, 'seconds': 4.0}, peak) == pytest.approx(0.25)
    assert systems.geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4.0)
    assert math.isnan(systems.geometric_mean([]))


def test_growth_of_a_power_law():
    lengths = [8, 32, 128, 512]
    assert turns.growth(lengths, [3.0 * n ** 1.7 for n in lengths]) == pytest.approx(1.7)
    assert turns.growth(lengths, [5.0] * 4) == pytest.approx(0)
    with pytest.raises(ValueError, match='expected two lengths or more'):
        turns.growth([8, 8], [1.0, 2.0])


def test_growth_is_fitted_to_long_dialogues_only():
    found = {n: {'seconds': 1e-6 * n**2, 'memory': 50.0 * n} for n in (32, 128, 512)}
    found[8] = {'seconds': 100.0, 'memory': 1}
    assert turns.exponents(found) == {'seconds': pytest.approx(2), 'memory': pytest.approx(1)}
    assert turns.exponents(found | {512: {'fault': 'out of memory'}}) == {}


@pytest.mark.parametrize('name', zoo.list_models('dialogue'))
def test_every_conversation_system_has_a_dialogue_of_any_length(name):
    timing = turns.dialogue_of(name, 512)
    batch = systems.batch_of(timing, True)
    assert batch.present.shape == (1, 512) and batch.present.all()
    model = systems.model_for(name, timing)
    assert getattr(model, 'max_turns', 512) >= 512


FOUND = {'seconds': 0.01, 'median_seconds': 0.011, 'steps': 5, 'flops': 2 * 10**9, 'moved': 10**6, 'memory': 3 * 10**6,
         'process_memory': 10**8, 'compile_seconds': 1.0, 'parameters': 10}


def test_systems_prints_a_table_and_goes_on_behind_a_failure(monkeypatch, capsys, tmp_path):
    def apart(module, *arguments):
        if arguments == ('--peak',):
            return {'flops': 1e12, 'bytes': 1e10}
        if arguments == ('lmf',):
            raise ValueError('killed')
        return dict(FOUND)

    monkeypatch.setattr(machine, 'apart', apart)
    file = tmp_path / 'found.json'
    assert not cli.main(['bench', '--systems', 'jca', 'lmf', 'bclstm', '--json', str(file)])
    printed = capsys.readouterr().out
    assert 'killed' in printed and '6.30' in printed and '72.00' in printed
    figures = json.loads(file.read_text())
    assert figures['geometric_mean'] == {'utterance and speech': pytest.approx(6.3), 'conversation': pytest.approx(72)}
    assert figures['systems']['jca']['roofline'] == pytest.approx(0.2)
    assert figures['systems']['lmf'] == {'fault': 'killed'}


def test_turns_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr(machine, 'apart', lambda module, name, length: FOUND | {'seconds': 1e-6 * int(length) ** 2})
    assert not cli.main(['bench', '--turns', 'bclstm'])
    printed = capsys.readouterr().out
    assert '262 ms' in printed and '2.00' in printed and '0.00' in printed
    assert cli.main(['bench', '--turns', 'gmu']) == 1
    assert cli.main(['bench', 'import', '--turns']) == 1
    assert 'gmu' in capsys.readouterr().err


def test_one_system_is_measured_in_a_process_of_its_own():
    found = machine.apart('jmer.bench.turns', 'bclstm', '8')
    assert found['seconds'] > 0 and found['steps'] >= 2
    assert min(found['memory'], found['moved']) > 12 * found['parameters']
    with pytest.raises(ValueError, match='nobody'):
        machine.apart('jmer.bench.turns', 'nobody', '8')

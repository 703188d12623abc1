"""Reading an author's checkpoint: every fault at once, and nothing taken unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.author import Reader, stack
from jmer.layers.norm import BatchNorm
from jmer.layers.recurrent import LSTM


def state(**changes):
    rng = np.random.default_rng(0)
    made = {
        'fc.weight': rng.normal(size=(3, 4)),
        'fc.bias': rng.normal(size=3),
        'norm.weight': rng.normal(size=4),
        'norm.bias': rng.normal(size=4),
    }
    return {key: np.asarray(x, np.float32) for key, x in (made | changes).items() if x is not None}


def read(state):
    reader = Reader(state, 'tiny')
    params = {'fc': reader.dense('fc', 4, 3), 'norm': reader.layer_norm('norm', 4)}
    reader.close()
    return params


def test_a_dense_layer_is_turned_and_a_norm_renamed():
    given = state()
    params = read(given)
    np.testing.assert_array_equal(params['fc']['kernel'], given['fc.weight'].T)
    np.testing.assert_array_equal(params['norm']['scale'], given['norm.weight'])
    assert jax.tree.map(np.shape, params) == {
        'fc': {'kernel': (4, 3), 'bias': (3,)},
        'norm': {'scale': (4,), 'bias': (4,)},
    }


def test_all_faults_come_in_one_message():
    faulty = state(
        **{
            'fc.weight': np.zeros((5, 4)),
            'fc.bias': None,
            'norm.weight': np.zeros((4, 1)),
            'extra.weight': np.zeros(7),
        }
    )
    with pytest.raises(ValueError) as fault:
        read(faulty)
    lines = str(fault.value).splitlines()
    assert lines[0] == 'this is not a checkpoint of tiny, 4 keys differ:'
    assert sorted(line.split() for line in lines[1:]) == sorted(
        line.split()
        for line in (
            'misshapen fc.weight: found (5, 4), expected (3, 4)',
            'missing fc.bias: expected shape (3,)',
            'misshapen norm.weight: found (4, 1), expected (4,)',
            'surplus extra.weight: found (7,)',
        )
    )


def test_nothing_of_the_state_is_a_fault_for_every_key():
    with pytest.raises(ValueError, match='4 keys differ'):
        read({})


def test_none_stands_for_any_size_but_not_for_any_rank():
    reader = Reader(state(), 'tiny')
    assert reader.take('fc.weight', None, 4).shape == (3, 4)
    reader.take('norm.weight', None, None)
    reader.skip('*')
    with pytest.raises(ValueError, match=r"norm.weight: found \(4,\), expected \('any', 'any'\)"):
        reader.close()


def test_skipped_patterns_are_no_surplus():
    reader = Reader(state(), 'tiny')
    reader.dense('fc', 4, 3)
    reader.skip('norm.*', 'not there.*')
    reader.close()


def test_questions_about_the_state():
    reader = Reader(state(), 'tiny')
    assert 'fc.bias' in reader and 'fc.scale' not in reader
    assert (reader.width('fc.weight', 1), reader.width('fc.weight', 2), reader.width('gone', 0)) == (
        4,
        None,
        None,
    )
    with pytest.raises(ValueError, match='surplus'):
        reader.close()


def test_batch_norm_brings_its_statistics():
    given = {
        f'bn.{n}': np.full(4, k, np.float32)
        for k, n in enumerate(('weight', 'bias', 'running_mean', 'running_var'))
    } | {'bn.num_batches_tracked': np.array(9)}
    reader = Reader(given, 'tiny')
    params, statistics = reader.batch_norm('bn', None)
    reader.close()
    fresh = BatchNorm().init(jax.random.key(0), np.zeros((2, 4), np.float32), np.ones(2, bool), train=False)
    assert jax.tree.map(np.shape, {'params': params, 'batch_stats': statistics}) == jax.tree.map(
        np.shape, dict(fresh)
    )
    assert (params['scale'][0], params['bias'][0], statistics['mean'][0], statistics['var'][0]) == (
        0,
        1,
        2,
        3,
    )


def test_an_lstms_two_biases_act_as_their_sum():
    rng = np.random.default_rng(0)
    given = {
        f'rnn.{name}_l0': rng.normal(size=shape).astype(np.float32)
        for name, shape in (('weight_ih', (8, 3)), ('weight_hh', (8, 2)), ('bias_ih', 8), ('bias_hh', 8))
    }
    reader = Reader(given, 'tiny')
    params = reader.lstm('rnn', 3, 2, 'l0')
    reader.close()
    np.testing.assert_array_equal(params['bias'], given['rnn.bias_ih_l0'] + given['rnn.bias_hh_l0'])
    fresh = LSTM(2).init(jax.random.key(0), np.zeros((1, 2, 3), np.float32), np.ones((1, 2), bool))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh['params'])


def test_gradients_reach_the_authors_tensors():
    """The conversion can be traced, so that gradients are compared by the authors' names."""
    gradient = jax.jit(jax.grad(lambda state: jnp.sum(read(state)['fc']['kernel'][0]) ** 2))(state())
    assert set(gradient) == set(state())
    assert np.abs(gradient['fc.weight'][:, 0]).min() > 0 and not np.any(gradient['fc.weight'][:, 1:])


def test_equal_layers_are_stacked():
    layers = [{'dense': {'kernel': np.full((2, 3), k)}} for k in range(4)]
    stacked = stack(layers)['dense']['kernel']
    assert stacked.shape == (4, 2, 3) and stacked[:, 0, 0].tolist() == [0, 1, 2, 3]

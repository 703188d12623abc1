"""Changes to items and batches."""

import jax
import numpy as np
import pytest

from jmer.data import synthetic, transforms
from jmer.data.corpus import Item
from jmer.data.splits import Protocol, split
from jmer.train import inputs
from jmer.train.experiment import Data
from jmer.types import Batch, Stream
from tests import batches


def item(streams, masks=None):
    return Item(
        'one',
        'group',
        'train',
        {name: np.asarray(x, np.float32) for name, x in streams.items()},
        {},
        masks or {},
    )


def test_standardisation_gives_zero_mean_and_unit_deviation():
    rng = np.random.default_rng(0)
    items = [
        item({'audio': 3 + 5 * rng.normal(size=(t, 4)), 'vision': 1e4 + rng.normal(size=(2, 3))})
        for t in (3, 7, 11)
    ]
    moments = transforms.fit_standardisation(items, ('audio', 'vision'))
    rows = np.concatenate([x.streams['audio'] for x in items])
    np.testing.assert_allclose(moments['audio'].mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments['audio'].std, rows.std(0), rtol=1e-6)
    for name, tolerance in (('audio', 1e-5), ('vision', 2e-3)):
        moved = np.concatenate([transforms.standardise(x, moments).streams[name] for x in items])
        np.testing.assert_allclose(moved.mean(0), 0, atol=tolerance)
        np.testing.assert_allclose(moved.std(0), 1, atol=tolerance)
        assert moved.dtype == np.float32


def test_a_constant_feature_becomes_zero_and_keeps_its_scale():
    x = np.stack([np.full(9, 0.1), np.full(9, 3e5), np.zeros(9), np.arange(9)], 1)
    moments = transforms.fit_standardisation([item({'audio': x})], ('audio',))['audio']
    assert moments.std[:3].tolist() == [1, 1, 1]
    moved = transforms.standardise(item({'audio': x + np.array([1, 0, 1, 0])}), {'audio': moments}).streams[
        'audio'
    ]
    np.testing.assert_allclose(moved[:, :3], [[1, 0, 1]] * 9, atol=1e-6)


def test_masked_steps_and_missing_streams_have_no_say():
    """A turn that is not there may hold anything; dialogues [u t d] too."""
    here, mask = np.array([[1.0], [1e9], [3.0]]), np.array([True, False, True])
    items = [item({'audio': here}, {'audio': mask}), item({'vision': [[5.0]]})]
    moments = transforms.fit_standardisation(items, ('audio',))
    assert (moments['audio'].mean, moments['audio'].std) == (2, 1) and set(moments) == {'audio'}
    inner = item({'audio': here[None].repeat(2, 0)}, {'audio': np.stack([mask, ~mask])})
    assert transforms.fit_standardisation([inner], ('audio',))['audio'].mean == np.float32((1 + 3 + 1e9) / 3)
    moved = transforms.standardise(items[1], moments)
    np.testing.assert_array_equal(moved.streams['vision'], [[5.0]])
    for absent in ([items[1]], [item({'audio': here}, {'audio': np.zeros(3, bool)})]):
        with pytest.raises(ValueError, match="no item to train on has the stream 'audio'"):
            transforms.fit_standardisation(absent, ('audio',))


def test_validation_and_test_items_have_no_say_in_the_moments():
    """Whatever stands outside the training side, the trainer's moments are the same."""
    corpus = synthetic.corpus(dialogues=(3, 2, 2))
    data = Data(
        'toy',
        ('text', 'audio'),
        protocol=Protocol(test=('test',), validation=('validation',)),
        pool=(('audio', 3),),
        truncate=(('text', 5),),
    )

    def moments(change):
        items = tuple(
            x if x.part == 'train' else x._replace(streams={n: change(v) for n, v in x.streams.items()})
            for x in corpus.items
        )
        return inputs.fit(inputs.shape(split(corpus._replace(items=items), data.protocol).train, data), data)

    before, after = moments(lambda x: x), moments(lambda x: 100 - 7 * x)
    for name in data.streams:
        np.testing.assert_array_equal(before[name], after[name])
    everything = transforms.fit_standardisation(inputs.shape(corpus.items, data), data.streams)
    assert not np.array_equal(everything['audio'].mean, before['audio'].mean), 'the test could not fail'


def test_standardise_can_be_switched_off():
    data = Data('toy', ('audio',), standardise=False)
    assert inputs.fit([item({'audio': [[1.0]]})], data) == {}


@pytest.mark.parametrize(
    ('factor', 'expected'), [(1, [0, 1, 2, 3, 4]), (2, [0.5, 2.5, 4]), (5, [2]), (9, [2])]
)
def test_pooling_averages_runs_and_a_short_last_one(factor, expected):
    x = np.arange(5.0)[:, None] * [[1, -2]]
    pooled = transforms.pool_steps(item({'audio': x, 'text': x}), {'audio': factor, 'eeg': 3})
    np.testing.assert_allclose(pooled.streams['audio'], np.array(expected)[:, None] * [[1, -2]])
    assert pooled.streams['audio'].dtype == np.float32
    np.testing.assert_array_equal(pooled.streams['text'], x)


def test_steps_that_are_missing_cannot_be_pooled():
    with pytest.raises(ValueError, match='one: stream audio has missing steps'):
        transforms.pool_steps(
            item({'audio': np.ones((2, 1))}, {'audio': np.array([True, False])}), {'audio': 2}
        )


def test_truncate_keeps_the_first_steps_and_their_mask():
    mask = np.array([False, True, True])
    cut = transforms.truncate(
        item({'audio': np.arange(3.0)[:, None], 'text': np.ones((4, 2))}, {'audio': mask}),
        {'audio': 2, 'eeg': 1},
    )
    assert cut.streams['audio'][:, 0].tolist() == [0, 1]
    assert cut.masks['audio'].tolist() == [False, True]
    assert cut.streams['text'].shape == (4, 2)


NAMES = ('a', 'b', 'c')


def present(count, layout):
    """A batch whose items have stream c, b and c, or all three, in turn; which have which: [m *b]."""
    lead, steps = (
        ((count, 2), ())
        if layout == 'turns'
        else ((count, 2), (3,))
        if layout == 'turn steps'
        else ((count,), (3,))
    )
    has = np.stack(
        [
            np.broadcast_to((np.arange(count) % 3 >= 2 - m).reshape(-1, *[1] * (len(lead) - 1)), lead)
            for m in range(3)
        ]
    )
    streams = {}
    for name, here in zip(NAMES, has, strict=True):
        mask = np.broadcast_to(here.reshape(*lead, *[1] * len(steps)), (*lead, *steps)).copy()
        if steps:
            mask[..., 0] = False  # absent steps stay absent
        streams[name] = Stream(np.ones((*lead, *steps, 1), np.float32), mask)
    return Batch(streams, np.ones(lead, bool), {}), has


@pytest.mark.parametrize('layout', ['utterances', 'turns', 'turn steps'])
def test_dropped_modalities(layout):
    """Never all of an item's streams; else each at the rate r, so that of k streams r - r^k are gone."""
    batch, has = present(6000, layout)
    rate = 0.4
    dropped = jax.jit(lambda key: transforms.drop_modalities(batch, key, rate))(jax.random.key(0))
    left = np.stack([np.asarray(dropped.streams[n].mask) for n in NAMES])
    before = np.stack([batch.streams[n].mask for n in NAMES])
    assert not (left & ~before).any(), 'a step has come to life'
    if left.ndim > has.ndim:
        whole = (left == before).all(-1) | ~left.any(-1)
        assert whole.all(), 'a stream goes with all its steps'
        left = left.any(-1)
    left, has = left.reshape(3, -1), has.reshape(3, -1)
    assert left.any(0).all(), 'an item is empty'
    for k in (1, 2, 3):
        items = has.sum(0) == k
        gone = 1 - left[:, items][has[:, items]].mean()
        assert abs(gone - (rate - rate**k)) < 4 * np.sqrt(0.25 / items.sum()), k
    for n in NAMES:
        np.testing.assert_array_equal(dropped.streams[n].x, batch.streams[n].x)


def test_dropping_is_by_key_and_by_item():
    batch, _ = present(600, 'utterances')
    masks = [
        np.asarray(transforms.drop_modalities(batch, jax.random.key(k), 0.5).streams['c'].mask)
        for k in (0, 0, 1)
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    none = transforms.drop_modalities(batch, jax.random.key(0), 0.0)
    for n in NAMES:
        np.testing.assert_array_equal(none.streams[n].mask, batch.streams[n].mask)


def test_a_stand_in_counts_only_where_the_other_is_missing():
    """[b t] beside [b t'], whatever their lengths; and by the turn."""
    batch = batches.utterances()
    text, audio = batch.streams['text'], batch.streams['audio']
    text.mask[1] = False
    text.mask[2, :-1] = False  # a single step is enough to be there
    audio.mask[0, 4:] = False
    masks = transforms.stand_in(batch, (('audio', 'text'),)).streams
    assert masks['audio'].mask.any(1).tolist() == [False, True, False] and masks['audio'].mask[1].all()
    assert masks['text'] is text and masks['vision'] is batch.streams['vision']
    turns = batches.dialogues()
    turns.streams['text'] = Stream(turns.streams['text'].x, np.arange(18).reshape(3, 6) % 3 > 0)
    stood_in = transforms.stand_in(turns, (('audio', 'text'),)).streams['audio'].mask
    np.testing.assert_array_equal(stood_in, ~turns.streams['text'].mask)
    assert transforms.stand_in(batch, ()) == batch


def test_noise_has_the_deviation_asked_for_and_differs_by_stream():
    batch = batches.utterances(size=400, widths={'text': 5, 'audio': 5}, steps={'text': 6, 'audio': 6})
    noisy = transforms.add_noise(batch, jax.random.key(0), 0.3)
    noise = {n: np.asarray(noisy.streams[n].x) - batch.streams[n].x for n in batch.streams}
    for x in noise.values():
        assert abs(x.mean()) < 0.01 and abs(x.std() - 0.3) < 0.01
    assert abs(np.corrcoef(noise['text'].ravel(), noise['audio'].ravel())[0, 1]) < 0.05
    assert noisy.streams['text'].mask is batch.streams['text'].mask
    again = transforms.add_noise(batch, jax.random.key(0), 0.3)
    np.testing.assert_array_equal(noisy.streams['text'].x, again.streams['text'].x)

"""Changes to items and batches."""

import jax
import numpy as np
import pytest

from jmer.data import synthetic, transforms
from jmer.data.corpus import Item
from jmer.data.splits import Protocol, split
from jmer.train import inputs
from jmer.train.experiment import Data
from jmer.types import Batch, Label, Stream
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
        training = split(corpus._replace(items=items), data.protocol).train.items
        return inputs.fit(inputs.shape(training, data), data)

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


LAYOUTS = ('utterances', 'turns', 'turn steps')


def ragged(layout, size=4, turns=3, steps=5, width=2, seed=0):
    """Two streams, 'a' and 'b', random features, steps missing here and there, an absent item at the end."""
    rng = np.random.default_rng(seed)
    lead = (size,) if layout == 'utterances' else (size, turns)
    inner = () if layout == 'turns' else (steps,)
    there = np.ones(lead, bool)
    there[-1] = False
    streams = {}
    for name in 'ab':
        mask = rng.random((*lead, *inner)) < 0.7
        mask &= there.reshape(*lead, *[1] * len(inner))
        streams[name] = Stream(rng.normal(size=(*mask.shape, width)).astype(np.float32), mask)
    return Batch(streams, there, {})


def assert_same(one, other):
    """The same masks, and the same features where they are True."""
    for name in other.streams:
        np.testing.assert_array_equal(one.streams[name].mask, other.streams[name].mask)
        mask = np.asarray(other.streams[name].mask)
        np.testing.assert_array_equal(
            np.asarray(one.streams[name].x)[mask], np.asarray(other.streams[name].x)[mask]
        )


@pytest.mark.parametrize('layout', LAYOUTS)
def test_all_patterns_of_presence_in_one_program(layout):
    batch = ragged(layout)
    patterns = np.array([[False, False], [True, False], [False, True], [True, True]])
    kept = jax.jit(jax.vmap(transforms.keep_modalities, (None, 0)))(batch, patterns)
    for k, pattern in enumerate(patterns):
        for name, there in zip('ab', pattern, strict=True):
            np.testing.assert_array_equal(kept.streams[name].mask[k], batch.streams[name].mask & there)
            np.testing.assert_array_equal(kept.streams[name].x[k], batch.streams[name].x)
    with pytest.raises(ValueError):
        transforms.keep_modalities(batch, np.array([True]))


def test_choosing_streams_leaves_the_others_as_they_were():
    batch = ragged('utterances')
    changed = transforms.drop_frames(
        transforms.add_noise(batch, jax.random.key(0), 1.0), jax.random.key(0), 1.0
    )
    chosen = jax.jit(transforms.choose_streams)(changed, batch, np.array([False, True]))
    for source, name in ((batch, 'a'), (changed, 'b')):
        np.testing.assert_array_equal(chosen.streams[name].x, source.streams[name].x)
        np.testing.assert_array_equal(chosen.streams[name].mask, source.streams[name].mask)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_lost_modalities(layout):
    """One always stays, so that of k streams r - r^k / k are gone: more at every higher rate."""
    batch, has = present(6000, layout)
    lose = jax.jit(lambda rate: transforms.lose_modalities(batch, jax.random.key(0), rate))

    def left(rate):
        masks = np.stack([np.asarray(lose(rate).streams[n].mask) for n in NAMES])
        assert not (masks & ~np.stack([batch.streams[n].mask for n in NAMES])).any()
        return (masks.any(-1) if masks.ndim > has.ndim else masks).reshape(3, -1)

    flat = has.reshape(3, -1)
    for rate in (0.4, 0.7):
        for k in (1, 2, 3):
            items = flat.sum(0) == k
            gone = 1 - left(rate)[:, items][flat[:, items]].mean()
            assert abs(gone - (rate - rate**k / k)) < 4 * np.sqrt(0.25 / items.sum()), (rate, k)
    assert (left(1.0).sum(0) == 1).all() and (left(0.0) == flat).all()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_noise_is_as_strong_as_the_ratio_says(layout):
    """For every item and stream by itself; what stands under the mask adds no power."""
    batch = ragged(layout, width=4000)
    scale = np.arange(1, batch.present.size + 1, dtype=np.float32).reshape(batch.present.shape)
    streams = {}
    for name, (x, mask) in batch.streams.items():
        loud = x * scale.reshape(*scale.shape, *[1] * (x.ndim - scale.ndim))
        streams[name] = Stream(np.where(mask[..., None], loud, np.float32(1e6)), mask)
    batch = batch._replace(streams=streams)
    add = jax.jit(lambda snr: transforms.add_noise_at_snr(batch, jax.random.key(0), snr))
    for snr in (20.0, 0.0, -6.0):
        noisy = add(snr)
        for name, (x, mask) in batch.streams.items():
            noise = np.asarray(noisy.streams[name].x) - x
            rows = mask if layout == 'turns' else mask.any(-1)
            for place in np.argwhere(rows):
                place = tuple(place)
                here = mask[place]
                ratio = np.mean(x[place][here] ** 2) / np.mean(noise[place][here] ** 2)
                assert abs(10 * np.log10(ratio) - snr) < 0.3, (name, place, snr)
            assert np.isfinite(noise).all()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_dropped_frames(layout):
    batch = ragged(layout, size=400, turns=6, steps=6)
    drop = jax.jit(lambda rate: transforms.drop_frames(batch, jax.random.key(0), rate))
    assert_same(drop(0.0), batch)
    for name, (x, mask) in batch.streams.items():
        half, all_but_one = (np.asarray(drop(rate).streams[name].mask) for rate in (0.5, 1.0))
        assert not (half & ~mask).any() and (half.any(-1) == mask.any(-1)).all()
        many = mask.sum(-1) >= 2
        kept, expected = half[many].sum(), mask[many].sum()
        # Of n steps, n / 2 are kept and one more where the draw would have lost all.
        bonus = (0.5 ** mask[many].sum(-1)).sum()
        assert abs(kept - expected / 2 - bonus) < 4 * np.sqrt(expected / 4)
        np.testing.assert_array_equal(all_but_one.sum(-1), mask.any(-1))
        np.testing.assert_array_equal(drop(0.5).streams[name].x, x)


def sequence(*steps, length=6):
    """One item of these steps, None for a missing one, and padding."""
    values = [*steps, *[None] * (length - len(steps))]
    x = np.array([[[77.0 if v is None else v] for v in values]], np.float32)
    return Stream(x, np.array([[v is not None for v in values]]))


def read(stream):
    """The way back, up to the last step that is there."""
    found = [
        float(v) if there else None
        for v, there in zip(np.ravel(stream.x), np.ravel(stream.mask), strict=True)
    ]
    while found and found[-1] is None:
        found.pop()
    return found


@pytest.mark.parametrize(
    ('steps', 'expected'),
    [
        (0, [1, None, 3, 4]),
        (1, [None, 1, None, 3]),
        (3, [None, None, None, 1]),
        (9, []),
        (-1, [None, 3, 4]),
        (-2, [3, 4]),
        (-9, []),
    ],
)
def test_a_shift_in_time(steps, expected):
    """What leaves the item is gone, be there padding behind it or not."""
    shift = jax.jit(transforms.desynchronise)
    for length in (4, 6):
        stream = sequence(1, None, 3, 4, length=length)
        batch = Batch({'a': stream}, np.ones(1, bool), {})
        assert read(shift(batch, steps).streams['a']) == expected
        turns = Batch({'a': stream}, np.arange(length)[None] < 4, {}, np.zeros((1, length), np.int32))
        assert read(shift(turns, steps).streams['a']) == expected
        inner = Batch({'a': Stream(stream.x[None], stream.mask[None])}, np.ones((1, 1), bool), {})
        assert read(shift(inner, steps).streams['a']) == expected


def test_turns_shift_within_their_dialogue_and_a_single_step_stays():
    """A stream that lacks the last turn may be late into it: the turn is there."""
    batch = Batch({'a': sequence(1, 2, None)}, np.arange(6)[None] < 3, {}, np.zeros((1, 6), np.int32))
    assert read(transforms.desynchronise(batch, 1).streams['a']) == [None, 1, 2]
    single = Batch({'a': sequence(5, length=1)}, np.ones(1, bool), {})
    assert read(transforms.desynchronise(single, 1).streams['a']) == [5]


def test_misheard_words():
    """A third of the errors each: lost, replaced by a word of any item, said twice. The rest keeps its order."""
    size, words, room, rate = 500, 20, 40, 0.3
    x = np.zeros((size, room, 1), np.float32)
    x[:, :words, 0] = np.arange(size * words).reshape(size, words)
    x[:, words:] = np.nan   # what is not there cannot be heard
    mask = np.broadcast_to(np.arange(room) < words, (size, room))
    batch = Batch({'text': Stream(x, mask)}, np.ones(size, bool), {})
    corrupt = jax.jit(lambda rate: transforms.corrupt_words(batch, jax.random.key(0), rate))
    assert_same(corrupt(0.0), batch)
    stream = corrupt(rate).streams['text']
    gone = twice = foreign = 0
    for row, (said, there) in enumerate(zip(np.asarray(stream.x)[..., 0], np.asarray(stream.mask), strict=True)):
        said = said[there]
        assert there[: len(said)].all() and np.isfinite(said).all(), 'what is left closes up'
        own = said[said // words == row]
        twice += (np.diff(own) == 0).sum()
        foreign += (said // words != row).sum()
        gone += words - len(np.unique(own))
    count = size * words
    for found, share in ((gone, 2 / 3), (twice, 1 / 3), (foreign, 1 / 3)):
        assert abs(found / count - rate * share) < 4 * np.sqrt(0.1 / count), (gone, twice, foreign)


def test_words_that_no_longer_fit_fall_out():
    batch = Batch({'text': sequence(1, 2, 3, length=3)}, np.ones(1, bool), {})
    corrupt = jax.jit(jax.vmap(lambda key: transforms.corrupt_words(batch, key, 1.0).streams['text']))
    found = jax.device_get(corrupt(jax.random.split(jax.random.key(0), 100)))
    heard = [read(Stream(x, mask)) for x, mask in zip(found.x, found.mask, strict=True)]
    assert [1, 1, 2] in heard and [] in heard and all(len(one) <= 3 for one in heard)


def test_misheard_turns_do_not_move():
    batch = ragged('turns', size=600, turns=6, width=1)
    x = np.arange(batch.present.size, dtype=np.float32).reshape(*batch.present.shape, 1)
    batch = batch._replace(streams={'text': Stream(x, batch.streams['a'].mask)})
    before = batch.streams['text']
    heard = jax.jit(lambda: transforms.corrupt_words(batch, jax.random.key(0), 0.4))().streams['text']
    count = before.mask.sum()
    lost = before.mask & ~np.asarray(heard.mask)
    replaced = np.asarray(heard.mask) & (np.asarray(heard.x) != x)[..., 0]
    assert not (np.asarray(heard.mask) & ~before.mask).any()
    for errors in (lost, replaced):
        assert abs(errors.sum() / count - 0.2) < 4 * np.sqrt(0.16 / count)
    assert np.isin(np.asarray(heard.x)[replaced], x[before.mask]).all(), 'a missing turn was heard'


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_shuffled_stream_is_dealt_out_among_the_present_items(layout):
    batch = ragged(layout, size=40, width=1)
    batch.present[5] = False
    shuffle = jax.jit(transforms.shuffle_modality)
    one, again, other = (shuffle(batch, jax.random.key(k), np.array([True, False])) for k in (0, 0, 1))
    for name, moves in (('a', True), ('b', False)):
        before = batch.streams[name]
        old, new = (
            np.concatenate([np.reshape(part, (batch.present.size, -1)) for part in stream], 1)[batch.present.ravel()]
            for stream in (before, one.streams[name])
        )
        assert (old != new).any(-1).all() == moves and (old != new).any() == moves, 'each gets that of another'
        np.testing.assert_array_equal(old[np.lexsort(old.T)], new[np.lexsort(new.T)])
        absent = ~batch.present
        np.testing.assert_array_equal(np.asarray(one.streams[name].x)[absent], before.x[absent])
    np.testing.assert_array_equal(one.streams['a'].x, again.streams['a'].x)
    assert (np.asarray(one.streams['a'].x) != np.asarray(other.streams['a'].x)).any()


def test_flipped_labels():
    """The rate is that of wrong labels, all wrong classes are equally likely, unlabelled items stay."""
    rng = np.random.default_rng(0)
    value = rng.integers(0, 4, 8000).astype(np.int32)
    mask = np.arange(8000) % 4 > 0
    batch = Batch({}, np.ones(8000, bool), {'emotion': Label(value, mask)})
    flip = jax.jit(lambda rate: transforms.flip_labels(batch, jax.random.key(0), rate, 'emotion', 4).labels['emotion'])
    found = np.asarray(flip(0.3).value)
    np.testing.assert_array_equal(found[~mask], value[~mask])
    wrong = found[mask] != value[mask]
    assert abs(wrong.mean() - 0.3) < 4 * np.sqrt(0.21 / mask.sum())
    moved = np.bincount((found - value)[mask & (found != value)] % 4, minlength=4)
    assert moved[0] == 0 and (abs(moved[1:] - wrong.sum() / 3) < 4 * np.sqrt(wrong.sum() * 2 / 9)).all()
    np.testing.assert_array_equal(flip(0.0).value, value)
    regression = batch._replace(labels={'valence': Label(np.zeros((8000, 1), np.float32), mask)})
    with pytest.raises(ValueError, match='label valence: found float32, expected class codes'):
        transforms.flip_labels(regression, jax.random.key(0), 0.3, 'valence', 4)

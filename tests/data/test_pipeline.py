"""Batches as a pure function of (seed, step)."""

import collections
from functools import cache

import jax
import numpy as np
import pytest

from jmer.data import synthetic
from jmer.data.corpus import Item, Spec, StreamSpec, Target
from jmer.data.pipeline import class_counts, common_steps, make_batch, pipeline, shares_of

STREAMS = ('text', 'audio', 'vision')

SPEC = Spec(
    name='tiny',
    version='1',
    layout='utterance',
    streams=(StreamSpec('audio', 2), StreamSpec('vision', 3)),
    targets=(
        Target('emotion', 'class', ('sad', 'glad')),
        Target('mood', 'regression', ('valence', 'arousal')),
    ),
)


@cache
def corpus(layout='utterance'):
    return synthetic.corpus(layout=layout, dialogues=(4, 1, 1))


def utterance(number, steps=1, **fields):
    """An item whose audio holds its number in every step, and no vision."""
    return Item(
        f'item{number}',
        'group',
        'train',
        {'audio': np.full((steps, 2), number, np.float32)},
        {'emotion': np.array(number % 2, np.int32)},
    )._replace(**fields)


def toy(layout='utterance', **options):
    spec, items = corpus(layout)
    options = {'batch_size': 8, 'buckets': 3, **options}
    return pipeline(items, spec, STREAMS, 'emotion', **options)


def numbered(count, **options):
    return pipeline([utterance(k, 1 + k % 5) for k in range(count)], SPEC, ('audio',), 'emotion', **options)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)))


def numbers(batch):
    """Which of the `numbered` items are in a batch."""
    return batch.streams['audio'].x[batch.present, 0, 0].astype(int).tolist()


def test_a_batch_is_a_function_of_seed_and_step():
    one, other = toy(), toy()
    steps = range(2 * one.steps_per_epoch)
    forward = [one.stream(3, step) for step in steps]
    for step in reversed(steps):
        assert equal(forward[step], other.stream(3, step))
    assert not equal(forward[0], one.stream(4, 0))


def test_every_epoch_sees_every_item_once_in_its_own_order():
    batches = numbered(23, batch_size=4, buckets=3)
    epochs = [
        [
            numbers(batches.stream(7, epoch * batches.steps_per_epoch + k))
            for k in range(batches.steps_per_epoch)
        ]
        for epoch in range(3)
    ]
    for epoch in epochs:
        assert sorted(number for batch in epoch for number in batch) == list(range(23))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other = [numbers(batches.stream(8, k)) for k in range(batches.steps_per_epoch)]
    assert other != epochs[0], 'another seed gave the same order'
    # Shuffled within a bucket too: else the same items would meet in every epoch.
    assert {frozenset(batch) for batch in epochs[0]} != {frozenset(batch) for batch in epochs[1]}


def test_every_position_of_an_item_is_as_likely():
    """The first item of the corpus opens an epoch as often as any other: 1 in 6, 400 epochs."""
    batches = numbered(6, batch_size=1, buckets=2)
    first = collections.Counter(numbers(batches.stream(0, 6 * epoch))[0] for epoch in range(400))
    assert sorted(first) == list(range(6))
    assert max(abs(n - 400 / 6) for n in first.values()) < 4 * np.sqrt(400 * 5 / 36)


@pytest.mark.parametrize('buckets', [1, 2, 4])
def test_as_many_shapes_as_buckets_and_no_longer_than_needed(buckets):
    batches = toy(buckets=buckets)
    shapes = {
        tuple(x.shape for x in jax.tree.leaves(batches.stream(0, step)))
        for step in range(batches.steps_per_epoch)
    }
    assert len(shapes) == buckets
    for bucket in batches.buckets:
        mask = bucket.batch.streams['audio'].mask
        assert mask.shape[1] == mask.sum(1).max(), 'no item of the bucket is as long as its shape'
    longest = [bucket.batch.streams['audio'].x.shape[1] for bucket in batches.buckets]
    assert longest == sorted(longest)


def test_more_buckets_than_items_are_no_fault():
    batches = numbered(2, batch_size=2, buckets=9)
    assert [rows for rows, _ in batches.sweep()] == [[0], [1]]


@pytest.mark.parametrize('layout', ['utterance', 'dialogue'])
def test_the_shares_of_the_processes_make_the_batch(layout):
    whole = toy(layout, buckets=2)
    shares = [toy(layout, buckets=2, process=(k, 4)) for k in range(4)]
    for step in range(whole.steps_per_epoch):
        parts = [share.stream(5, step) for share in shares]
        assert equal(jax.tree.map(lambda *x: np.concatenate(x), *parts), whole.stream(5, step))
    for of_one, of_all in zip(shares[3].sweep(), whole.sweep(), strict=True):
        assert of_one[0] == of_all[0], 'every process knows the rows of the whole batch'


def test_a_batch_that_is_not_full_is_completed_with_nothing():
    (rows, full), (rest, partial) = numbered(5, batch_size=3).sweep()
    assert (len(rows), len(rest), sorted(rows + rest)) == (3, 2, [0, 1, 2, 3, 4])
    assert full.present.all()
    assert partial.present.tolist() == [True, True, False]
    assert not partial.streams['audio'].mask[2].any() and not partial.streams['audio'].x[2].any()
    assert not partial.labels['emotion'].mask[2]
    assert jax.tree.map(np.shape, full) == jax.tree.map(np.shape, partial)
    one = pipeline([utterance(0)], SPEC, ('audio',), 'emotion', 4, process=(1, 2)).stream(0, 0)
    assert not one.present.any() and not one.labels['emotion'].mask.any(), 'a share may be empty'


def test_a_batch_is_the_callers_own():
    """Whoever writes into a batch spoils no later one."""
    for size in (2, 3):
        batches = numbered(2, batch_size=size)
        before = jax.tree.map(np.copy, batches.stream(0, 0))
        for x in jax.tree.leaves(batches.stream(0, 0)):
            x[...] = 1
        assert equal(batches.stream(0, 0), before)


def test_what_an_utterance_becomes():
    mask = np.array([True, False, True])
    items = [
        utterance(1, 3, masks={'audio': mask}),
        utterance(2, 1, streams={'vision': np.full((4, 3), 7, np.float32)}, labels={}),
    ]
    batch = make_batch(items, SPEC, [SPEC.target('emotion')], {'audio': (5,), 'vision': (4,)})
    audio, vision, label = batch.streams['audio'], batch.streams['vision'], batch.labels['emotion']
    assert batch.speakers is None and batch.present.tolist() == [True, True]
    assert audio.mask.tolist() == [[True, False, True, False, False], [False] * 5]
    assert (audio.x[0, :3] == 1).all() and not audio.x[0, 3:].any() and not audio.x[1].any()
    assert vision.mask.tolist() == [[False] * 4, [True] * 4] and not vision.x[0].any()
    assert (label.value.tolist(), label.mask.tolist()) == ([1, 0], [True, False])
    assert {x.dtype for x in (audio.x, vision.x)} == {np.dtype('float32')} and label.value.dtype == np.int32


def test_what_a_dialogue_becomes():
    spec, items = corpus('dialogue')
    items = items[:3]
    turns = [len(item.speakers) for item in items]
    batch = make_batch(items, spec, [spec.target('emotion')], common_steps(items, spec, STREAMS))
    assert batch.present.shape == batch.speakers.shape == (3, max(turns))
    assert batch.present.sum(1).tolist() == turns
    for row, item in enumerate(items):
        inside = slice(turns[row])
        np.testing.assert_array_equal(batch.speakers[row, inside], item.speakers)
        np.testing.assert_array_equal(batch.labels['emotion'].value[row, inside], item.labels['emotion'])
        for name in STREAMS:
            expected = item.masks.get(name, np.ones(turns[row], bool))
            np.testing.assert_array_equal(batch.streams[name].mask[row, inside], expected)
            np.testing.assert_array_equal(batch.streams[name].x[row, inside], item.streams[name])
    outside = ~batch.present
    for x in (batch.speakers, batch.labels['emotion'].mask, *(batch.streams[n].mask for n in STREAMS)):
        assert not x[outside].any()


def test_dialogues_with_steps_inside_a_turn_and_without_a_stream():
    """[b u t d] of the longest turn and the most turns; a stream that no item has keeps the turns."""
    spec = Spec('talk', '1', 'dialogue', SPEC.streams, SPEC.targets)
    items = [
        Item(
            'a', 'a', 'train', {'audio': np.ones((2, 5, 2), np.float32)}, {}, speakers=np.zeros(2, np.int32)
        ),
        Item(
            'b', 'b', 'train', {'audio': np.ones((3, 4, 2), np.float32)}, {}, speakers=np.zeros(3, np.int32)
        ),
    ]
    batch = pipeline(items, spec, ('audio', 'vision'), 'emotion', 2).stream(0, 0)
    assert batch.streams['audio'].x.shape == (2, 3, 5, 2)
    assert sorted(batch.streams['audio'].mask.sum((1, 2)).tolist()) == [10, 12]
    assert batch.streams['vision'].x.shape == (2, 3, 3) and not batch.streams['vision'].mask.any()


@pytest.mark.parametrize('layout', ['utterance', 'dialogue'])
def test_unlabelled_is_masked(layout):
    lead = (3,) if layout == 'dialogue' else ()
    speakers = np.zeros(3, np.int32) if layout == 'dialogue' else None
    spec = Spec('tiny', '1', layout, SPEC.streams, SPEC.targets)
    classes = np.array([1, -1, 0], np.int32) if lead else np.array(-1, np.int32)
    moods = np.ones((*lead, 2), np.float32)
    moods[(1, 0) if lead else 1] = np.nan
    item = utterance(0, 3, labels={'emotion': classes, 'mood': moods}, speakers=speakers)
    for target, columns in (('emotion', ()), ('mood', (2,))):
        label = pipeline([item], spec, ('audio',), target, 1).stream(0, 0).labels[target]
        assert label.mask.tolist() == ([[True, False, True]] if lead else [False])
        assert label.value.shape == (1, *lead, *columns)
        assert not label.value[~label.mask].any(), 'no -1 and no NaN may go on to the loss'


def test_without_a_target_there_are_no_labels():
    batches = pipeline([utterance(0)], SPEC, ('audio',), None, 1)
    assert batches.stream(0, 0).labels == {}


def test_bad_arguments_are_named():
    items = [utterance(0)]
    with pytest.raises(ValueError, match='tiny: there are no items'):
        pipeline([], SPEC, ('audio',), None, 4)
    with pytest.raises(ValueError, match='a batch of 6 cannot be shared by 4 processes'):
        pipeline(items, SPEC, ('audio',), None, 6, process=(0, 4))
    for size in (0, -8):
        with pytest.raises(ValueError, match=f'batch of {size}'):
            pipeline(items, SPEC, ('audio',), None, size)
    with pytest.raises(ValueError, match='buckets: found 0'):
        pipeline(items, SPEC, ('audio',), None, 4, buckets=0)
    with pytest.raises(ValueError, match="no stream 'eeg'"):
        pipeline(items, SPEC, ('eeg',), None, 4)
    with pytest.raises(ValueError, match="no target 'anger'"):
        pipeline(items, SPEC, ('audio',), 'anger', 4)


def uneven(rare=6, common=54, **options):
    """Items of lengths 1 to 3, the first few of the class 'sad' and all others 'glad'."""
    items = [utterance(k, 1 + k % 3, labels={'emotion': np.array(int(k >= rare), np.int32)})
             for k in range(rare + common)]
    return pipeline(items, SPEC, ('audio',), 'emotion', **{'batch_size': 8, 'buckets': 3} | options)


def epoch(batches, number, seed=0):
    steps = batches.steps_per_epoch
    return [k for step in range(steps) for k in numbers(batches.stream(seed, number * steps + step))]


@pytest.mark.parametrize(('balance', 'rare'), [(1.0, 30), (0.5, 15), (2.0, 54)])
def test_balance_draws_classes_by_a_power_of_their_inverse_frequency(balance, rare):
    """Of 60 draws: shares n^(1 - balance), 1 : 1, 6^.5 : 54^.5 = 1 : 3 and 54 : 6."""
    batches = uneven(balance=balance)
    for number in range(3):
        drawn = epoch(batches, number)
        assert len(drawn) == 60
        assert abs(sum(k < 6 for k in drawn) - rare) <= 3, 'up to one in each bucket'
        times = collections.Counter(drawn)
        assert max(abs(times[k] - rare / 6) for k in range(6)) <= 1.5, 'none is left to chance'


def test_a_balanced_batch_is_a_function_of_seed_and_step():
    one, other = uneven(balance=1.0), uneven(balance=1.0)
    steps = range(2 * one.steps_per_epoch)
    forward = [one.stream(3, step) for step in steps]
    for step in reversed(steps):
        assert equal(forward[step], other.stream(3, step))
    assert epoch(one, 0) != epoch(one, 1) and epoch(one, 0) != epoch(one, 0, seed=1)
    stacked = one.streams((3, 4), 5)
    assert equal(jax.tree.map(lambda x: x[0], stacked), forward[5])
    shares = [uneven(balance=1.0, process=(k, 2)).stream(3, 1) for k in range(2)]
    assert equal(jax.tree.map(lambda *x: np.concatenate(x), *shares), forward[1])


def test_over_many_epochs_every_item_of_a_class_is_as_likely():
    batches = uneven(balance=1.0)
    times = collections.Counter(k for number in range(100) for k in epoch(batches, number))
    for members, expected in ((range(6), 500), (range(6, 60), 30 / 54 * 100)):
        assert max(abs(times[k] - expected) for k in members) < 5 * np.sqrt(expected)


def test_balance_leaves_evaluation_and_equal_classes_as_they_are():
    assert sorted(k for rows, _ in uneven(balance=1.0).sweep() for k in rows) == list(range(60))
    assert uneven(balance=0.0).shares is None
    assert sorted(epoch(uneven(30, 30, balance=1.0, buckets=1), 0)) == list(range(60))


def test_a_dialogue_is_drawn_by_the_mean_over_its_labelled_turns():
    def dialogue(*emotions):
        return utterance(0, len(emotions), labels={'emotion': np.array(emotions, np.int32)})

    items = [dialogue(0, 0, 0, 1), dialogue(1, -1), dialogue(0, 0, 0), dialogue(-1, -1),
             utterance(0, labels={})]
    target = SPEC.target('emotion')
    assert class_counts(items, target).tolist() == [6, 2]
    # 1/6 for a sad turn and 1/2 for a glad one; the last two take the mean of the others.
    worth = np.array([(3 / 6 + 1 / 2) / 4, 1 / 2, 1 / 6])
    expected = np.array([*worth, worth.mean(), worth.mean()])
    np.testing.assert_allclose(shares_of(items, target, 1.0), expected / expected.sum())
    nobody = shares_of([dialogue(-1)] * 2, target, 1.0)
    np.testing.assert_allclose(nobody, [0.5, 0.5])


def test_what_cannot_be_balanced_is_named():
    items = [utterance(0, labels={'mood': np.zeros(2, np.float32)})]
    for balance in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match='balance: found'):
            pipeline(items, SPEC, ('audio',), 'emotion', 1, balance=balance)
    with pytest.raises(ValueError, match='mood of the kind regression, expected classes'):
        pipeline(items, SPEC, ('audio',), 'mood', 1, balance=1.0)
    with pytest.raises(ValueError, match='without a target'):
        pipeline(items, SPEC, ('audio',), None, 1, balance=1.0)

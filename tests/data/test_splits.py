"""Protocols: who trains, who chooses, who judges."""

import re

import numpy as np
import pytest

from jmer.data.corpus import Corpus, Item, Spec, StreamSpec, Target
from jmer.data.splits import Protocol, folds, split

SPEC = Spec(
    'tiny', '1', 'utterance', (StreamSpec('audio', 1),), (Target('emotion', 'class', ('sad', 'glad')),)
)


def corpus(**parts):
    """Two items of every group; parts: the groups of each."""
    return Corpus(
        SPEC,
        tuple(
            Item(f'{part}-{group}-{k}', group, part, {}, {})
            for part, groups in parts.items()
            for group in groups
            for k in range(2)
        ),
    )


FOLDS = corpus(fold0='ab', fold1='cd', fold2='efg')


def groups(splits):
    return tuple(''.join(sorted(side.groups)) for side in splits)


@pytest.mark.parametrize(
    ('protocol', 'expected'),
    [
        (Protocol(test=('fold2',)), ('abcd', '', 'efg')),
        (Protocol(test=('fold0', 'fold1')), ('efg', '', 'abcd')),
        (Protocol(test=('fold2',), validation=('fold1',)), ('ab', 'cd', 'efg')),
        (Protocol(test=('fold2',), validation=('fold1',), train=('fold0',)), ('ab', 'cd', 'efg')),
        (Protocol(test=(), validation=('fold1',), train=('fold0',)), ('ab', 'cd', '')),
        (Protocol(test=()), ('abcdefg', '', '')),
    ],
)
def test_parts(protocol, expected):
    splits = split(FOLDS, protocol)
    assert groups(splits) == expected
    assert [len(side) for side in splits] == [2 * len(side) for side in expected]


def test_groups_held_out_are_whole_and_of_the_training_parts():
    splits = split(FOLDS, Protocol(test=('fold0',), held_out=2, seed=1))
    train, validation, test = groups(splits)
    assert (len(train), len(validation), test) == (3, 2, 'ab')
    assert sorted(train + validation) == list('cdefg')
    assert len(splits.validation) == 4, 'both items of a group go together'
    both = split(FOLDS, Protocol(test=('fold0',), validation=('fold1',), held_out=1))
    assert len(groups(both)[1]) == 3, 'drawn groups join the parts that are named'


def test_the_draw_is_a_function_of_the_seed():
    def drawn(seed, of=FOLDS):
        return groups(split(of, Protocol(test=(), held_out=3, seed=seed)))[1]

    assert drawn(0) == drawn(0)
    assert drawn(0) == drawn(0, FOLDS._replace(items=FOLDS.items[::-1])), (
        'the order of the items plays no part'
    )
    assert len({drawn(seed) for seed in range(8)}) > 4


@pytest.mark.parametrize(
    ('protocol', 'sides'),
    [
        (Protocol(test=('test',), validation=('dev',)), 'train and in test'),
        (Protocol(test=('dev',), validation=('test',)), 'train and in validation'),
        (Protocol(test=('test',), validation=('test',), train=('dev',)), 'validation and in test'),
    ],
)
def test_a_leak_is_refused_by_name(protocol, sides):
    leaky = corpus(train=['Ann', 'Bob'], dev=['Cyd'], test=['Bob', 'Dan'])
    name = "['Bob', 'Dan']" if 'validation and in test' in sides else "['Bob']"
    with pytest.raises(ValueError, match=re.escape(f'the groups {name} stand in {sides}')):
        split(leaky, protocol)
    assert groups(split(leaky, Protocol(test=('test',), train=('dev',))))[0] == 'Cyd', (
        'a part unused is no leak'
    )


@pytest.mark.parametrize('field', ['test', 'validation', 'train'])
def test_an_unknown_part_is_refused_by_name(field):
    fields = {'test': ('fold0',), field: ('fold0', 'fold9')}
    with pytest.raises(ValueError, match=rf'no part fold9 \({field}\); found: fold0, fold1, fold2'):
        split(FOLDS, Protocol(**fields))


@pytest.mark.parametrize(
    ('protocol', 'message'),
    [
        (Protocol(test=('fold0', 'fold1', 'fold2')), 'nothing is left to train on'),
        (Protocol(test=('fold2',), held_out=4), 'cannot hold out 4 of 4 groups'),
        (Protocol(test=('fold2',), held_out=-1), 'held_out: found -1'),
    ],
)
def test_what_cannot_be_split(protocol, message):
    with pytest.raises(ValueError, match=message):
        split(FOLDS, protocol)


def spoken(*rows):
    """A corpus of (group, part, speaker, number) items."""
    return Corpus(SPEC, tuple(
        Item(f'{group}-{k}', group, part, {'audio': np.full((2, 1), number, np.float32)}, {},
             attributes={'speaker': speaker})
        for k, (group, part, speaker, number) in enumerate(rows)))


def test_a_side_knows_who_is_on_it():
    splits = split(spoken(('d1', 'train', 'Ann', 1), ('d2', 'test', 'Bob', 2), ('d2', 'test', 'Ann', 3)), Protocol())
    assert (splits.train.ids, splits.train.groups, splits.train.speakers) == (['d1-0'], {'d1'}, {'Ann'})
    assert (splits.test.ids, splits.test.groups, splits.test.speakers) == (['d2-1', 'd2-2'], {'d2'}, {'Ann', 'Bob'})
    assert len(splits.test) == 2


def test_speakers_are_kept_apart_where_the_protocol_says_so():
    """Dialogues of the same people may stand on two sides, unless speakers are meant to be new."""
    corpus = spoken(('d1', 'train', 'Ann', 1), ('d2', 'test', 'Ann', 2))
    assert split(corpus, Protocol()).train.speakers == {'Ann'}
    with pytest.raises(ValueError, match=r"the speakers \['Ann'\] stand in train and in test"):
        split(corpus, Protocol(disjoint='speakers'))


def test_a_copy_of_an_item_may_not_cross():
    corpus = spoken(('d1', 'train', 'Ann', 1), ('d1', 'train', 'Ann', 1), ('d2', 'test', 'Bob', 1))
    with pytest.raises(ValueError, match=r'd1-[01] in train and d2-2 in test hold the same numbers'):
        split(corpus, Protocol())
    dropped = split(corpus._replace(items=(*corpus.items, *spoken(('d3', 'train', 'Cyd', 9)).items)),
                    Protocol(copies='drop'))
    assert dropped.train.ids == ['d3-0'] and dropped.test.ids == ['d2-2'], 'the test side stays whole'
    apart = spoken(('d1', 'train', 'Ann', 1), ('d1', 'train', 'Ann', 1), ('d2', 'test', 'Bob', 2))
    assert len(split(apart, Protocol()).train) == 2, 'copies on one side are no leak'


def test_the_test_side_is_sealed(tmp_path):
    """It cannot be looked into, it opens for a choice that is written down, and it opens once."""
    choice = tmp_path / 'selection.json'
    test = split(FOLDS, Protocol(test=('fold0',))).test
    assert not hasattr(test, 'items')
    with pytest.raises(ValueError, match=r'sealed until the choice .*selection\.json is not there'):
        test.open(choice)
    choice.write_text('{}')
    assert {item.group for item in test.open(choice).items} == set('ab')
    with pytest.raises(ValueError, match='opened before'):
        test.open(choice)


def test_groups_can_judge_and_be_counted_as_folds():
    assert folds(FOLDS, 'parts') == ['fold0', 'fold1', 'fold2'] and folds(FOLDS, 'groups') == list('abcdefg')
    assert groups(split(FOLDS, Protocol(test=('c',), held_out=1)))[2] == 'c'

"""Items: who speaks them, and turns of dialogues as utterances."""

import numpy as np
import pytest

from jmer.data.corpus import as_utterances, speakers_of, validate
from jmer.data.synthetic import corpus


def test_turns_as_utterances_lose_nothing_but_their_context():
    dialogues = corpus(dialogues=(3, 2, 2), layout='dialogue')
    turns = as_utterances(dialogues)
    validate(turns)
    assert turns.spec.layout == 'utterance'
    assert [item.id for item in turns.items] == [name for item in dialogues.items for name in item.turns]
    first, = (item for item in dialogues.items[:1])
    for k, turn in enumerate(turns.items[:len(first.turns)]):
        assert (turn.group, turn.part, turn.speakers) == (first.group, first.part, None)
        assert turn.labels['emotion'] == first.labels['emotion'][k]
        assert set(turn.streams) == {name for name in first.streams if first.masks[name][k]}
        for name, x in turn.streams.items():
            np.testing.assert_array_equal(x, first.streams[name][k:k + 1])


def test_only_dialogues_have_turns():
    with pytest.raises(ValueError, match='found the layout utterance, expected dialogues'):
        as_utterances(corpus(dialogues=(1, 1, 1)))


def test_speakers_by_name_or_group():
    item = corpus(dialogues=(1, 1, 1), layout='dialogue').items[0]
    assert speakers_of(item) == [item.group] * len(item.turns)
    named = item._replace(attributes={'speakers': ' | '.join(f'P{k}' for k in range(5))})
    assert speakers_of(named) == [f'P{k}' for k in item.speakers]
    assert speakers_of(item._replace(speakers=None, attributes={'speaker': 'Ann'})) == ['Ann']

"""What conversations bring along: empty dialogues, crowds, wide windows, turns without label or without a modality."""

from functools import cache

import jax
import numpy as np
import pytest

import jmer
from jmer import losses, metrics, zoo
from jmer.train.evaluate import predict
from jmer.types import Batch, Stream
from tests import batches
from tests.test_models import CAUSAL, model_of, variables_of

MODELS = zoo.list_models('dialogue')
SPEAKERS = [name for name in MODELS if hasattr(zoo.module(name).Model, 'speakers')]
WINDOWS = [name for name in MODELS if hasattr(zoo.module(name).Model, 'past')]


@cache
def judged(name):
    """The logits of a batch, and the weighted sum and weight of every loss term."""
    model, own = model_of(name), getattr(zoo.module(name), 'loss', None)

    def run(variables, batch):
        out = model.apply(variables, batch, train=False)
        terms = own(model, out, batch) if own else {
            'label': losses.cross_entropy(out.logits, batch.labels['emotion'])}
        return out.logits, {key: ((term.value * term.weight).sum(), term.weight.sum()) for key, term in terms.items()}

    compiled = jax.jit(run)
    return lambda batch: jax.tree.map(np.asarray, compiled(variables_of(name), batch))


@cache
def dialogues() -> Batch:
    return batches.dialogues()


def same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), found, expected)


@pytest.mark.parametrize('name', MODELS)
def test_a_dialogue_without_turns(name):
    """It has no say in the others, in the middle of a batch as well as behind it, nor in the loss."""
    batch = dialogues()
    there = np.array([True, False, True])[:, None]
    streams = {n: Stream(np.where(there[..., None], s.x, 1e3), s.mask & there) for n, s in batch.streams.items()}
    labels = {n: label._replace(mask=label.mask & there) for n, label in batch.labels.items()}
    empty = batch._replace(streams=streams, present=batch.present & there, labels=labels)
    order = np.array([0, 2, 1])
    (logits, terms), (moved, others) = judged(name)(empty), judged(name)(batches.rows(empty, order))
    assert np.isfinite(logits).all()
    same(terms, others)
    same(moved[:2], logits[order][:2])
    same(logits[[0, 2]], judged(name)(batch)[0][[0, 2]])


@pytest.mark.parametrize('name', MODELS)
def test_turns_without_a_label_are_context(name):
    """What would stand in their label changes neither loss nor metrics; what is said in them changes the others."""
    batch = dialogues()
    label = batch.labels['emotion']
    known = np.arange(6)[None] % 3 > 0
    hidden = batch._replace(labels={'emotion': label._replace(mask=label.mask & known)})
    garbage = hidden.labels['emotion']._replace(value=np.where(known, label.value, 2 - label.value).astype(np.int32))
    (logits, terms), (_, others) = judged(name)(hidden), judged(name)(hidden._replace(labels={'emotion': garbage}))
    same(terms, others)
    assert terms['label'][1] < judged(name)(batch)[1]['label'][1], 'they count in the loss'
    sums = metrics.for_target('class', batches.CLASSES).sums
    same(sums(logits, garbage), sums(logits, hidden.labels['emotion']))
    other = {n: Stream(np.where(known[..., None], s.x, -s.x), s.mask) for n, s in batch.streams.items()}
    moved = np.abs(judged(name)(batch._replace(streams=other))[0] - logits)
    assert moved[np.broadcast_to(known, moved.shape[:2])].max() > 1e-5, 'they are no context'


@pytest.mark.parametrize('name', MODELS)
def test_a_modality_that_is_missing_in_single_turns(name):
    """What stands in its place leaves no trace, and the turn is still scored by what is left."""
    batch = dialogues()
    gaps = {'text': np.array([2]), 'audio': np.array([2, 3]), 'vision': np.array([0, 5])}

    def with_gaps(garbage):
        streams = dict(batch.streams)
        for stream, turns in gaps.items():
            gone = np.isin(np.arange(6), turns)[None, :]
            x, mask = streams[stream]
            streams[stream] = Stream(np.where(gone[..., None], np.float32(garbage), x), mask & ~gone)
        return batch._replace(streams=streams)

    found, other = judged(name)(with_gaps(1e3)), judged(name)(with_gaps(-7.0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    jax.tree.map(np.testing.assert_array_equal, found, other)
    assert np.abs(found[0] - judged(name)(batch)[0]).max() > 1e-4


@pytest.mark.parametrize('name', SPEAKERS)
def test_more_speakers_than_a_model_has_states_for(name):
    """Under jit they share the last state; where the numbers can be seen, they are refused."""
    batch, known = dialogues(), model_of(name).speakers
    crowd = batch._replace(speakers=np.array([[0, 1, 2, 3, 2, 4]] * 3, np.int32))
    shared = batch._replace(speakers=np.minimum(crowd.speakers, known - 1))
    same(judged(name)(crowd), judged(name)(shared))
    with pytest.raises(ValueError, match=f'^{name}: field speakers: found a dialogue of 5 speakers, expected at most '
                                         f'{known}$'):
        predict(model_of(name), variables_of(name), crowd)


@pytest.mark.parametrize('name', sorted(set(MODELS) - set(SPEAKERS)))
def test_any_number_of_speakers(name):
    """Where no field says how many there may be, everybody is somebody."""
    crowd = dialogues()._replace(speakers=np.array([[0, 1, 2, 3, 2, 4]] * 3, np.int32))
    assert np.isfinite(judged(name)(crowd)[0]).all()
    zoo.check_speakers(model_of(name), 5)


@pytest.mark.parametrize('name', WINDOWS)
def test_a_window_larger_than_the_dialogue(name):
    """It is the whole dialogue, in which a turn reads all others."""
    model, batch, variables = model_of(name), dialogues(), variables_of(name)

    def run(reach):
        wide = model.clone(past=reach, future=reach)
        return jax.jit(lambda v, b: wide.apply(v, b, train=False).logits)(variables, batch)

    whole = run(-1)
    same(run(50), whole)
    if 0 <= model.past < 5:
        assert np.abs(whole - judged(name)(batch)[0]).max() > 1e-5, 'its own window is no smaller'


def turn_of(batch: Batch, k: int) -> Batch:
    return jax.tree.map(lambda x: x[:, k:k + 1], batch)


@pytest.mark.parametrize('name', ['ctnet', 'dialoguegcn', 'sacl_lstm', 'sdt'])
def test_turn_by_turn_is_the_whole_pass(name):
    """Of a causal model; more turns are allowed for than there are."""
    model, batch = model_of(name).clone(causal=True), dialogues()
    variables = jax.jit(lambda key: model.init(key, batch, train=False))(jax.random.key(0))
    step, history = jmer.online(model, variables, turns=8), None
    for k in range(6):
        history, scores = step(history, turn_of(batch, k))
        whole = predict(model, variables, jax.tree.map(lambda x, k=k: x[:, :k + 1], batch)).logits if k == 2 else None
        if whole is not None:
            same(scores, whole[:, k])
    same(scores, jax.jit(lambda v, b: predict(model, v, b).logits)(variables, batch)[:, -1])
    assert history.said == 6


@pytest.fixture(scope='module')
def going_on():
    """A step, and a history of two turns of which one has been said."""
    model = model_of('sacl_lstm').clone(causal=True)
    variables = jax.jit(lambda key: model.init(key, dialogues(), train=False))(jax.random.key(0))
    step = jmer.online(model, variables, turns=2)
    return step, step(None, turn_of(dialogues(), 0))[0]


def test_a_turn_that_does_not_fit_those_before(going_on):
    step, history = going_on
    turn = turn_of(dialogues(), 1)
    full, _ = step(history, turn)
    with pytest.raises(ValueError, match=r'^turns: found turn 3, expected at most 2$'):
        step(full, turn)
    with pytest.raises(ValueError, match=r"^turn: found .*'text': \(2, 5\).* expected as before .*'text': \(3, 5\)"):
        step(history, batches.rows(turn, [0, 1]))
    with pytest.raises(ValueError, match=r'^sacl_lstm: field speakers: found a dialogue of 3 speakers'):
        step(history, turn._replace(speakers=np.full((3, 1), 2, np.int32)))
    with pytest.raises(ValueError, match=r'^turn: found present of shape \(3, 6\), expected one turn'):
        step(None, dialogues())


def test_turns_that_read_those_to_come_are_no_predictions_online():
    for name in CAUSAL:
        with pytest.raises(ValueError, match=f'^{name}: field causal: found False'):
            jmer.online(model_of(name), {})
    with pytest.raises(ValueError, match=r'^gmu: found no field causal, expected .* sacl_lstm, '):
        jmer.online(model_of('gmu'), {})

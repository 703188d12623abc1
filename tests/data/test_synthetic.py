"""The toy corpus and its ceilings: the posterior against enumeration, and against what it predicts."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from jmer.data import bayes, synthetic
from jmer.data.corpus import validate
from jmer.data.synthetic import Channel, Law

LAW = Law()
NAMES = ('text', 'audio', 'vision')
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(NAMES, n)]
# Small enough to be enumerated path by path.
TINY = Law(
    emotions=('calm', 'glad', 'cross'),
    prior=(0.5, 0.3, 0.2),
    valence=(0.0, 0.8, -0.7),
    arousal=(0.0, 0.4, 0.6),
    irony=(1, 2, 1),
    crowd=(0.5, 0.3, 0.2),
    keep=0.3,
    turns=(1, 4),
    seconds=(1.0, 1.6),
    missing=0.2,
    courses=(0.6, 0.4),
    channels=(
        Channel('text', 6, 3.0, valence=0.9, arousal=0.2, identity=0.5, ironic=True),
        Channel('audio', 7, 5.0, valence=0.1, arousal=0.9, identity=0.5, tone=1.0),
    ),
)


@pytest.fixture(scope='module')
def dialogues():
    return synthetic.corpus(layout='dialogue', dialogues=(0, 0, 200)).items


@pytest.fixture(scope='module')
def utterances():
    return synthetic.corpus(dialogues=(0, 0, 200)).items


@pytest.fixture(scope='module')
def table(dialogues):
    return bayes.ceilings(LAW, dialogues)


def labels(items):
    return np.concatenate([np.atleast_1d(item.labels['emotion']) for item in items])


def stacked(posteriors):
    return np.concatenate([np.atleast_2d(p) for p in posteriors])


def flat(item):
    """Everything in an item, as bytes and text."""
    arrays = {**item.streams, **{f'mask {k}': v for k, v in item.masks.items()}, **item.labels}
    arrays['speakers'] = item.speakers
    found = {k: None if v is None else np.asarray(v).tobytes() for k, v in arrays.items()}
    return item.id, item.group, item.part, found, item.turns, item.attributes


# The drawing


@pytest.mark.parametrize('layout', ['utterance', 'dialogue'])
def test_the_corpus_fits_its_spec(layout):
    corpus = synthetic.corpus(layout=layout, dialogues=(20, 5, 10))
    validate(corpus)
    assert corpus.spec.name == {'utterance': 'toy', 'dialogue': 'toy-dialogue'}[layout]
    assert [item.id for item in corpus.items] == sorted(item.id for item in corpus.items)
    groups = {part: {i.group for i in corpus.items if i.part == part} for part in synthetic.PARTS}
    assert [len(groups[part]) for part in synthetic.PARTS] == [20, 5, 10]
    assert len(set.union(*groups.values())) == 35
    assert all(len(item.streams) > 0 for item in corpus.items)


@pytest.mark.parametrize('layout', ['utterance', 'dialogue'])
def test_the_same_arguments_give_the_same_bytes(layout):
    small = dict(layout=layout, dialogues=(3, 2, 2))
    once, again = synthetic.corpus(seed=5, **small), synthetic.corpus(seed=5, **small)
    assert once.spec == again.spec
    assert [flat(i) for i in once.items] == [flat(i) for i in again.items]
    other = synthetic.corpus(seed=6, **small)
    assert not {str(flat(i)[3]) for i in once.items} & {str(flat(i)[3]) for i in other.items}


def test_more_training_data_leave_the_test_part_alone():
    few, many = (synthetic.corpus(dialogues=(n, 1, 3)).items for n in (1, 4))
    assert [flat(i) for i in few if i.part == 'test'] == [flat(i) for i in many if i.part == 'test']


def test_missing_more_changes_nothing_else():
    full, sparse = (
        synthetic.corpus(dataclasses.replace(LAW, missing=m), dialogues=(0, 0, 5)).items for m in (0.0, 0.5)
    )
    assert sum(len(i.streams) for i in sparse) < sum(len(i.streams) for i in full) == 3 * len(full)
    for whole, part in zip(full, sparse, strict=True):
        assert all(np.array_equal(x, whole.streams[name]) for name, x in part.streams.items())


def test_both_layouts_hold_the_same_turns(utterances, dialogues):
    assert [i.id for i in utterances] == [turn for d in dialogues for turn in d.turns]
    assert np.array_equal(labels(utterances), labels(dialogues))
    turns = iter(utterances)
    for dialogue in dialogues[:10]:
        for u, turn in zip(range(len(dialogue.turns)), turns, strict=False):
            assert {n for n in NAMES if dialogue.masks[n][u]} == set(turn.streams)
            assert turn.attributes['speaker'].endswith(f'-{dialogue.speakers[u]}')
            assert (turn.attributes['sarcastic'] == 'yes') == (dialogue.attributes['sarcastic'][u] == '1')
            for name, x in turn.streams.items():
                assert np.allclose(dialogue.streams[name][u], synthetic.summary(LAW, x), atol=1e-6)


def test_this_version_draws_this():
    """Published ceilings hold for one drawing: whoever changes it raises VERSION and docs/toy.md."""
    items = synthetic.corpus(layout='dialogue', dialogues=(0, 0, 2)).items
    assert synthetic.VERSION == '1'
    assert ''.join(map(str, labels(items))) == '4134300000040055155555355353'
    assert ''.join(map(str, np.concatenate([i.speakers for i in items]))) == '0110010101011001212111012012'
    assert items[0].streams['audio'][0, :3] == pytest.approx([-0.08739, -0.50612, 0.26311], abs=1e-4)


def test_frequencies_are_those_of_the_law():
    law = dataclasses.replace(LAW, inertia=0.0, contagion=0.0)
    items = synthetic.corpus(law, dialogues=(0, 0, 300)).items
    n = len(items)

    def close(found, probability):
        return abs(found - probability) < 4 * np.sqrt(probability * (1 - probability) / n)

    for code, probability in enumerate(law.prior):
        assert close(np.mean(labels(items) == code), probability)
    assert close(np.mean([i.attributes['sarcastic'] == 'yes' for i in items]), law.sarcasm)
    # One stream always remains: of the all-missing turns a third gets this one back.
    absent = law.missing - law.missing**3 / 3
    for name in NAMES:
        assert close(np.mean([name not in i.streams for i in items]), absent)
        assert close(np.mean([name in i.attributes['noisy'].split() for i in items]), law.noisy)


def test_every_turn_has_the_prior_as_its_marginal():
    """Exactly, whatever ties the own to the heard emotion: both have the prior as their marginal."""
    prior = np.array(LAW.prior)
    moves = synthetic.transition(LAW)
    assert np.allclose(moves.sum(-1), 1, atol=1e-12)
    assert (moves > 0).all()
    for tie in (0.0, 0.7):
        both = tie * np.diag(prior) + (1 - tie) * np.outer(prior, prior)
        assert np.allclose(np.einsum('oh,ohn->n', both, moves), prior, atol=1e-12)


def test_classes_are_as_far_apart_as_the_law_says():
    for channel in LAW.channels:
        shape, sarcastic = synthetic.templates(LAW)[channel.name]
        said = shape[list(LAW.irony)] if channel.ironic else shape
        assert np.allclose(np.square(sarcastic - said).sum((-1, -2)), channel.tone**2, atol=1e-12)
        distance = np.square(shape[:, None] - shape[None]).sum((-1, -2))
        v, a = np.subtract.outer(LAW.valence, LAW.valence), np.subtract.outer(LAW.arousal, LAW.arousal)
        expected = (channel.valence * v) ** 2 + (channel.arousal * a) ** 2
        expected += 2 * channel.identity**2 * (1 - np.eye(6))
        assert np.allclose(distance, expected, atol=1e-12)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('prior', (0.5, 0.5)),
        ('prior', (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        ('crowd', (0.5, 0.6)),
        ('irony', (0, 1, 2, 3, 4, 6)),
        ('inertia', 0.8),
        ('sarcasm', 1.0),
        ('noise', 0.0),
        ('turns', (8, 4)),
        ('seconds', (0.5, 2.0)),
        ('channels', (Channel('text', 8, 2.5, valence=1.0, arousal=1.0, identity=1.0),)),
        ('channels', ()),
    ],
)
def test_an_impossible_law_is_refused(field, value):
    with pytest.raises(ValueError, match=r'Law: .*found .*expected'):
        dataclasses.replace(LAW, **{field: value})


def test_impossible_arguments_are_refused():
    for wrong, message in (
        ({'seed': -1}, 'seed: found -1'),
        ({'dialogues': (1, -1, 1)}, 'dialogues: found'),
    ):
        with pytest.raises(ValueError, match=message):
            synthetic.corpus(**wrong)


# The posterior, against enumeration


def dense_log_density(law, template, x):
    """log N(x; template over time, noise + offset), as one Gaussian of all t * d numbers."""
    steps, width = x.shape
    time = (np.arange(steps) + 0.5) / steps
    mean = template[0] + sum(
        np.sqrt(2) * np.cos(np.pi * j * time)[:, None] * template[j] for j in range(1, len(template))
    )
    parts = []
    for scale, weight in ((1.0, 1 - law.noisy), (law.clamour, law.noisy)):
        block = (scale * law.noise) ** 2 * np.eye(steps) + law.offset**2 * np.ones((steps, steps))
        covariance = np.kron(block, np.eye(width))
        residual = (x - mean).ravel()
        _, volume = np.linalg.slogdet(2 * np.pi * covariance)
        parts.append(np.log(weight) - 0.5 * (volume + residual @ np.linalg.solve(covariance, residual)))
    return np.logaddexp.reduce(parts)


def test_the_likelihood_is_the_density_of_the_frames():
    shapes = synthetic.templates(TINY)
    item = next(i for i in synthetic.corpus(TINY).items if len(i.streams) == 2)
    for name, x in item.streams.items():
        found = bayes.log_likelihood(TINY, shapes[name], synthetic.summary(TINY, x)[None])[0]
        for sarcastic, emotion in itertools.product(range(2), range(3)):
            dense = dense_log_density(TINY, shapes[name][sarcastic, emotion], x.astype(np.float64))
            assert found[sarcastic, emotion] == pytest.approx(dense, abs=1e-9)


def turn_probabilities(law, item):
    """p(streams of a turn | emotion), [u c], up to a factor that no emotion touches."""
    shapes = synthetic.templates(law)
    logs = np.zeros((len(item.turns), 2, 3))
    for name, x in item.streams.items():
        found = bayes.log_likelihood(law, shapes[name], x)
        found -= found.max((1, 2), keepdims=True)
        logs[item.masks[name]] += found[item.masks[name]]
    return np.einsum('use,s->ue', np.exp(logs), [1 - law.sarcasm, law.sarcasm])


def conversations(law, turns):
    """Who may speak in so many turns, named in order of appearance, and how likely that is."""
    found = {}
    for extra, share in enumerate(law.crowd):
        crowd = 2 + extra
        for people in itertools.product(range(crowd), repeat=turns):
            probability = share / crowd  # any of them begins
            for u in range(1, turns):
                keep = law.keep if u > 1 else 0.0
                probability *= keep if people[u] == people[u - 1] else (1 - keep) / (crowd - 1)
            order = list(dict.fromkeys(people))
            named = tuple(order.index(p) for p in people)
            found[named] = found.get(named, 0.0) + probability
    assert sum(found.values()) == pytest.approx(1)
    return {named: probability for named, probability in found.items() if probability > 0}


def feelings(law, answers, speakers, emotions):
    """p(emotions | speakers), said in words: one's own last turn, the last turn of anybody else."""
    prior = law.prior
    probability = prior[emotions[0]]
    for u in range(1, len(speakers)):
        before = range(u - 1, -1, -1)
        own = next((emotions[v] for v in before if speakers[v] == speakers[u]), None)
        heard = next((emotions[v] for v in before if speakers[v] != speakers[u]), None)
        e = emotions[u]
        kept = prior[e] if own is None else float(own == e)
        answer = prior[e] if heard is None else answers[heard, e]
        fresh = 1 - law.inertia - law.contagion
        probability *= law.inertia * kept + law.contagion * answer + fresh * prior[e]
    return probability


def enumerate_posterior(law, speakers, evidence):
    """[u c], by the sum over all paths; speakers None: over all conversations as well."""
    turns = len(evidence)
    talks = conversations(law, turns) if speakers is None else {tuple(speakers.tolist()): 1.0}
    answers = synthetic.answers(law)
    total = np.zeros_like(evidence)
    for people, share in talks.items():
        for emotions in itertools.product(range(3), repeat=turns):
            seen = np.prod(evidence[range(turns), emotions])
            total[range(turns), emotions] += share * feelings(law, answers, people, emotions) * seen
    return total / total.sum(-1, keepdims=True)


@pytest.mark.parametrize('known', [True, False], ids=['speakers', 'no-speakers'])
def test_forward_backward_is_the_sum_over_all_paths(known):
    corpus = synthetic.corpus(TINY, seed=3, layout='dialogue', dialogues=(0, 0, 60))
    kinds = {(len(i.turns), len(set(i.speakers.tolist()))): i for i in corpus.items}
    assert {(1, 1), (2, 2), (3, 2), (3, 3), (4, 2), (4, 3), (4, 4)} <= set(kinds)
    chosen = tuple(kinds.values())
    online = bayes.posterior(TINY, chosen, context='online', speakers=known)
    offline = bayes.posterior(TINY, chosen, context='offline', speakers=known)
    for item, now, later in zip(chosen, online, offline, strict=True):
        evidence = turn_probabilities(TINY, item)
        for end in range(1, len(evidence) + 1):
            found = enumerate_posterior(TINY, item.speakers[:end] if known else None, evidence[:end])
            assert np.abs(found[-1] - now[end - 1]).max() < 1e-10
        assert np.abs(found - later).max() < 1e-10


def test_naming_the_classes_otherwise_names_the_posterior_otherwise():
    rng = np.random.default_rng(0)
    order = rng.permutation(6)
    evidence = 3 * rng.standard_normal((4, 7, 6))
    moves, prior = synthetic.transition(LAW), np.array(LAW.prior)
    ranks = np.log(rng.dirichlet(np.ones(3), size=(4, 7)))
    found = bayes.forward_backward(evidence, prior, moves, ranks)
    moved = bayes.forward_backward(
        evidence[..., order], prior[order], moves[np.ix_(order, order, order)], ranks
    )
    for a, b in zip(found, moved, strict=True):
        assert np.allclose(a[..., order], b, atol=1e-12)
    assert np.allclose(np.logaddexp.reduce(found[1], axis=-1), np.logaddexp.reduce(found[1][:, :1], axis=-1))


def test_overwhelming_evidence_neither_overflows_nor_vanishes():
    evidence = np.zeros((1, 12, 6))
    evidence[0, ::2, 0], evidence[0, 1::2, 3] = 5e4, 5e4
    ranks = np.where(np.arange(4) == 1, 0.0, -np.inf) + np.zeros((1, 12, 1))
    online, offline = bayes.forward_backward(
        evidence, np.array(LAW.prior), synthetic.transition(LAW), ranks
    )
    assert np.isfinite(online).all() and np.isfinite(offline).all()
    assert offline.argmax(-1)[0].tolist() == [0, 3] * 6


# The posterior, against what it says of itself


@pytest.mark.parametrize('context', bayes.CONTEXTS)
@pytest.mark.parametrize('streams', SUBSETS, ids='+'.join)
def test_the_posterior_is_calibrated(dialogues, streams, context):
    """Of what it calls 70 % likely, 70 % come true: in all, for each class, and for each confidence."""
    found = stacked(bayes.posterior(LAW, dialogues, streams, context))
    truth = np.eye(6)[labels(dialogues)]
    groups = np.repeat([d.id for d in dialogues], [len(d.turns) for d in dialogues])

    def agree(selected):
        gap = np.where(selected, truth - found, 0.0).reshape(len(truth), -1).sum(-1)
        _, index = np.unique(groups, return_inverse=True)
        error = np.sqrt(np.square(np.bincount(index, gap)).sum())
        return abs(gap.sum()) < 4 * error

    largest = found.argmax(-1)[:, None] == np.arange(6)
    assert agree(largest)
    assert all(agree(np.arange(6) == code) for code in range(6))
    bins = np.digitize(found, [0.02, 0.1, 0.3, 0.6, 0.9])
    assert all(agree(bins == b) for b in range(6))


def test_without_speakers_it_is_calibrated_too(dialogues):
    result = bayes.ceiling(LAW, dialogues[:60], context='offline', speakers=False)
    assert abs(result['expected'] - result['accuracy']) < 4 * result['accuracy_error']


def test_more_to_see_is_never_worse(dialogues, table):
    """Expected accuracies on one test part: more streams, more context, and knowing who speaks."""
    assert list(table) == ['+'.join(s) for s in SUBSETS]
    for row in table.values():
        assert row['none']['expected'] < row['online']['expected'] < row['offline']['expected']
    for few, many in itertools.product(SUBSETS, SUBSETS):
        if set(few) < set(many):
            for context in bayes.CONTEXTS:
                assert table['+'.join(few)][context]['expected'] < table['+'.join(many)][context]['expected']
    blind = bayes.ceiling(LAW, dialogues, context='offline', speakers=False)['expected']
    best = table['text+audio+vision']
    assert best['none']['expected'] < blind < best['offline']['expected']


def test_the_default_is_as_hard_as_announced(dialogues):
    for name in NAMES:
        assert 0.45 < bayes.ceiling(LAW, dialogues, [name])['expected'] < 0.65
    assert 0.75 < bayes.ceiling(LAW, dialogues)['expected'] < 0.80
    assert 0.83 < bayes.ceiling(LAW, dialogues, context='offline')['expected'] < 0.90


def test_only_fusion_hears_sarcasm(dialogues):
    """Unimodal verdicts, however good, do not add up to the joint one where a turn is sarcastic."""
    sarcastic = np.array([c == '1' for d in dialogues for c in d.attributes['sarcastic']])
    right = {
        fusion: stacked(bayes.posterior(LAW, dialogues, fusion=fusion)).argmax(-1) == labels(dialogues)
        for fusion in ('joint', 'late')
    }
    assert right['joint'][sarcastic].mean() > right['late'][sarcastic].mean() + 0.05
    plain = dataclasses.replace(LAW, sarcasm=0.0)
    same = [bayes.posterior(plain, dialogues[:5], fusion=fusion) for fusion in ('joint', 'late')]
    assert all(np.allclose(a, b, atol=1e-12) for a, b in zip(*same, strict=True))


@pytest.mark.parametrize('context', bayes.CONTEXTS)
def test_a_dropped_stream_is_integrated_over(dialogues, context):
    """Left out by name, absent from the item, or masked over anything: one and the same posterior."""
    few = dialogues[:8]
    expected = stacked(bayes.posterior(LAW, few, ['text', 'vision'], context))
    absent = [d._replace(streams={n: x for n, x in d.streams.items() if n != 'audio'}) for d in few]
    masked = [
        d._replace(
            streams={**d.streams, 'audio': np.full_like(d.streams['audio'], 7e8)},
            masks={**d.masks, 'audio': np.zeros(len(d.turns), bool)},
        )
        for d in few
    ]
    for items in (absent, masked):
        assert np.array_equal(stacked(bayes.posterior(LAW, items, context=context)), expected)


def test_integrating_a_stream_over_is_what_dropping_it_does():
    """The mean of p(e | text, audio) over texts drawn given the audio is p(e | audio)."""
    law = dataclasses.replace(TINY, turns=(1, 1), missing=0.0)
    rng = np.random.default_rng(1)
    item = synthetic.corpus(law, dialogues=(0, 0, 1)).items[0]
    expected = bayes.posterior(law, [item], ['audio'])[0]
    shapes = synthetic.templates(law)
    log = bayes.log_likelihood(law, shapes['audio'], synthetic.summary(law, item.streams['audio'])[None])[0]
    joint = np.exp(log - log.max()) * np.array(law.prior) * [[1 - law.sarcasm], [law.sarcasm]]
    draws = rng.choice(6, size=3000, p=joint.ravel() / joint.sum())
    time = (np.arange(4) + 0.5) / 4
    basis = np.stack([np.ones(4), np.sqrt(2) * np.cos(np.pi * time)], axis=1)
    items = []
    for draw in draws:
        scale = law.noise * (law.clamour if rng.random() < law.noisy else 1.0)
        text = basis @ shapes['text'][divmod(draw, 3)] + law.offset * rng.standard_normal(6)
        text = text + scale * rng.standard_normal((4, 6))
        items.append(item._replace(streams={**item.streams, 'text': text.astype(np.float32)}))
    found = stacked(bayes.posterior(law, items))
    error = found.std(0) / np.sqrt(len(found))
    assert (error < 0.01).all()
    assert (np.abs(found.mean(0) - expected) < 4 * error).all()


def test_a_turn_with_nothing_has_the_prior():
    item = synthetic.corpus(dialogues=(0, 0, 1)).items[0]._replace(streams={})
    assert np.allclose(bayes.posterior(LAW, [item])[0], LAW.prior, atol=1e-12)


def test_both_layouts_have_one_ceiling(utterances, dialogues):
    by_frames, by_vectors = (stacked(bayes.posterior(LAW, items)) for items in (utterances, dialogues))
    assert np.abs(by_frames - by_vectors).max() < 1e-4  # the vectors were rounded to float32


def test_the_figures_of_a_ceiling(dialogues):
    sklearn_metrics = pytest.importorskip('sklearn.metrics')
    found = stacked(bayes.posterior(LAW, dialogues, ['text'], 'online'))
    truth, decided = labels(dialogues), found.argmax(-1)
    result = bayes.ceiling(LAW, dialogues, ['text'], 'online')
    assert result['n'] == len(truth)
    assert result['expected'] == pytest.approx(found.max(-1).mean())
    assert result['accuracy'] == pytest.approx((decided == truth).mean())
    assert result['uar'] == pytest.approx(sklearn_metrics.balanced_accuracy_score(truth, decided))
    assert result['weighted_f1'] == pytest.approx(
        sklearn_metrics.f1_score(truth, decided, average='weighted')
    )
    assert result['best_uar'] > result['uar']


def test_regret_is_what_a_worse_posterior_loses(dialogues):
    best = bayes.posterior(LAW, dialogues, context='offline')
    perfect = bayes.regret(LAW, dialogues, best, context='offline')
    assert perfect['regret'] == 0.0 and perfect['divergence'] == pytest.approx(0.0, abs=1e-12)
    alone = bayes.posterior(LAW, dialogues)
    short = bayes.regret(LAW, dialogues, alone, context='offline')
    ceilings = [bayes.ceiling(LAW, dialogues, context=c) for c in ('none', 'offline')]
    # Exact by definition against its own ceiling, and an estimate of the difference of two.
    assert short['expected'] + short['regret'] == pytest.approx(ceilings[1]['expected'])
    gap = ceilings[1]['expected'] - ceilings[0]['expected']
    assert abs(short['regret'] - gap) < 4 * (short['regret_error'] + ceilings[0]['expected_error'])
    assert short['divergence'] > 0.1
    hits = np.mean(stacked(alone).argmax(-1) == labels(dialogues))
    assert abs(hits - short['expected']) < 4 * ceilings[0]['accuracy_error']
    certain = [np.eye(6)[p.argmax(-1)] for p in best]
    assert bayes.regret(LAW, dialogues, certain, context='offline')['divergence'] == np.inf
    with pytest.raises(ValueError, match='predicted: expected'):
        bayes.regret(LAW, dialogues, best[1:], context='offline')


def test_unlabelled_turns_do_not_count(dialogues):
    first = dialogues[0]
    hidden = first.labels['emotion'].copy()
    hidden[1:] = -1
    item = first._replace(labels={'emotion': hidden})
    result = bayes.ceiling(LAW, [item], context='offline')
    whole = bayes.posterior(LAW, [first], context='offline')[0]
    assert result['n'] == 1
    assert result['expected'] == pytest.approx(whole[0].max())


def test_what_cannot_be_judged_is_refused(utterances, dialogues):
    with pytest.raises(ValueError, match='needs dialogues, found an utterance'):
        bayes.posterior(LAW, utterances[:1], context='offline')
    with pytest.raises(ValueError, match=r"streams: found \['smell'\]"):
        bayes.posterior(LAW, dialogues[:1], ['smell'])
    item = next(i for i in utterances if 'text' in i.streams)
    with pytest.raises(ValueError, match='stream text: found shape'):
        bayes.posterior(LAW, [item._replace(streams={'text': item.streams['text'][:, :3]})])
    with pytest.raises(ValueError, match='mask of text: found single steps missing'):
        mask = np.arange(len(item.streams['text'])) > 0
        bayes.posterior(LAW, [item._replace(masks={'text': mask})])
    with pytest.raises(ValueError, match='found 2 steps'):
        bayes.posterior(LAW, [item._replace(streams={'text': item.streams['text'][:2]})])


def test_the_page_shows_these_ceilings(table):
    """docs/toy.md is cited: its table of the default test part is what this code computes."""
    page = (Path(__file__).parents[2] / 'docs' / 'toy.md').read_text()
    rows = {
        cells[0].strip('`'): [float(c) for c in cells[1:4]]
        for line in page.split('<!-- default test part -->')[1].split('<!-- end -->')[0].splitlines()
        for cells in [[c.strip() for c in line.strip('|').split('|')]]
        if cells[0].startswith('`')
    }
    assert set(rows) == set(table)
    for name, row in table.items():
        found = [100 * row[context]['expected'] for context in bayes.CONTEXTS]
        assert rows[name] == pytest.approx(found, abs=0.051)

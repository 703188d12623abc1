"""The exact posterior of the toy corpus, and with it the ceiling of every model that is trained on it.

No model, whatever its size, can be right more often than one that names the likeliest emotion under
p(emotion | what it is shown). The toy corpus is drawn from a known law, so that posterior is known:
Gaussian mixtures for the streams of a turn, forward-backward over the turns of a dialogue (Rabiner 1989),
in the log domain and without approximation, for every subset of the streams; a stream that is missing or
left out is integrated over.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from jmer.data.corpus import Item
from jmer.data.synthetic import Law, summary, templates, transition

Context = Literal['none', 'online', 'offline']
CONTEXTS: tuple[Context, ...] = ('none', 'online', 'offline')
CHUNK = 128
"""Dialogues at a time: bounds the memory, which is CHUNK x turns x emotions ** speakers numbers."""


def posterior(
    law: Law,
    items: Iterable[Item],
    streams: Sequence[str] | None = None,
    context: Context = 'none',
    speakers: bool = True,
    fusion: Literal['joint', 'late'] = 'joint',
) -> tuple[Float[np.ndarray, '... c'], ...]:
    """p(emotion | streams) of every item: [c] of an utterance, [u c] of a dialogue.

    streams: those that are looked at; None means all of the law's. The others are integrated over.
    context: what else is seen. 'none': the turn alone. 'online': it and the turns before it. 'offline':
        the whole dialogue. An utterance stands alone: it takes 'none' only.
    speakers: whether it is seen who speaks. If not, the turn taking is summed over as well, and so is
        the number of speakers.
    fusion: 'late' multiplies the posteriors of the single streams, as if sarcasm did not tie the text to
        the tone of voice. That is *not* the posterior of the law, but what perfect unimodal models come
        to when their verdicts are added up; what it loses is what there is to gain from fusion proper.
    """
    items = tuple(items)
    names = [channel.name for channel in law.channels]
    wanted = names if streams is None else list(streams)
    if not set(wanted) <= set(names):
        raise ValueError(f'streams: found {wanted}, expected some of {names}')
    if context not in CONTEXTS:
        raise ValueError(f'context: found {context!r}, expected one of {CONTEXTS}')
    if not items:
        return ()
    evidence = _evidence(law, items, wanted, fusion)
    if context == 'none':
        found = [np.log(law.prior) + e for e in evidence]
    else:
        found = _in_context(law, items, evidence, context, speakers)
    return tuple(
        _softmax(f) if item.speakers is not None else _softmax(f)[0]
        for f, item in zip(found, items, strict=True)
    )


def ceiling(
    law: Law,
    items: Iterable[Item],
    streams: Sequence[str] | None = None,
    context: Context = 'none',
    speakers: bool = True,
) -> dict[str, int | float]:
    """How well the Bayes classifier does on these items; the arguments are those of `posterior`.

    expected: its mean probability of being right, which is the mean of the largest posterior. Under the
        law this is the highest accuracy that any model can expect on these very features.
    accuracy, uar, weighted_f1: of its decisions against the labels of these items.
    best_uar: UAR of the decisions that are best for UAR, the largest posterior / prior.
    expected_error, accuracy_error: standard errors of the two as estimates of the law's own ceiling,
        items of one group (a dialogue) counted as one draw.
    n: labelled turns.
    """
    items = tuple(items)
    found = posterior(law, items, streams, context, speakers)
    p = np.concatenate([np.atleast_2d(f) for f in found])
    label = np.concatenate([np.atleast_1d(item.labels['emotion']) for item in items])
    group = np.repeat([item.group for item in items], [len(np.atleast_2d(f)) for f in found])
    p, label, group = p[label >= 0], label[label >= 0], group[label >= 0]
    decided = p.argmax(-1)
    right = (decided == label).astype(np.float64)
    uar, weighted_f1 = _recall_and_f1(label, decided)
    best_uar, _ = _recall_and_f1(label, (p / np.array(law.prior)).argmax(-1))
    return {
        'n': len(label),
        'expected': float(p.max(-1).mean()),
        'expected_error': _standard_error(p.max(-1), group),
        'accuracy': float(right.mean()),
        'accuracy_error': _standard_error(right, group),
        'uar': uar,
        'best_uar': best_uar,
        'weighted_f1': weighted_f1,
    }


def ceilings(
    law: Law, items: Iterable[Item], contexts: Sequence[Context] | None = None, speakers: bool = True
) -> dict[str, dict[str, dict[str, int | float]]]:
    """`ceiling` of every subset of the streams ('text', 'text+audio', ...) in every context.

    contexts: None means all for dialogues and 'none' for utterances.
    """
    items = tuple(items)
    if contexts is None:
        contexts = CONTEXTS if all(item.speakers is not None for item in items) else ('none',)
    names = [channel.name for channel in law.channels]
    return {
        '+'.join(subset): {c: ceiling(law, items, subset, c, speakers) for c in contexts}
        for size in range(1, len(names) + 1)
        for subset in itertools.combinations(names, size)
    }


def regret(
    law: Law,
    items: Iterable[Item],
    predicted: Sequence[Float[np.ndarray, '... c']],
    streams: Sequence[str] | None = None,
    context: Context = 'none',
    speakers: bool = True,
) -> dict[str, int | float]:
    """How far a model is below the ceiling, without the luck of the labels; never negative.

    predicted: the model's probabilities, shaped like those of `posterior`. The other arguments say what
    the model was shown.

    expected: the model's own chance of being right, the mean posterior of what it decides. It estimates
        the same accuracy as counting hits, with a smaller error.
    regret: by how much the ceiling's `expected` is higher. regret_error: its standard error, as there.
    divergence: mean KL divergence of the posterior from the prediction, in nats; what the model's cross
        entropy has above the lowest possible. Infinite where it rules out what can be.
    n: turns, labelled or not.
    """
    items = tuple(items)
    best = posterior(law, items, streams, context, speakers)
    if [np.shape(q) for q in predicted] != [p.shape for p in best]:
        raise ValueError('predicted: expected probabilities of the same items and turns, one a class')
    p, q = (np.concatenate([np.atleast_2d(x) for x in xs]) for xs in (best, predicted))
    group = np.repeat([item.group for item in items], [len(np.atleast_2d(x)) for x in best])
    chance = np.take_along_axis(p, q.argmax(-1)[:, None], axis=1)[:, 0]
    lost = p.max(-1) - chance
    with np.errstate(divide='ignore'):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return {
        'n': len(p),
        'expected': float(chance.mean()),
        'regret': float(lost.mean()),
        'regret_error': _standard_error(lost, group),
        'divergence': float(terms.sum(-1).mean()),
    }


def _recall_and_f1(label: np.ndarray, decided: np.ndarray) -> tuple[float, float]:
    """Unweighted average recall and weighted F1, over the classes that occur."""
    classes, support = np.unique(label, return_counts=True)
    hits = np.array([np.sum((label == c) & (decided == c)) for c in classes])
    called = np.array([np.sum(decided == c) for c in classes])
    f1 = 2 * hits / (support + called)
    return float((hits / support).mean()), float((f1 * support).sum() / support.sum())


def _standard_error(value: np.ndarray, group: np.ndarray) -> float:
    """Of the mean of values [n] that are independent between groups only."""
    _, index = np.unique(group, return_inverse=True)
    sums = np.bincount(index, value - value.mean())
    return float(np.sqrt(np.square(sums).sum()) / len(value))


# The streams of one turn


def log_likelihood(
    law: Law, shape: Float[np.ndarray, '2 c j d'], vectors: Float[np.ndarray, 'u n']
) -> Float[np.ndarray, 'u 2 c']:
    """log p(stream of a turn | literal or sarcastic, emotion), from its `summary`. shape: its template.

    In the basis of the courses the noise stays white and the offset touches the first coefficient only,
    so that every coefficient is Gaussian by itself and what the courses leave is free of the emotion;
    that rest tells whether the stream is noisy.
    """
    j, d = shape.shape[-2:]
    vectors = vectors.astype(np.float64)
    found = vectors[:, :-2].reshape(-1, 1, 1, j, d)
    steps = np.rint(np.exp(vectors[:, -2]))
    free = (steps - j) * d
    rest = np.exp(2 * vectors[:, -1]) * free
    distance = np.square(found - shape).sum(-1)  # [u 2 c j]

    def under(scale: float) -> np.ndarray:
        variance = np.repeat(scale**2 / steps[:, None], j, axis=1)
        variance[:, 0] += law.offset**2
        fit = (distance / variance[:, None, None, :]).sum(-1)
        volume = d * np.log(steps[:, None] * variance).sum(-1)
        volume += free * np.log(scale**2) + steps * d * np.log(2 * np.pi)
        return -0.5 * (fit + (volume + rest / scale**2)[:, None, None])

    return np.logaddexp(
        under(law.noise) + np.log1p(-law.noisy),
        under(law.noise * law.clamour) + _log(law.noisy),
    )


def _evidence(
    law: Law, items: Sequence[Item], streams: Sequence[str], fusion: str
) -> list[Float[np.ndarray, '_ c']]:
    """log p(streams of a turn | emotion), [u c] an item; sarcasm and noise are summed over."""
    shapes = templates(law)
    counts = [1 if item.speakers is None else len(item.speakers) for item in items]
    unseen = np.zeros((sum(counts), 2, len(law.emotions)))
    seen = [_stream_evidence(law, shapes[name], items, counts, name) for name in streams]
    if fusion == 'late':
        found = sum((_over_sarcasm(law, stream) for stream in seen), unseen[:, 0])
    else:
        found = _over_sarcasm(law, sum(seen, unseen))
    return np.split(found, np.cumsum(counts)[:-1])


def _stream_evidence(
    law: Law, shape: Float[np.ndarray, '2 c j d'], items: Sequence[Item], counts: list[int], name: str
) -> Float[np.ndarray, 'n 2 c']:
    """log p(stream | literal or sarcastic, emotion) of all turns of all items; 0 where it is missing."""
    ends = np.cumsum(counts)
    vectors = np.zeros((ends[-1], shape[0, 0].size + 2))
    present = np.zeros(ends[-1], bool)
    for item, start, end in zip(items, ends - counts, ends, strict=True):
        if name in item.streams:
            vectors[start:end], present[start:end] = _vectors(law, item, name, shape)
    found = np.zeros((ends[-1], *shape.shape[:2]))
    found[present] = log_likelihood(law, shape, vectors[present])
    return found


def _over_sarcasm(law: Law, joint: Float[np.ndarray, 'u 2 c']) -> Float[np.ndarray, 'u c']:
    return np.logaddexp(joint[:, 0] + np.log1p(-law.sarcasm), joint[:, 1] + _log(law.sarcasm))


def _vectors(
    law: Law, item: Item, name: str, shape: np.ndarray
) -> tuple[Float[np.ndarray, 'u n'], Bool[np.ndarray, 'u']]:
    """The summaries of one stream and which of them are present, from either layout."""
    x = item.streams[name]
    present = item.masks.get(name, np.ones(x.shape[:-1], bool))
    j, d = shape.shape[-2:]
    expected = d if item.speakers is None else j * d + 2
    if x.ndim != 2 or x.shape[-1] != expected:
        raise ValueError(f'{item.id}: stream {name}: found shape {x.shape}, expected [steps, {expected}]')
    if item.speakers is not None:
        return x, present
    if present.any() and not present.all():
        raise ValueError(f'{item.id}: mask of {name}: found single steps missing, expected all or none')
    vector = summary(law, x) if present.any() else np.zeros(j * d + 2)
    return vector[None], np.array([present.any()])


# The turns of one dialogue


def forward_backward(
    evidence: Float[np.ndarray, 'n u c'],
    prior: Float[np.ndarray, 'c'],
    moves: Float[np.ndarray, 'c c c'],
    log_ranks: Float[np.ndarray, 'n u s'],
) -> tuple[Float[np.ndarray, 'n u c'], Float[np.ndarray, 'n u c']]:
    """log p(emotion of turn u, evidence up to turn u), and the same with the evidence of all turns.

    evidence: log p(turn | emotion). moves: p(next | own, heard). log_ranks: log-probability that turn u
    goes to the person at place s of the order of who spoke last.

    The state is the last emotion of each of the s people, *in the order of who spoke last*: a tensor of s
    axes, the present turn first. Whoever speaks next is moved to the front; whom she heard then is second.
    So nobody needs a name, and who speaks may be known or summed over by the same recursion.
    """
    n, u, k = evidence.shape
    s = log_ranks.shape[-1]

    def spread(e: np.ndarray) -> np.ndarray:
        return e.reshape(n, k, *(1,) * (s - 1))

    arrival = np.zeros((k,) * s)
    for axis in range(s):
        arrival = arrival + np.log(prior).reshape((k,) + (1,) * (s - 1 - axis))
    forward = [arrival + spread(evidence[:, 0])]
    for i in range(1, u):
        forward.append(_advance(forward[-1], moves, log_ranks[:, i]) + spread(evidence[:, i]))
    backward = [np.zeros_like(forward[0])]
    for i in range(u - 1, 0, -1):
        backward.append(_retreat(backward[-1] + spread(evidence[:, i]), moves, log_ranks[:, i]))
    backward.reverse()
    online = np.stack([_present_turn(f) for f in forward], axis=1)
    offline = np.stack([_present_turn(f + b) for f, b in zip(forward, backward, strict=True)], axis=1)
    return online, offline


def _advance(state: np.ndarray, moves: np.ndarray, log_ranks: np.ndarray) -> np.ndarray:
    """The law of the state after one more turn, before its evidence; log domain, [n c ... c]."""
    after = np.full_like(state, -np.inf)
    for rank in range(log_ranks.shape[1]):
        rows = np.flatnonzero(log_ranks[:, rank] > -np.inf)
        own_first = np.moveaxis(state[rows], 1 + rank, 1)
        new = _log_contract('boh...,ohn->bnh...', own_first, moves)
        new += log_ranks[rows, rank].reshape(-1, *(1,) * (state.ndim - 1))
        after[rows] = np.logaddexp(after[rows], new)
    return after


def _retreat(state: np.ndarray, moves: np.ndarray, log_ranks: np.ndarray) -> np.ndarray:
    """The transpose of `_advance`: what the turns from here on say of the state one turn before."""
    before = np.full_like(state, -np.inf)
    for rank in range(log_ranks.shape[1]):
        rows = np.flatnonzero(log_ranks[:, rank] > -np.inf)
        old = _log_contract('bnh...,ohn->boh...', state[rows], moves)
        old = np.moveaxis(old, 1, 1 + rank)
        old += log_ranks[rows, rank].reshape(-1, *(1,) * (state.ndim - 1))
        before[rows] = np.logaddexp(before[rows], old)
    return before


def _present_turn(state: np.ndarray) -> np.ndarray:
    """[n c ... c] -> [n c]: sums the others' last emotions out, in the log domain."""
    flat = state.reshape(*state.shape[:2], -1)
    top = flat.max(-1)
    return np.log(np.exp(flat - top[..., None]).sum(-1)) + top


def _log_contract(subscripts: str, logs: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """log einsum(exp(logs), moves) over axis 1, its largest entry taken out first."""
    top = logs.max(axis=1, keepdims=True)
    return np.log(np.einsum(subscripts, np.exp(logs - top), moves)) + top


def _in_context(
    law: Law,
    items: Sequence[Item],
    evidence: Sequence[np.ndarray],
    context: Context,
    speakers: bool,
) -> list[np.ndarray]:
    """Unnormalised log p(emotion | streams) of every turn, [u c] an item."""
    for item in items:
        if item.speakers is None:
            raise ValueError(f'{item.id}: context {context!r} needs dialogues, found an utterance')
    found: list[np.ndarray] = [np.zeros(0)] * len(items)
    moves, prior = transition(law), np.array(law.prior)
    ranks = [_known_ranks(np.asarray(item.speakers)) for item in items]
    sizes = [r.shape[1] if speakers else 0 for r in ranks]
    for size in set(sizes):
        members = [i for i, s in enumerate(sizes) if s == size]
        for start in range(0, len(members), CHUNK):
            chunk = members[start : start + CHUNK]
            padded = _pad([evidence[i] for i in chunk], np.zeros_like(prior))
            if speakers:
                keep = np.where(np.arange(size) == 0, 0.0, -np.inf)
                both = forward_backward(padded, prior, moves, _pad([ranks[i] for i in chunk], keep))
            else:
                both = _over_crowds(law, padded, prior, moves)
            for row, i in enumerate(chunk):
                found[i] = both[context == 'offline'][row, : len(evidence[i])]
    return found


def _over_crowds(
    law: Law, evidence: np.ndarray, prior: np.ndarray, moves: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`forward_backward` with the number of speakers and their turns summed over."""
    parts = [
        [found + np.log(share) for found in forward_backward(evidence, prior, moves, ranks)]
        for extra, share in enumerate(law.crowd)
        if share > 0
        for ranks in [_unknown_ranks(law, 2 + extra, evidence.shape[:2])]
    ]
    online, offline = (np.logaddexp.reduce(p) for p in zip(*parts, strict=True))
    return online, offline


def _known_ranks(speakers: Int[np.ndarray, 'u']) -> Float[np.ndarray, 'u s']:
    """Log-probabilities, 0 or -inf, of who takes the turn, as places in the order of who spoke last.

    Two people at least; who says nothing in the whole dialogue tells nothing and needs no place.
    """
    order = list(dict.fromkeys(speakers.tolist()))
    ranks = np.full((len(speakers), max(2, len(order))), -np.inf)
    for u, speaker in enumerate(speakers.tolist()):
        rank = order.index(speaker)
        order.insert(0, order.pop(rank))
        ranks[u, rank] = 0.0
    return ranks


def _unknown_ranks(law: Law, size: int, shape: tuple[int, int]) -> Float[np.ndarray, 'n u s']:
    """The law's log-probabilities of who takes the turn; the second one is never the first speaker's."""
    ranks = np.full((*shape, size), _log((1 - law.keep) / (size - 1)))
    ranks[..., 0] = _log(law.keep)
    ranks[:, 1:2] = [-np.inf] + [_log(1 / (size - 1))] * (size - 1)
    return ranks


# Small things


def _pad(
    parts: Sequence[Float[np.ndarray, '_ c']], blank: Float[np.ndarray, 'c']
) -> Float[np.ndarray, 'n u c']:
    """Stacks dialogues of different length; the turns beyond their ends are `blank`."""
    padded = np.tile(blank, (len(parts), max(map(len, parts)), 1))
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return padded


def _log(x: float) -> float:
    return float(np.log(x)) if x > 0 else -np.inf


def _softmax(x: Float[np.ndarray, '*u c']) -> Float[np.ndarray, '*u c']:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)

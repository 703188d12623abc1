"""The toy corpus: conversations drawn from a known law, so that the best possible result is known too.

Emotions move over the turns of a dialogue as a hidden Markov chain (a speaker's own last emotion holds
on, the other's is catching), and every turn emits three streams of different width, rate and length.
Some turns are sarcastic: the words say another emotion, and only the tone of voice gives it away. Some
streams are noisy, some are missing. Every step is Gaussian or a finite mixture, so the posterior
p(emotion | streams) is exact: `jmer.data.bayes` computes it, and with it the ceiling of every model.

The law in formulas, its identifiability and its ceilings: docs/toy.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jmer.data.corpus import Corpus, Item, Spec, StreamSpec, Target

VERSION = '1'
"""Of the drawing below. The same law and seed give the same corpus as long as this stays."""

PARTS = ('train', 'validation', 'test')
Layout = Literal['utterance', 'dialogue']


@dataclasses.dataclass(frozen=True)
class Channel:
    """How one stream shows the emotion.

    name, width: of the stream, one of whose steps is `width` features.
    pace: steps a second.
    valence, arousal: how far the stream moves with the emotion's valence and arousal.
    identity: how far it moves in a direction of each emotion's own.
    tone: how far it moves, in one more direction, when the turn is sarcastic.
    ironic: whether a sarcastic turn shows another emotion here (`Law.irony`).
    """

    name: str
    width: int
    pace: float
    valence: float
    arousal: float
    identity: float
    tone: float = 0.0
    ironic: bool = False


@dataclasses.dataclass(frozen=True)
class Law:
    """All that the corpus is drawn from; together with a seed it *is* the corpus. Lengths in seconds.

    emotions, prior: the classes, and how often each occurs, at every turn of every dialogue.
    valence, arousal: where each emotion lies; near ones infect each other and look alike.
    irony: the emotion that an ironic channel shows of each, when the turn is sarcastic.
    inertia: probability that a speaker keeps her last emotion.
    contagion: probability that she answers to what the other showed last. Else she draws from `prior`.
    reach: how far, in valence and arousal, an answer lies from what it answers.
    crowd: probabilities of two, three, ... speakers.
    keep: probability that a speaker keeps the floor for another turn (never for the second one).
    turns, seconds: shortest and longest dialogue, and turn; uniform between.
    sarcasm: probability that a turn is sarcastic.
    missing: probability that a stream of a turn is missing; one stream always remains.
    noisy, clamour: probability that a stream of a turn is noisy, and by what its noise grows then.
    noise: standard deviation of a step: **the dial of difficulty**.
    offset: standard deviation of what is added to all steps of a turn alike (voice, light, microphone).
    courses: shares of the energy in the mean, the slope, the curvature, ... of a stream over the turn.
    templates: seed of the directions in which the streams move. They do not touch the difficulty.
    channels: the streams.
    """

    emotions: tuple[str, ...] = ('neutral', 'happy', 'sad', 'angry', 'fearful', 'surprised')
    prior: tuple[float, ...] = (0.26, 0.20, 0.15, 0.15, 0.10, 0.14)
    valence: tuple[float, ...] = (0.0, 0.8, -0.7, -0.6, -0.9, 0.3)
    arousal: tuple[float, ...] = (0.0, 0.4, -0.6, 0.8, 0.3, 0.9)
    irony: tuple[int, ...] = (1, 3, 1, 1, 0, 0)
    inertia: float = 0.6
    contagion: float = 0.3
    reach: float = 0.5
    crowd: tuple[float, ...] = (0.6, 0.25, 0.15)
    keep: float = 0.15
    turns: tuple[int, int] = (6, 14)
    seconds: tuple[float, float] = (1.6, 5.0)
    sarcasm: float = 0.2
    missing: float = 0.1
    noisy: float = 0.15
    clamour: float = 2.5
    noise: float = 1.2
    offset: float = 0.3
    courses: tuple[float, ...] = (0.5, 0.3, 0.2)
    templates: int = 0
    channels: tuple[Channel, ...] = (
        Channel('text', 16, 2.5, valence=0.9, arousal=0.2, identity=0.7, ironic=True),
        Channel('audio', 12, 10.0, valence=0.1, arousal=0.5, identity=0.25, tone=0.8),
        Channel('vision', 10, 5.0, valence=0.4, arousal=0.3, identity=0.35),
    )

    def __post_init__(self) -> None:
        k = len(self.emotions)
        for name in ('prior', 'valence', 'arousal', 'irony'):
            _require(len(getattr(self, name)) == k, name, getattr(self, name), f'{k} values')
        for name in ('prior', 'crowd', 'courses'):
            found = getattr(self, name)
            _require(min(found) >= 0 and abs(sum(found) - 1) < 1e-9, name, found, 'shares that sum to 1')
        _require(min(self.prior) > 0, 'prior', self.prior, 'every emotion to be possible')
        _require(set(self.irony) <= set(range(k)), 'irony', self.irony, f'classes 0 to {k - 1}')
        for name in ('inertia', 'contagion', 'keep', 'sarcasm', 'missing', 'noisy'):
            found = getattr(self, name)
            _require(0 <= found < 1, name, found, 'a probability below 1')
        both = self.inertia + self.contagion
        _require(both < 1, 'inertia + contagion', both, 'less than 1')
        for name in ('reach', 'noise', 'clamour'):
            _require(getattr(self, name) > 0, name, getattr(self, name), 'a positive number')
        _require(self.offset >= 0, 'offset', self.offset, 'no negative number')
        for name, least in (('turns', 1), ('seconds', 0)):
            low, high = getattr(self, name)
            _require(least <= low <= high, name, (low, high), f'{least} <= shortest <= longest')
        names = [channel.name for channel in self.channels]
        _require(0 < len(names) == len(set(names)), 'channels', names, 'one or more different names')
        for channel in self.channels:
            _require(channel.width >= k + 3, f'width of {channel.name}', channel.width,
                     f'{k + 3} at least: valence, arousal, tone and {k} emotions')
            shortest = round(channel.pace * self.seconds[0])
            _require(shortest > len(self.courses), f'shortest {channel.name}', f'{shortest} steps',
                     f'more than the {len(self.courses)} courses')


def _require(holds: bool, field: str, found: object, expected: str) -> None:
    if not holds:
        raise ValueError(f'Law: {field}: found {found}, expected {expected}')


def corpus(
    law: Law = Law(),
    seed: int = 0,
    layout: Layout = 'utterance',
    dialogues: tuple[int, int, int] = (400, 80, 200),
) -> Corpus:
    """Draws the corpus 'toy' (layout 'utterance') or 'toy-dialogue'; a pure function of its arguments.

    dialogues: how many in the parts 'train', 'validation' and 'test'. A dialogue depends on the law, the
    seed, its part and its number only: more training data leave the test part as it is. Both layouts
    hold the same dialogues.

    Layout 'utterance': an item is a turn, its streams are sequences [t d]. Layout 'dialogue': an item is
    a dialogue, its streams are one vector a turn, `summary` of the sequence: a sufficient statistic, so
    that both layouts have the same ceiling.
    """
    if layout not in ('utterance', 'dialogue'):
        raise ValueError(f"layout: found {layout!r}, expected 'utterance' or 'dialogue'")
    if seed < 0:
        raise ValueError(f'seed: found {seed}, expected 0 or more')
    if len(dialogues) != len(PARTS) or min(dialogues) < 0:
        raise ValueError(f'dialogues: found {dialogues}, expected numbers for {", ".join(PARTS)}')
    moves, shapes = transition(law), templates(law)
    as_items = _utterances if layout == 'utterance' else _dialogue
    items = [
        item
        for p, (part, count) in enumerate(zip(PARTS, dialogues, strict=True))
        for i in range(count)
        for item in as_items(law, part, i, _draw(law, moves, shapes, np.random.default_rng([seed, p, i])))
    ]
    return Corpus(_spec(law, seed, layout), tuple(sorted(items, key=lambda item: item.id)))


def _spec(law: Law, seed: int, layout: Layout) -> Spec:
    streams = tuple(
        StreamSpec(c.name, c.width, 0.0 if c.name == 'text' else c.pace, 'steps of a turn')
        if layout == 'utterance'
        else StreamSpec(c.name, c.width * len(law.courses) + 2, 0.0, 'summary of a turn')
        for c in law.channels
    )
    return Spec(
        name='toy' if layout == 'utterance' else 'toy-dialogue',
        version=VERSION,
        layout=layout,
        streams=streams,
        targets=(Target('emotion', 'class', law.emotions),),
        licence='CC0-1.0',
        citation='The jmer authors: the toy corpus, conversations from a known law (docs/toy.md)',
        source=f'jmer.data.synthetic.corpus(law={law}, seed={seed}, layout={layout!r})',
    )


# The law, as arrays


def transition(law: Law) -> Float[np.ndarray, 'c c c']:
    """p(next emotion | the speaker's last one, the one she heard last), axes in the order own, heard, next.

    A mixture: keep the own one, answer the heard one, or draw from the prior. The answers have the prior
    as their stationary law, hence every turn has it as its marginal: `prior` is exactly what is known of
    a turn without context.
    """
    k = len(law.emotions)
    prior = np.array(law.prior)
    own = np.eye(k)[:, None, :]
    heard = answers(law)[None, :, :]
    fresh = (1 - law.inertia - law.contagion) * prior
    return law.inertia * own + law.contagion * heard + fresh


def answers(law: Law) -> Float[np.ndarray, 'c c']:
    """p(answer | heard): likelier the nearer in valence and arousal, reversible under the prior."""
    prior = np.array(law.prior)
    place = np.stack([law.valence, law.arousal], axis=1)
    gap = np.square(place[:, None] - place[None]).sum(-1)
    affinity = np.exp(-0.5 * gap / law.reach**2)
    # Symmetric scaling D A D with the prior as both marginals (Sinkhorn; the root makes it converge).
    scale = np.ones_like(prior)
    for _ in range(10_000):
        row = affinity @ scale
        if np.abs(scale * row - prior).max() < 1e-15:
            break
        scale = np.sqrt(scale * prior / row)
    joint = scale[:, None] * affinity * scale[None]
    return joint / joint.sum(axis=1, keepdims=True)


def templates(law: Law) -> dict[str, Float[np.ndarray, '2 c j d']]:
    """The noiseless coefficients of every stream: [literal or sarcastic, emotion, course, feature].

    A class has a code (valence, arousal, identity, tone); every course turns the code by an orthonormal
    frame of its own. So distances between classes are those between codes, whatever the frames.
    """
    rng = np.random.default_rng([law.templates, 0])
    return {channel.name: _template(law, channel, rng) for channel in law.channels}


def _template(law: Law, channel: Channel, rng: np.random.Generator) -> Float[np.ndarray, '2 c j d']:
    k = len(law.emotions)
    literal = np.concatenate(
        [
            channel.valence * np.array(law.valence)[:, None],
            channel.arousal * np.array(law.arousal)[:, None],
            channel.identity * np.eye(k),
            np.zeros((k, 1)),
        ],
        axis=1,
    )
    sarcastic = literal[list(law.irony)] if channel.ironic else literal.copy()
    sarcastic[:, -1] = channel.tone
    codes = np.stack([literal, sarcastic])
    frames = [_frame(k + 3, channel.width, rng) for _ in law.courses]
    shares = np.sqrt(law.courses)
    return np.stack([share * codes @ frame for share, frame in zip(shares, frames, strict=True)], axis=2)


def _frame(rows: int, width: int, rng: np.random.Generator) -> Float[np.ndarray, 'r d']:
    q, r = np.linalg.qr(rng.standard_normal((width, rows)))
    return (q * np.sign(np.diag(r))).T  # the sign makes the factorisation unique, whatever the library


def course_basis(steps: int, courses: int) -> Float[np.ndarray, 't j']:
    """Constant, half a cosine, a whole one, ... over a turn: orthogonal, each with mean square 1."""
    time = (np.arange(steps) + 0.5) / steps
    basis = np.sqrt(2) * np.cos(np.pi * np.outer(time, np.arange(courses)))
    basis[:, 0] = 1.0
    return basis


def summary(law: Law, x: Float[np.ndarray, 't d']) -> Float[np.ndarray, 'n']:
    """A sufficient statistic of one stream of one turn, float64 [j * d + 2].

    The coefficients of the courses (the first is the mean over time), the logarithm of the number of
    steps, and the logarithm of the root mean square of what the courses leave.
    """
    steps, width = x.shape
    if steps <= len(law.courses):
        raise ValueError(f'summary: found {steps} steps, expected more than {len(law.courses)}')
    basis = course_basis(steps, len(law.courses))
    x = x.astype(np.float64)
    coefficients = basis.T @ x / steps
    rest = np.square(x - basis @ coefficients).sum()
    rest = 0.5 * np.log(max(rest, 1e-30) / ((steps - len(law.courses)) * width))
    return np.concatenate([coefficients.ravel(), [np.log(steps), rest]])


# One dialogue


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """streams: by name, one [t d] a turn; missing, noisy: bool [u m]; the others [u]."""

    emotions: Int[np.ndarray, 'u']
    speakers: Int[np.ndarray, 'u']
    sarcastic: np.ndarray
    missing: np.ndarray
    noisy: np.ndarray
    streams: dict[str, list[np.ndarray]]


def _draw(law: Law, moves: np.ndarray, shapes: dict[str, np.ndarray], rng: np.random.Generator) -> _Drawn:
    u, m = int(rng.integers(law.turns[0], law.turns[1] + 1)), len(law.channels)
    crowd = 2 + int(rng.choice(len(law.crowd), p=law.crowd))
    emotions, speakers = _draw_emotions(law, moves, crowd, _draw_ranks(law, crowd, u, rng), rng)
    sarcastic = rng.random(u) < law.sarcasm
    missing = rng.random((u, m)) < law.missing
    spared = rng.integers(m, size=u)
    missing[missing.all(axis=1), spared[missing.all(axis=1)]] = False
    noisy = rng.random((u, m)) < law.noisy
    seconds = rng.uniform(*law.seconds, size=u)
    # Missing streams are drawn too: another `missing` then leaves everything else as it is.
    streams = {}
    for i, channel in enumerate(law.channels):
        means = shapes[channel.name][sarcastic.astype(int), emotions]
        scale = law.noise * np.where(noisy[:, i], law.clamour, 1.0)
        streams[channel.name] = _draw_stream(law, means, scale, np.rint(channel.pace * seconds), rng)
    return _Drawn(emotions, speakers, sarcastic, missing, noisy, streams)


def _draw_ranks(law: Law, crowd: int, turns: int, rng: np.random.Generator) -> Int[np.ndarray, 'u']:
    """Who speaks, as a place in the order of who spoke last: 0 keeps the floor."""
    others = rng.integers(1, crowd, size=turns)
    kept = rng.random(turns) < law.keep
    kept[:1], kept[1:2] = True, False
    return np.where(kept, 0, others)


def _draw_emotions(
    law: Law, moves: np.ndarray, crowd: int, ranks: np.ndarray, rng: np.random.Generator
) -> tuple[Int[np.ndarray, 'u'], Int[np.ndarray, 'u']]:
    k = len(law.emotions)
    moods = rng.choice(k, size=crowd, p=law.prior).tolist()  # as they arrive, by who spoke last
    seats = list(range(crowd))
    chance = rng.random(len(ranks))
    cumulative = np.cumsum(moves, axis=-1)
    emotions, speakers = [], []
    for u, rank in enumerate(ranks):
        mood, seat = moods.pop(rank), seats.pop(rank)
        if u:
            mood = min(int(np.searchsorted(cumulative[mood, moods[0]], chance[u], 'right')), k - 1)
        moods.insert(0, mood)
        seats.insert(0, seat)
        emotions.append(mood)
        speakers.append(seat)
    appeared = {seat: i for i, seat in enumerate(dict.fromkeys(speakers))}
    return np.array(emotions), np.array([appeared[seat] for seat in speakers])


def _draw_stream(
    law: Law, means: np.ndarray, scale: np.ndarray, steps: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """One stream of all turns: means [u j d], scale [u], steps [u] -> u arrays [t d], float32."""
    turns, courses, width = means.shape
    offsets = law.offset * rng.standard_normal((turns, width))
    ends = np.cumsum(steps).astype(int)
    noise = np.split(rng.standard_normal((ends[-1], width)), ends[:-1])
    return [
        (course_basis(len(noise[u]), courses) @ means[u] + offsets[u] + scale[u] * noise[u]).astype(
            np.float32
        )
        for u in range(turns)
    ]


# What was drawn, as items


def _utterances(law: Law, part: str, number: int, drawn: _Drawn) -> Sequence[Item]:
    dialogue = f'{part}-{number:05d}'
    return [
        Item(
            id=f'{dialogue}-{u:02d}',
            group=dialogue,
            part=part,
            streams={
                c.name: drawn.streams[c.name][u]
                for i, c in enumerate(law.channels)
                if not drawn.missing[u, i]
            },
            labels={'emotion': np.array(drawn.emotions[u])},
            attributes={
                'speaker': f'{dialogue}-{drawn.speakers[u]}',
                'sarcastic': 'yes' if drawn.sarcastic[u] else 'no',
                'noisy': ' '.join(c.name for i, c in enumerate(law.channels) if drawn.noisy[u, i]),
            },
        )
        for u in range(len(drawn.emotions))
    ]


def _dialogue(law: Law, part: str, number: int, drawn: _Drawn) -> Sequence[Item]:
    dialogue = f'{part}-{number:05d}'
    streams, masks = {}, {}
    for i, c in enumerate(law.channels):
        present = ~drawn.missing[:, i]
        if present.any():
            vectors = np.stack([summary(law, x) for x in drawn.streams[c.name]])
            streams[c.name] = np.where(present[:, None], vectors, 0).astype(np.float32)
            masks[c.name] = present
    return [
        Item(
            id=dialogue,
            group=dialogue,
            part=part,
            streams=streams,
            labels={'emotion': drawn.emotions},
            masks=masks,
            speakers=drawn.speakers,
            turns=tuple(f'{dialogue}-{u:02d}' for u in range(len(drawn.emotions))),
            attributes={'sarcastic': ''.join('01'[int(s)] for s in drawn.sarcastic)},
        )
    ]

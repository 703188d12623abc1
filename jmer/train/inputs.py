"""From a corpus to what a model sees: the same road for training, evaluation and a user's own clip."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jmer.data import transforms
from jmer.data.corpus import Corpus, Item, Spec, StreamSpec, Target, as_utterances
from jmer.data.load import load
from jmer.data.transforms import Moments
from jmer.train.experiment import Data


def read(data: Data, folder: str | os.PathLike | None) -> Corpus:
    """The corpus of an experiment or a card, from the folder of its owners' files. Errors as `data.load.load`."""
    corpus = load(data.name, folder, data.streams)
    return as_utterances(corpus) if data.turns else corpus


def shape(items: Iterable[Item], data: Data) -> tuple[Item, ...]:
    """Pools and truncates the streams as the experiment says."""
    pool, cut = dict(data.pool), dict(data.truncate)
    return tuple(transforms.truncate(transforms.pool_steps(item, pool), cut) for item in items)


def standardise(items: Iterable[Item], moments: Mapping[str, Moments]) -> tuple[Item, ...]:
    """Standardises the streams by the moments of the training items."""
    return tuple(transforms.standardise(item, moments) for item in items)


def fit(items: Sequence[Item], data: Data) -> dict[str, Moments]:
    """Moments of the training items (already shaped), or none where nothing is standardised."""
    return transforms.fit_standardisation(items, data.streams) if data.standardise else {}


def fingerprint(corpus: Corpus, streams: Sequence[str], targets: Sequence[str]) -> str:
    """SHA-256 over the items: ids, parts, streams, masks, labels, speakers. Equal data, equal fingerprint."""
    digest = hashlib.sha256(f'{corpus.spec.name} {corpus.spec.version}'.encode())
    for item in corpus.items:
        digest.update(f'{item.id} {item.group} {item.part}'.encode())
        for name in streams:
            if name in item.streams:
                digest.update(item.streams[name].tobytes())
                digest.update(np.asarray(item.masks.get(name, True)).tobytes())
        for name in targets:
            digest.update(np.asarray(item.labels.get(name, 0)).tobytes())
        digest.update(np.asarray(item.speakers if item.speakers is not None else 0).tobytes())
    return digest.hexdigest()


def most_speakers(items: Iterable[Item]) -> int:
    """How many speakers the dialogue with the most of them has; 0 of utterances."""
    return max((int(np.max(item.speakers)) + 1 for item in items if item.speakers is not None), default=0)


def spec_to_json(spec: Spec, data: Data, moments: Mapping[str, Moments]) -> dict[str, Any]:
    """What a card has to say of the inputs, so that weights can be used without the corpus."""
    target = spec.target(data.target)
    return {
        'corpus': spec.name,
        'features': spec.version,
        'layout': spec.layout,
        'streams': [vars(spec.stream(name)) for name in data.streams],
        'target': vars(target),
        'standardisation': {name: {'mean': m.mean.tolist(), 'std': m.std.tolist()}
                            for name, m in moments.items()},
        'licence': spec.licence,
        'citation': spec.citation,
        'source': spec.source,
    }


def spec_from_json(card: Mapping[str, Any]) -> tuple[Spec, dict[str, Moments]]:
    """The way back."""
    target = Target(**{**card['target'], 'names': tuple(card['target']['names'])})
    spec = Spec(card['corpus'], card['features'], card['layout'],
                tuple(StreamSpec(**s) for s in card['streams']), (target,),
                card['licence'], card['citation'], card['source'])
    moments = {name: Moments(np.asarray(m['mean'], np.float32), np.asarray(m['std'], np.float32))
               for name, m in card['standardisation'].items()}
    return spec, moments

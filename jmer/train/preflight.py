"""What has to hold before a run begins: the experiment fits its data and devices, the folder is its own."""

import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jmer import checkpoint, parallel, zoo
from jmer.data.corpus import Corpus, Target
from jmer.train import inputs
from jmer.train.evaluate import metric_names
from jmer.train.experiment import Experiment

BOUNDS = {
    'data.batch_size': (1, np.inf), 'data.buckets': (1, np.inf), 'data.drop_modalities': (0, 1),
    'data.noise': (0, np.inf), 'data.frame_drop': (0, 1), 'data.label_noise': (0, 1),
    'optimizer.rate': (0, np.inf), 'optimizer.warmup': (0, 1), 'optimizer.weight_decay': (0, np.inf),
    'optimizer.clip': (0, np.inf), 'optimizer.perturb_by': (0, np.inf), 'data.balance': (0, np.inf),
    'loss.balance': (0, 1), 'epochs': (1, np.inf), 'patience': (0, np.inf), 'evaluate_every': (1, np.inf),
    'accumulate': (1, np.inf), 'seed': (0, 2**32 - 1), 'seeds': (1, np.inf),
}
"""The least and the greatest value of options."""


def check(
    experiment: Experiment, corpus: Corpus, target: Target, mesh: jax.sharding.Mesh, split: parallel.Split
) -> None:
    """Raises ValueError, naming the option, for what can be known to be wrong beforehand.

    split: what the devices share.
    """
    _check_bounds(experiment)
    _check_streams(experiment)
    _check_model(experiment, corpus, target)
    monitors = ['step', *metric_names(target)]
    chosen = experiment.data.protocol.validation or experiment.data.protocol.held_out
    if chosen and experiment.monitor not in monitors:
        raise ValueError(f'monitor: found {experiment.monitor!r}, expected one of {", ".join(monitors)}')
    if experiment.data.label_noise and target.kind != 'class':
        raise ValueError(f'data.label_noise: found {experiment.data.label_noise}, but {target.name} has no classes')
    devices = 1 if split.state == 0 else mesh.size
    share = devices * experiment.accumulate
    if experiment.data.batch_size % share:
        raise ValueError(f'data.batch_size: found {experiment.data.batch_size}, expected a multiple of {share} '
                         f'({devices} devices, {experiment.accumulate} accumulated parts)')


def _check_bounds(experiment: Experiment) -> None:
    for name, (least, greatest) in BOUNDS.items():
        found = operator.attrgetter(name)(experiment)
        if not least <= found <= greatest:
            raise ValueError(f'{name}: found {found}, expected '
                             + (f'{least} to {greatest}' if greatest < np.inf else f'{least} or more'))


def _check_streams(experiment: Experiment) -> None:
    data, streams = experiment.data, ', '.join(experiment.data.streams)
    for name, least in (('pool', 0), ('truncate', 1)):
        for stream, steps in getattr(data, name):
            if stream not in data.streams or steps < least:
                raise ValueError(f'data.{name}: found {stream!r}, {steps}; expected one of data.streams '
                                 f'({streams}) and at least {least} steps')
    for pair in data.stand_ins:
        if set(pair) - set(data.streams):
            raise ValueError(f'data.stand_ins: found {" for ".join(pair)}; expected two of data.streams ({streams})')
    missing = set(zoo.streams_of(experiment.model)) - set(data.streams)
    if missing:
        raise ValueError(f'model.streams: {", ".join(sorted(missing))} not among data.streams ({streams})')


def _check_model(experiment: Experiment, corpus: Corpus, target: Target) -> None:
    name = zoo.name_of(experiment.model)
    if (zoo.family(name) == 'dialogue') != (corpus.spec.layout == 'dialogue'):
        raise ValueError(f'{name} is a model of the family {zoo.family(name)}; '
                         f'{corpus.spec.name} holds items of the layout {corpus.spec.layout}')
    classes = getattr(experiment.model, 'classes', len(target.names))
    if classes != len(target.names):
        raise ValueError(f'model.classes: found {classes}, expected {len(target.names)}, '
                         f'the names of target {target.name} ({", ".join(target.names)})')
    if target.kind not in zoo.labels(name):
        raise ValueError(f'data.target: found {target.name!r} of the kind {target.kind}, but the loss of {name} takes '
                         f'the kinds {", ".join(zoo.labels(name))}')
    if target.name in experiment.data.also:
        raise ValueError(f'data.also: found {target.name}, expected targets beside data.target')
    if experiment.data.also and not hasattr(zoo.module(name), 'loss'):
        raise ValueError(f'data.also: found {", ".join(experiment.data.also)}, but {name} has no loss of its own that '
                         'could take a second task')
    zoo.check_speakers(experiment.model, inputs.most_speakers(corpus.items))


def claim(workdir: Path, identity: dict[str, Any]) -> None:
    """Makes the folder this experiment's, or refuses it."""
    path = workdir / 'experiment.json'
    if not path.exists():
        # Hidden files are nobody's work: a file browser's, or what a killed writer left of this very file.
        strangers = sorted(p.name for p in workdir.glob('[!.]*') if p != path)
        if strangers:
            raise ValueError(f'{workdir} is not empty and holds no experiment.json (it holds '
                             f'{", ".join(strangers[:5])}); choose another folder')
        if parallel.is_main_process():
            checkpoint.write_json(path, identity)
        return
    found = checkpoint.read_json(path)
    wanted = checkpoint.plain(identity)
    differences = list(_differences(found, wanted))
    if differences:
        raise ValueError(f'{workdir} belongs to another experiment; choose another folder, or undo:\n  '
                         + '\n  '.join(differences))


def _differences(found: Any, wanted: Any, path: str = '') -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted(found.keys() | wanted.keys()):
            yield from _differences(found.get(name), wanted.get(name), f'{path}.{name}' if path else name)
    elif found != wanted:
        yield f'{path}: there {found!r}, here {wanted!r}'

"""LFMIM on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/lfmim --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('whisper', 'vision')


def get() -> Experiment:
    model = zoo.create('lfmim', classes=8, streams=STREAMS, steps=(50, 50), depths=(1, 2), width=64, heads=4,
                       layers=2)
    return protocols.ravdess(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.ravdess(zoo.create('lfmim', classes=8, streams=STREAMS, steps=(50, 50), depths=(1, 2)))

"""TACFN on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/tacfn --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('whisper', 'vision')


def get() -> Experiment:
    return protocols.ravdess(zoo.create('tacfn', classes=8, streams=STREAMS, heads=4, layers=2))


def paper() -> Experiment:
    """The sizes of the model's file, which for want of the paper's are inferred."""
    return protocols.ravdess(zoo.create('tacfn', classes=8, streams=STREAMS))

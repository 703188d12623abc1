"""ATIA on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/arcface_interaction --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('whisper', 'vision')


def get() -> Experiment:
    model = zoo.create('arcface_interaction', classes=8, streams=STREAMS, states=32, hidden=64, width=64, scale=8.0,
                       margin=0.2, dropout=0.5)
    return protocols.ravdess(model)


def paper() -> Experiment:
    """The sizes of the model's file, which for want of the paper's are inferred."""
    return protocols.ravdess(zoo.create('arcface_interaction', classes=8, streams=STREAMS))

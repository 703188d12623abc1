"""SE attention on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/se_attention --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('whisper', 'vision')


def get() -> Experiment:
    model = zoo.create('se_attention', classes=8, streams=STREAMS, width=64, heads=4, hidden=64, dropout=0.3)
    return protocols.ravdess(model)


def paper() -> Experiment:
    """The sizes of the model's file, which for want of the paper's are inferred."""
    return protocols.ravdess(zoo.create('se_attention', classes=8, streams=STREAMS))

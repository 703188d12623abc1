"""RJA on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/rja --data DIR --folds parts --seeds 3

Whisper, the stream that has steps, is looked at; being no image, it is one region.
The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('vision', 'whisper')


def get() -> Experiment:
    model = zoo.create('rja', classes=8, streams=STREAMS, steps=50, regions=1, width=64, hidden=64,
                       attention_dropout=0.3)
    return protocols.ravdess(model, rate=3e-3)


def paper() -> Experiment:
    """The authors' widths; their sixteen steps are too few."""
    return protocols.ravdess(zoo.create('rja', classes=8, streams=STREAMS, steps=50, regions=1))

"""JCA on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/jca --data DIR --folds parts --seeds 3

Whisper, the stream that has steps, attends to both.
The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('vision', 'whisper')


def get() -> Experiment:
    return protocols.ravdess(zoo.create('jca', classes=8, streams=STREAMS, steps=50, width=64, hidden=64))


def paper() -> Experiment:
    """The authors' widths; their sixteen steps are too few."""
    return protocols.ravdess(zoo.create('jca', classes=8, streams=STREAMS, steps=50))

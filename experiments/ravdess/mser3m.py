"""3M-SER on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/mser3m --data DIR --folds parts --seeds 3

Action units stand for the text.
The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('vision', 'whisper')


def get() -> Experiment:
    return protocols.ravdess(zoo.create('mser3m', classes=8, streams=STREAMS, width=40, heads=5, dropout=0.3))


def paper() -> Experiment:
    """The authors' sizes, but for heads: the 35 action units are no multiple of eight."""
    return protocols.ravdess(zoo.create('mser3m', classes=8, streams=STREAMS, width=126, heads=7))

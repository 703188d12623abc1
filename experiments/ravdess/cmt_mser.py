"""CMT-MSER on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/cmt_mser --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('whisper', 'vision')


def get() -> Experiment:
    model = zoo.create('cmt_mser', classes=8, streams=STREAMS, width=40, heads=4, layers=1, hidden=40, causal=False,
                       out_dropout=0.3)
    return protocols.ravdess(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.ravdess(zoo.create('cmt_mser', classes=8, streams=STREAMS))

"""MMER on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/mmer --data DIR --folds parts --seeds 3

Action units stand for the text; there are no letters and no changed copies to learn from.
The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('vision', 'whisper')


def get() -> Experiment:
    model = zoo.create('mmer', classes=8, streams=STREAMS, width=64, heads=4, hidden=128, dropout=0.3)
    return protocols.ravdess(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.ravdess(zoo.create('mmer', classes=8, streams=STREAMS))

"""MCFN on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/mcfn --data DIR --folds parts --seeds 3

Action units stand for the text, which attends to the audio.
The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('vision', 'whisper')


def get() -> Experiment:
    model = zoo.create('mcfn', classes=8, streams=STREAMS, width=64, narrow=(32, 48), attention=16, hidden=32,
                       dropout=0.3)
    return protocols.ravdess(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.ravdess(zoo.create('mcfn', classes=8, streams=STREAMS))

"""CFN-SR on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/cfn_sr --data DIR --folds parts --seeds 3

Action units, which are no image, are one region: they are not weighed.
The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('whisper', 'vision')


def get() -> Experiment:
    return protocols.ravdess(zoo.create('cfn_sr', classes=8, streams=STREAMS, steps=50, regions=1, layers=2))


def paper() -> Experiment:
    """The authors' widths and layers, over Whisper's steps, which are fewer than their cepstra."""
    return protocols.ravdess(zoo.create('cfn_sr', classes=8, streams=STREAMS, steps=50, regions=1))

"""TIM-Net on EmoDB, log-mel frames at 12.5 Hz of the first two seconds. Seven emotions.

    jmer train emodb/timnet --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.emodb`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.emodb(zoo.create('timnet', classes=7, width=32, blocks=4), rate=3e-3)


def paper() -> Experiment:
    """The authors' eight blocks, as wide as their 39 cepstra."""
    return protocols.emodb(zoo.create('timnet', classes=7, stream='mfcc'), rate=3e-3)

"""DST on EmoDB, log-mel frames at 12.5 Hz of the first two seconds. Seven emotions.

    jmer train emodb/dst --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.emodb`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.emodb(zoo.create('dst', classes=7, layers=2, heads=4, hidden=128, length=32), rate=2e-3)


def paper() -> Experiment:
    """The authors' four layers of eight heads; they are as wide as the stream."""
    return protocols.emodb(zoo.create('dst', classes=7), rate=2e-3)

"""DEER on EmoDB, log-mel frames at 12.5 Hz of the first two seconds. Seven emotions.

    jmer train emodb/deer --data DIR --folds parts --seeds 3

The evidential regression takes the classes as vectors of zeros and a one.
The protocol is `jmer.train.protocols.emodb`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.emodb(zoo.create('deer', classes=7, states=1, width=64, hidden=128, layers=1), rate=1e-3)


def paper() -> Experiment:
    """The authors' transformer, on one stream of features in place of twelve hidden states."""
    return protocols.emodb(zoo.create('deer', classes=7, states=1), rate=1e-3)

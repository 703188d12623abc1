"""ShiftSER on EmoDB, log-mel frames at 12.5 Hz of the first two seconds. Seven emotions.

    jmer train emodb/shiftser --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.emodb`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.emodb(zoo.create('shiftser', classes=7))


def paper() -> Experiment:
    """The same: the Shiftformer is as wide as the stream, and all else is the authors' already."""
    return get()

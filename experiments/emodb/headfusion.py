"""Head Fusion on EmoDB, log-mel frames at 12.5 Hz of the first two seconds. Seven emotions.

    jmer train emodb/headfusion --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.emodb`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('headfusion', classes=7, heads=2, hidden=16, channels=(4, 8, 16, 16, 24))
    return protocols.emodb(model, rate=2e-2)


def paper() -> Experiment:
    """The authors' channels and heads."""
    return protocols.emodb(zoo.create('headfusion', classes=7), rate=2e-2)

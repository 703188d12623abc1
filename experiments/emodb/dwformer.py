"""DWFormer on EmoDB, log-mel frames at 12.5 Hz of the first two seconds. Seven emotions.

    jmer train emodb/dwformer --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.emodb`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('dwformer', classes=7, blocks=1, heads=4, hidden=128, dropout=0.1, head_dropout=0.1)
    return protocols.emodb(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' three blocks of eight heads; they are as wide as the stream."""
    return protocols.emodb(zoo.create('dwformer', classes=7), rate=2e-3)

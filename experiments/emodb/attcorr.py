"""Attentive channel correlations on EmoDB, log-mel frames at 12.5 Hz of the first two seconds. Seven emotions.

    jmer train emodb/attcorr --data DIR --folds parts --seeds 3

The protocol is `jmer.train.protocols.emodb`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.emodb(zoo.create('attcorr', classes=7, width=64), rate=3e-3)


def paper() -> Experiment:
    """256 channels, 4 heads, as the authors' defaults."""
    return protocols.emodb(zoo.create('attcorr', classes=7), rate=3e-3)

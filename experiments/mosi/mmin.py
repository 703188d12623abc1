"""MMIN on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/mmin --data DIR --seeds 3

Utterances without their context. The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create(
        'mmin', classes=2, width=64, text_channels=64, narrowing=(128, 64, 32), hidden=(64,)))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('mmin', classes=2))

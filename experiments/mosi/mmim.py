"""MMIM on CMU-MOSI, the features of Poria et al. (ACL 2017). Sentiment, a real value.

    jmer train mosi/mmim --data DIR --seeds 3

Utterances without their context. The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('mmim', classes=1, width=64, dropout=0.3), target='sentiment')


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('mmim', classes=1), target='sentiment')

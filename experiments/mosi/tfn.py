"""TFN on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/tfn --data DIR --seeds 3

Utterances without their context. The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('tfn', classes=2, hidden=(4, 16, 64), text_width=32, dropout=0.5))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('tfn', classes=2))

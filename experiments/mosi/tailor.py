"""TAILOR on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/tailor --data DIR --seeds 3

Utterances without their context. The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('tailor', classes=2, width=32, heads=4, hidden=64, layers=(2, 1, 1), join_layers=1)
    return protocols.mosi(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('tailor', classes=2))

"""SDUMC on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/sdumc --data DIR --seeds 3

Utterances without their context. Nothing stands in for missing text.
The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('sdumc', classes=2, width=64, hidden=(64, 32), contrast=32, step_dropout=0.0, dropout=0.0)
    return protocols.mosi(model, rate=3e-4)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('sdumc', classes=2), rate=3e-4)

"""MAG-BERT on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/mag --data DIR --seeds 3

Utterances without their context. An utterance is one word, which audio and vision shift.
The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('mag', classes=2, width=64, heads=4, layers=2, hidden=128, dropout=0.3))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('mag', classes=2))

"""SDTN on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/sdtn --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('sdtn', classes=7, streams=('text',), width=64, state_width=64, hidden=96, dropout=0.5)
    return protocols.meld(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('sdtn', classes=7, streams=('text',)))

"""DualGATs on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/dualgats --data DIR --seeds 3

There is no discourse parser: turns are related to their neighbours.
The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('dualgats', classes=7, streams=('text',), width=96, dropout=0.3)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('dualgats', classes=7, streams=('text',), dropout=0.3), rate=1e-4)

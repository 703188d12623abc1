"""COGMEN on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/cogmen --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('cogmen', classes=7, streams=('text',), transformer_hidden=256, layers=1, speakers=9,
        dropout=0.3)
    return protocols.meld(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('cogmen', classes=7, streams=('text',), speakers=9), rate=1e-4)

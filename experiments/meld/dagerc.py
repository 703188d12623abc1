"""DAG-ERC on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/dagerc --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('dagerc', classes=7, streams=('text',), hidden=96, layers=2, dropout=0.5)
    return protocols.meld(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('dagerc', classes=7, streams=('text',), layers=2, dropout=0.1), rate=1e-4)

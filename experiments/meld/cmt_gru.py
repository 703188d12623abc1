"""CMT-GRU on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/cmt_gru --data DIR --seeds 3

It does not see who speaks.
The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('cmt_gru', classes=7, streams=('text',), width=64, dropout=0.5)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('cmt_gru', classes=7, streams=('text',)))

"""RBA-GCN on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/rba_gcn --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('rba_gcn', classes=7, streams=('text',), recurrent=('gru',), width=64, base_width=128,
        speakers=9, dropout=0.4)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('rba_gcn', classes=7, streams=('text',), recurrent=('gru',), speakers=9))

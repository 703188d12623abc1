"""DialogueGCN on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/dialoguegcn --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('dialoguegcn', classes=7, streams=('text',), width=64, hidden=64, layers=1, speakers=9,
        attention=False, dropout=0.4)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('dialoguegcn', classes=7, streams=('text',), speakers=9), rate=3e-4)

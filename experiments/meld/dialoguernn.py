"""DialogueRNN on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/dialoguernn --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('dialoguernn', classes=7, streams=('text',), global_width=64, party_width=64, width=64,
        hidden=64, attention=False, dropout=0.5, input_dropout=0.3)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('dialoguernn', classes=7, streams=('text',)))

"""DialogueRNN on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/dialoguernn --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.meld(zoo.create('dialoguernn', classes=7, streams=('text',), global_width=100, party_width=100,
        dropout=0.5, input_dropout=0.3))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('dialoguernn', classes=7, streams=('text',)))

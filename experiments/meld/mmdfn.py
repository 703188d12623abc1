"""MM-DFN on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/mmdfn --data DIR --seeds 3

One stream only: the graph joins turns.
The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('mmdfn', classes=7, streams=('text',), party_weights=(1.5,), width=64, hidden=64, layers=4,
        speakers=9, dropout=0.4)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('mmdfn', classes=7, streams=('text',), party_weights=(1.5,), speakers=9),
        rate=5e-4)

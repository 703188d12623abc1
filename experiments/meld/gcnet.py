"""GCNet on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/gcnet --data DIR --seeds 3

Nothing is missing here, so nothing is reconstructed.
The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('gcnet', classes=7, streams=('text',), width=48, speakers=9, dropout=0.4)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('gcnet', classes=7, streams=('text',), speakers=9))

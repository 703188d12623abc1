"""GMU on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/gmu --data DIR --seeds 5

Turns without their context.
The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('gmu', classes=7, streams=('text',), hidden=128, dropout=0.5)
    return protocols.meld(model, rate=3e-3)

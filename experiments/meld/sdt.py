"""SDT on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/sdt --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('sdt', classes=7, streams=('text',), width=96, heads=4, speakers=9, learned_gates=False,
        dropout=0.2, temperature=8.0)
    return protocols.meld(model, rate=3e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('sdt', classes=7, streams=('text',), speakers=9, learned_gates=False,
        temperature=8.0), rate=1e-4)

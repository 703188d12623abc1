"""CMCF-SRNet on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/cmcf_srnet --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('cmcf_srnet', classes=7, streams=('text',), width=64, hidden=128, layers=1, speakers=9,
        dropout=0.3)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('cmcf_srnet', classes=7, streams=('text',), speakers=9))

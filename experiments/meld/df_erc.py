"""DF-ERC on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/df_erc --data DIR --seeds 3

The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('df_erc', classes=7, streams=('text',), width=64, dropout=0.4)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('df_erc', classes=7, streams=('text',)))

"""bc-LSTM on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/bclstm --data DIR --seeds 5

It does not see who speaks.
The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('bclstm', classes=7, streams=('text',), width=64, hidden=128, layers=1, dropout=0.5,
        input_dropout=0.3)
    return protocols.meld(model, rate=3e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('bclstm', classes=7, streams=('text',)))

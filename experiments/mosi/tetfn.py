"""TETFN on CMU-MOSI, the features of Poria et al. (ACL 2017). Sentiment, a real value.

    jmer train mosi/tetfn --data DIR --seeds 3

Utterances without their context. The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('tetfn', classes=1, width=30, hidden=(64, 32, 16, 32), text_dropout=0.3, dropout=0.3)
    return protocols.mosi(model, target='sentiment')


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('tetfn', classes=1), target='sentiment')

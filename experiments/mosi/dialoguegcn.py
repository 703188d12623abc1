"""DialogueGCN on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/dialoguegcn --data DIR --seeds 3

`get` leaves out the attention over turns, without which it learns better (found on the dev part of MELD).
The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('dialoguegcn', classes=2, streams=('text', 'audio', 'vision'), width=64,
        hidden=64, layers=1, speakers=1, attention=False, dropout=0.5))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('dialoguegcn', classes=2, streams=('text', 'audio', 'vision'), speakers=1),
        rate=3e-4)

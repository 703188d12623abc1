"""DialogueRNN on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/dialoguernn --data DIR --seeds 3

The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('dialoguernn', classes=2, streams=('text', 'audio', 'vision'), global_width=64,
        party_width=64, width=64, hidden=64, dropout=0.5, input_dropout=0.5))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('dialoguernn', classes=2, streams=('text', 'audio', 'vision'), global_width=500,
        party_width=500, width=300, hidden=300), rate=1e-4)

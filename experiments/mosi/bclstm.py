"""bc-LSTM on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/bclstm --data DIR --seeds 5

The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('bclstm', classes=2, streams=('text', 'audio', 'vision'), width=64, hidden=64,
        layers=1, dropout=0.5, input_dropout=0.5))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('bclstm', classes=2, streams=('text', 'audio', 'vision')))

"""MultiEMO on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/multiemo --data DIR --seeds 3

The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('multiemo', classes=2, width=64, layers=2, hidden=128, hidden_out=64, dropout=0.2,
        label_weight=1.0)
    return protocols.mosi(model, rate=3e-4)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('multiemo', classes=2), rate=1e-4)

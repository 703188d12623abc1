"""RBA-GCN on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/rba_gcn --data DIR --seeds 3

The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('rba_gcn', classes=2, width=64, base_width=64, speakers=1, dropout=0.5))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('rba_gcn', classes=2, speakers=1))

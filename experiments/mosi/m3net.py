"""M3NET on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/m3net --data DIR --seeds 3

The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('m3net', classes=2, width=64, hidden=64, hyper_layers=2, gated_layers=2,
        speakers=1))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('m3net', classes=2, speakers=1), rate=1e-4)

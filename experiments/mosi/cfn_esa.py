"""CFN-ESA on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/cfn_esa --data DIR --seeds 3

The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('cfn_esa', classes=2, width=64, heads=4, layers=2, shift_hidden=64, dropout=0.5))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('cfn_esa', classes=2), rate=1e-4)

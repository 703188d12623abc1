"""GraphCFC on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/graphcfc --data DIR --seeds 3

The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('graphcfc', classes=2, width=32, base_width=32, layers=(1, 1, 1), heads=2,
        past=10, future=10, speakers=1, dropout=0.5))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('graphcfc', classes=2, speakers=1), rate=1e-4)

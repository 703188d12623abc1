"""IMDer on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/imder --data DIR --seeds 3

Utterances without their context. The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('imder', classes=2, width=16, kernel=1, heads=4, layers=1, channels=(16, 32), embed=32,
                       groups=(4, 8), score_layers=1, steps=10, blocks=2, reduction=8)
    return protocols.mosi(model)


def paper() -> Experiment:
    """The authors' sizes; a projection sees the one step there is."""
    return protocols.mosi(zoo.create('imder', classes=2, kernel=1))

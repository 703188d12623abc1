"""GMU on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/gmu --data DIR --seeds 5

Utterances without their context.
The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('gmu', classes=2, streams=('text', 'audio', 'vision'), hidden=128, dropout=0.5))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('gmu', classes=2, streams=('text', 'audio', 'vision')))

"""MulT on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/mult --data DIR --seeds 5

Utterances without their context.
The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('mult', classes=2, streams=('text', 'audio', 'vision'), width=32, heads=4,
        layers=1, text_dropout=0.5, out_dropout=0.5))


def paper() -> Experiment:
    """The authors' sizes, for CMU-MOSEI."""
    return protocols.mosi(zoo.create('mult', classes=2))

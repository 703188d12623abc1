"""MAG-Net on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/magnet --data DIR --seeds 3

Utterances without their context. Vision stands for the picture; memes are not told. Where a corpus tells them,
`--set data.also=meme` trains both tasks.
The protocol is `jmer.train.protocols.mosi`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.mosi(zoo.create('magnet', classes=2, width=64, hidden=32))


def paper() -> Experiment:
    """The sizes of the model's file, which for want of the paper's are inferred."""
    return protocols.mosi(zoo.create('magnet', classes=2))

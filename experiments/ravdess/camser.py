"""CA-MSER on RAVDESS: log-mel frames at 10 Hz, Whisper frames at 5 Hz. Eight emotions.

    jmer train ravdess/camser --data DIR --folds parts --seeds 3

Sound alone. Log-mel frames are the image, of one colour, and stand for the cepstra as well.
The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('audio', 'audio', 'whisper')


def get() -> Experiment:
    model = zoo.create('camser', classes=8, streams=STREAMS, images=1, channels=(16, 32, 48, 32, 32), lstm=32,
                       steps=(60, 50), width=64)
    return protocols.ravdess(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' widths; steps are longer here, and fewer."""
    return protocols.ravdess(zoo.create('camser', classes=8, streams=STREAMS, images=1, steps=(60, 50)))

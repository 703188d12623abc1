"""DualGATs on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/dualgats --data DIR --seeds 3

There is no discourse parser: turns are related to their neighbours.
Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('dualgats', classes=7, streams=('text',), width=64, dropout=0.4)
    return protocols.emorynlp(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.emorynlp(zoo.create('dualgats', classes=7, streams=('text',), dropout=0.3), rate=1e-4)

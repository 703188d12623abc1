"""SDTN on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/sdtn --data DIR --seeds 3

Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('sdtn', classes=7, streams=('text',), width=64, state_width=64, hidden=64, dropout=0.5)
    return protocols.emorynlp(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.emorynlp(zoo.create('sdtn', classes=7, streams=('text',)))

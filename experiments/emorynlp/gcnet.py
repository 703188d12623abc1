"""GCNet on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/gcnet --data DIR --seeds 3

Nothing is missing here, so nothing is reconstructed.
Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('gcnet', classes=7, streams=('text',), width=32, speakers=9, dropout=0.5)
    return protocols.emorynlp(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.emorynlp(zoo.create('gcnet', classes=7, streams=('text',), speakers=9))

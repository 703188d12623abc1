"""CTNet on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/ctnet --data DIR --seeds 3

Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('ctnet', classes=7, streams=('text',), width=64, hidden=64, speakers=9, dropout=0.4)
    return protocols.emorynlp(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.emorynlp(zoo.create('ctnet', classes=7, streams=('text',), speakers=9))

"""DAG-ERC on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/dagerc --data DIR --seeds 3

Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('dagerc', classes=7, streams=('text',), hidden=64, layers=2, dropout=0.5)
    return protocols.emorynlp(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.emorynlp(zoo.create('dagerc', classes=7, streams=('text',), layers=2, dropout=0.1), rate=1e-4)

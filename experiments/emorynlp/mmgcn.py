"""MMGCN on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/mmgcn --data DIR --seeds 3

One stream only: the graph joins turns.
Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('mmgcn', classes=7, streams=('text',), width=48, hidden=48, speakers=9, dropout=0.5)
    return protocols.emorynlp(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.emorynlp(zoo.create('mmgcn', classes=7, streams=('text',), speakers=9))

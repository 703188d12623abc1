"""RBA-GCN on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/rba_gcn --data DIR --seeds 3

Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('rba_gcn', classes=7, streams=('text',), recurrent=('gru',), width=48, base_width=64,
        speakers=9, dropout=0.5)
    return protocols.emorynlp(model)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.emorynlp(zoo.create('rba_gcn', classes=7, streams=('text',), recurrent=('gru',), speakers=9))

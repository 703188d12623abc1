"""GMU on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/gmu --data DIR --seeds 3

Every turn is read by itself. Turns that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('gmu', classes=7, streams=('text',), hidden=128, dropout=0.5)
    return protocols.emorynlp(model, rate=3e-3)

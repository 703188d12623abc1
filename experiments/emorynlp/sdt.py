"""SDT on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/sdt --data DIR --seeds 3

Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('sdt', classes=7, streams=('text',), width=96, heads=4, speakers=9, learned_gates=False,
        dropout=0.2, temperature=8.0)
    return protocols.emorynlp(model, rate=3e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.emorynlp(zoo.create('sdt', classes=7, streams=('text',), speakers=9, learned_gates=False,
        temperature=8.0), rate=1e-4)

"""MultiEMO on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/multiemo --data DIR --seeds 3

One stream reads no other: what is left are recurrence, feed-forward layers and the contrast.
Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('multiemo', classes=7, streams=('text',), recurrent=('text',), width=64, layers=2, hidden=128,
        hidden_out=64, dropout=0.2, label_weight=0.4, contrast_weight=0.3, temperature=1.4, focus=2.0)
    return protocols.emorynlp(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes; no class weighs more than another in the contrast."""
    return protocols.emorynlp(zoo.create('multiemo', classes=7, streams=('text',), recurrent=(), layers=2,
        hidden_out=512, label_weight=0.4, contrast_weight=0.3, temperature=1.4, focus=2.0), rate=1e-4)

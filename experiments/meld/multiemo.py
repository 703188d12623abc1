"""MultiEMO on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/multiemo --data DIR --seeds 3

One stream reads no other: what is left are recurrence, feed-forward layers and the contrast.
The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

# Turns of each class in the train part.
COUNTS = (4710.0, 1205.0, 268.0, 683.0, 1743.0, 271.0, 1109.0)


def get() -> Experiment:
    model = zoo.create('multiemo', classes=7, streams=('text',), recurrent=('text',), width=80, layers=2, hidden=160,
        hidden_out=80, dropout=0.2, label_weight=0.4, contrast_weight=0.3, temperature=1.4, focus=2.0)
    return protocols.meld(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('multiemo', classes=7, streams=('text',), recurrent=(), layers=2, hidden_out=512,
        label_weight=0.4, contrast_weight=0.3, temperature=1.4, focus=2.0, class_counts=COUNTS, sample_weight=1.2),
        rate=1e-4)

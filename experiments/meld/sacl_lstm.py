"""SACL-LSTM on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/sacl_lstm --data DIR --seeds 3

Without the perturbation of weights (`optimizer.perturb`).
The protocol is `jmer.train.protocols.meld`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.meld(zoo.create('sacl_lstm', classes=7, streams=('text',), width=64, layers=1, speakers=9,
        dropout=0.5, gamma=1.0, contrast_weight=0.1, contrast_scores=True))


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('sacl_lstm', classes=7, streams=('text',), layers=1, speakers=9, gamma=1.0,
        contrast_weight=0.1, contrast_scores=True), rate=1e-4)

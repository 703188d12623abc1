"""SACL-LSTM on EmoryNLP, the words of the transcripts (tf-idf along 256 directions). Seven emotions.

    jmer train emorynlp/sacl_lstm --data DIR --seeds 3

Without the perturbation of weights (`optimizer.perturb`).
Scenes of one line that stand in valid or test with the same words do not train.
The protocol is `jmer.train.protocols.emorynlp`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('sacl_lstm', classes=7, streams=('text',), width=48, layers=1, speakers=9, dropout=0.5,
        gamma=1.0, contrast_weight=0.1, contrast_scores=True)
    return protocols.emorynlp(model, rate=2e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.emorynlp(zoo.create('sacl_lstm', classes=7, streams=('text',), layers=1, speakers=9, gamma=1.0,
        contrast_weight=0.1, contrast_scores=True), rate=1e-4)

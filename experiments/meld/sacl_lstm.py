"""SACL-LSTM on MELD, sentence embeddings of the transcripts. Seven classes.

    jmer train meld/sacl_lstm --data DIR --seeds 3

The authors move the weights that enter the LSTMs' second layer; `get` has one layer, and moves those of the first,
not as far. `paper` has their sizes without it.
The protocol is `jmer.train.protocols.meld`.
"""

import dataclasses

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('sacl_lstm', classes=7, streams=('text',), width=64, layers=1, speakers=9, dropout=0.5,
        gamma=1.0, contrast_weight=0.1, contrast_scores=True)
    experiment = protocols.meld(model, rate=2e-3)
    perturbed = dataclasses.replace(experiment.optimizer, perturb=('*_0/input_kernel',), perturb_by=1.0)
    return dataclasses.replace(experiment, optimizer=perturbed)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.meld(zoo.create('sacl_lstm', classes=7, streams=('text',), layers=1, speakers=9, gamma=1.0,
        contrast_weight=0.1, contrast_scores=True), rate=1e-4)

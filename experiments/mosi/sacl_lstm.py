"""SACL-LSTM on CMU-MOSI, the features of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/sacl_lstm --data DIR --seeds 3

The authors move the weights that enter the LSTMs' second layer; `get` has one layer, and moves those of the first,
not as far. `paper` has their sizes without it.
The protocol is `jmer.train.protocols.mosi`.
"""

import dataclasses

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    model = zoo.create('sacl_lstm', classes=2, streams=('text', 'audio', 'vision'), width=64, layers=1, speakers=1,
        dropout=0.5)
    experiment = protocols.mosi(model)
    perturbed = dataclasses.replace(experiment.optimizer, perturb=('*_0/input_kernel',), perturb_by=1.0)
    return dataclasses.replace(experiment, optimizer=perturbed)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.mosi(zoo.create('sacl_lstm', classes=2, streams=('text', 'audio', 'vision'), speakers=1),
        rate=1e-4)

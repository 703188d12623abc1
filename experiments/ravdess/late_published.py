"""Late fusion on RAVDESS of published out-of-fold decisions. Eight emotions.

    jmer train ravdess/late_published --data DIR --folds parts --seeds 5

The scores of a fine-tuned wav2vec 2.0 XLSR and of two networks over action units (Luna-Jimenez et al.,
Applied Sciences 12(1):327, 2021), each through a linear map of its own, and added. The decisions on the training
folds come from networks that had seen the test fold: what is fitted on them is only nearly honest.
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Optimizer

STREAMS = ('xlsr', 'au_lstm', 'au_mlp')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('late', classes=8, streams=STREAMS, probabilities=False, hidden=(), pooling='mean',
                         dropout=0.0),
        data=Data('ravdess', STREAMS, protocol=Protocol(test=('fold3',), held_out=3), batch_size=60),
        optimizer=Optimizer('adamw', rate=3e-2, schedule='cosine', warmup=0.1, weight_decay=0.1),
        epochs=40,
        monitor='nll',
    )

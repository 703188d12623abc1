"""MulT on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/mult --data DIR --folds parts --seeds 5

Each fold: train on the other three, three speakers of which choose the epoch, the fold judges.
"""

import dataclasses

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Loss, Optimizer

STREAMS = ('whisper', 'vision')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('mult', classes=8, streams=STREAMS, width=40, heads=8, layers=2, causal=False,
                         text_dropout=0.3, relu_dropout=0.2, residual_dropout=0.2, out_dropout=0.3),
        data=Data('ravdess', STREAMS, protocol=Protocol(test=('fold3',), held_out=3), batch_size=60,
                  pool=(('vision', 0),), drop_modalities=0.1),
        optimizer=Optimizer('adamw', rate=1e-3, schedule='cosine', warmup=0.1, weight_decay=0.1, clip=1.0),
        loss=Loss(label_smoothing=0.1),
        epochs=20,
        monitor='nll',
    )


def paper() -> Experiment:
    """The authors' sizes, for CMU-MOSEI."""
    return dataclasses.replace(get(), model=zoo.create('mult', classes=8, streams=STREAMS))
